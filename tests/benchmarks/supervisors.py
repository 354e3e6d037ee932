"""sagectl and its peers, each in a directory of its own and configured for the same engines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

from sagectl.client import Client, Engine
from tests.benchmarks.lab import BIN, PATIENCE, Supervisor, eventually, parent_of, sized


class Sagectl(Supervisor):
    """A `sagectld` whose engines restart without delay."""

    name = "sagectl"

    def __init__(self) -> None:
        super().__init__()
        self.environ["SAGECTL_HOME"] = str(self.home)
        self.client = Client(self.home / "run" / "sagectl.sock")

    def command(self) -> list[str]:
        return [str(BIN / "sagectld")]

    def declare(self, commands: Mapping[str, Sequence[str]]) -> None:
        self._write({name: _table(words) for name, words in commands.items()})

    def configure(self, count: int, *, first_port: int | None = None) -> None:
        """Declare `count` engines; with a port each is probed by HTTP."""
        if first_port is None:
            return super().configure(count)
        tables = {}
        for port in range(first_port, first_port + count):
            probe = f'\nport = {port}\nprobe = {{ http = "/" }}'
            tables[f"e{port - first_port}"] = _table(self.engines.command(port)) + probe
        self._write(tables)

    def _write(self, tables: Mapping[str, str]) -> None:
        (self.home / "etc").mkdir(exist_ok=True)
        text = "\n\n".join(f"[engines.{name}]\n{table}" for name, table in tables.items())
        (self.home / "etc" / "sagectl.toml").write_text(text)

    def all_active(self, count: int) -> list[Engine]:
        """Wait until so many engines are active, and return them."""

        def look() -> list[Engine] | None:
            engines = self.client.engines()
            return engines if sum(e["state"] == "active" for e in engines) == count else None

        found: list[Engine] = eventually(look)
        return found

    def settle(self, count: int) -> None:
        self.all_active(count)

    def stop(self, name: str) -> bool:
        return self.call(str(BIN / "sagectl"), "stop", name)

    def reader(self, pid: int) -> int:
        return parent_of(pid)

    def close(self) -> None:
        """In order, because shims outlive their daemon: one that was killed runs once more."""
        if self.process is not None:
            if self.process.poll() is not None:
                self.start()
                eventually(lambda: self.client.engines() is not None)
            self.process.terminate()
            self.process.wait(PATIENCE)
        super().close()


def _table(command: Sequence[str]) -> str:
    return "\n".join(
        [
            'kind = "exec"',
            f"command = {json.dumps(command)}",
            "autostart = true",
            "restart = { delay = 0, limit = 0 }",
            f"stop = {{ drain = 0, timeout = {sized(5000, 200)}e-3 }}",
        ]
    )


class Supervisord(Supervisor):
    """supervisord with its defaults, but for a start that counts at once and signals to the whole group."""

    name = "supervisord"

    def __init__(self) -> None:
        super().__init__()
        self.file = self.home / "supervisord.conf"

    def command(self) -> list[str]:
        return [str(BIN / "supervisord"), "--nodaemon", "-c", str(self.file)]

    def declare(self, commands: Mapping[str, Sequence[str]]) -> None:
        lines = [
            "[supervisord]",
            f"logfile = {self.home}/own.log",
            f"pidfile = {self.home}/pid",
            "minfds = 4096",
            f"[unix_http_server]\nfile = {self.home}/socket",
            f"[supervisorctl]\nserverurl = unix://{self.home}/socket",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for name, words in commands.items():
            lines += [
                f"[program:{name}]",
                f"command = {shlex.join(words)}",
                "autorestart = true\nstartsecs = 0",
                "stopasgroup = true\nkillasgroup = true",
                f"redirect_stderr = true\nstdout_logfile = {self.logs / name}.log",
            ]
        self.file.write_text("\n".join(lines) + "\n")

    def settle(self, count: int) -> None:
        eventually((self.home / "socket").exists)

    def stop(self, name: str) -> bool:
        return self.call(str(BIN / "supervisorctl"), "-c", str(self.file), "stop", name)


class Circus(Supervisor):
    """circusd with its defaults, but for a start that counts at once and signals to the children too."""

    name = "circus"

    def __init__(self) -> None:
        super().__init__()
        self.file = self.home / "circus.ini"

    def command(self) -> list[str]:
        return [str(BIN / "circusd"), str(self.file)]

    def declare(self, commands: Mapping[str, Sequence[str]]) -> None:
        lines = [
            "[circus]",
            *(f"{name} = ipc://{self.home}/{name}" for name in ("endpoint", "pubsub_endpoint")),
            "statsd = False",
            f"check_delay = {sized(5, 1)}",  # seconds; 5 is its default
        ]
        for name, words in commands.items():
            lines += [
                f"[watcher:{name}]",
                f"cmd = {shlex.join(words)}",
                "warmup_delay = 0",
                "stop_children = True",
            ]
            for stream in ("stdout", "stderr"):
                lines += [
                    f"{stream}_stream.class = FileStream",
                    f"{stream}_stream.filename = {self.logs / name}.{stream}",
                ]
        self.file.write_text("\n".join(lines) + "\n")

    def settle(self, count: int) -> None:
        eventually((self.home / "endpoint").exists)

    def stop(self, name: str) -> bool:
        endpoint = f"ipc://{self.home}/endpoint"
        return self.call(str(BIN / "circusctl"), "--endpoint", endpoint, "stop", name, "--waiting")
