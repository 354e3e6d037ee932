"""sagectl and its peers, each in a directory of its own and configured for the same engines."""

from __future__ import annotations

import json
import shlex

from sagectl.client import Client, Engine
from tests.benchmarks.lab import BIN, Supervisor, eventually


class Sagectl(Supervisor):
    """A `sagectld` in a directory of its own."""

    name = "sagectl"

    def __init__(self) -> None:
        super().__init__()
        self.environ["SAGECTL_HOME"] = str(self.home)
        self.client = Client(self.home / "run" / "sagectl.sock")

    def command(self) -> list[str]:
        return [str(BIN / "sagectld")]

    def configure(self, count: int, *, first_port: int | None = None) -> None:
        """Declare `count` engines that restart without delay; with a port each is probed by HTTP."""
        tables = []
        for number in range(count):
            port = None if first_port is None else first_port + number
            lines = [
                f"[engines.e{number}]",
                'kind = "exec"',
                f"command = {json.dumps(self.engines.command(port))}",
                "autostart = true",
                "restart = { delay = 0, limit = 0 }",
                "stop = { drain = 0, timeout = 5 }",
            ]
            if port is not None:
                lines += [f"port = {port}", 'probe = { http = "/" }']
            tables.append("\n".join(lines))
        (self.home / "etc").mkdir(exist_ok=True)
        (self.home / "etc" / "sagectl.toml").write_text("\n\n".join(tables))

    def all_active(self, count: int) -> list[Engine]:
        """Wait until so many engines are active, and return them."""

        def look() -> list[Engine] | None:
            engines = self.client.engines()
            return engines if sum(e["state"] == "active" for e in engines) == count else None

        found: list[Engine] = eventually(look)
        return found


class Supervisord(Supervisor):
    """supervisord with its defaults, but for a start that counts at once."""

    name = "supervisord"

    def __init__(self) -> None:
        super().__init__()
        self.file = self.home / "supervisord.conf"

    def command(self) -> list[str]:
        return [str(BIN / "supervisord"), "--nodaemon", "-c", str(self.file)]

    def configure(self, count: int) -> None:
        """Declare `count` programs."""
        lines = [
            "[supervisord]",
            f"logfile = {self.home}/log",
            f"pidfile = {self.home}/pid",
            f"childlogdir = {self.home}",
            "minfds = 4096",
            f"[unix_http_server]\nfile = {self.home}/socket",
            f"[supervisorctl]\nserverurl = unix://{self.home}/socket",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for number in range(count):
            lines += [
                f"[program:e{number}]",
                f"command = {shlex.join(self.engines.command())}",
                "autorestart = true\nstartsecs = 0",
            ]
        self.file.write_text("\n".join(lines) + "\n")


class Circus(Supervisor):
    """circusd with its defaults, but for a start that counts at once."""

    name = "circus"

    def __init__(self) -> None:
        super().__init__()
        self.file = self.home / "circus.ini"

    def command(self) -> list[str]:
        return [str(BIN / "circusd"), str(self.file)]

    def configure(self, count: int) -> None:
        """Declare `count` watchers."""
        lines = [
            "[circus]",
            *(f"{name} = ipc://{self.home}/{name}" for name in ("endpoint", "pubsub_endpoint")),
            "statsd = False",
        ]
        for number in range(count):
            lines += [
                f"[watcher:e{number}]",
                f"cmd = {shlex.join(self.engines.command())}",
                "warmup_delay = 0",
            ]
        self.file.write_text("\n".join(lines) + "\n")


PEERS: tuple[type[Supervisord] | type[Circus], ...] = (Supervisord, Circus)
