"""runit and s6: a directory for each engine, and in it one for what keeps its output."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.lab import Supervisor, parent_of, processes, words_of

KEEP = 16_000_000
"""Bytes of a log file before the next begins, so that none is dropped meanwhile."""


class Scanner(Supervisor):
    """A scanned directory of service directories, each with a `log` beside its `run`."""

    needs: tuple[str, ...] = ()
    package = ""

    def __init__(self) -> None:
        super().__init__()
        self.services = self.home / "service"

    @classmethod
    def missing(cls) -> str:
        lacking = [tool for tool in cls.needs if shutil.which(tool) is None]
        return f"no {', '.join(lacking)} here; `apt-get install {cls.package}` brings it" if lacking else ""

    def declare(self, commands: Mapping[str, Sequence[str]]) -> None:
        for name, words in commands.items():
            service = self.services / name
            (service / "log").mkdir(parents=True)
            (self.logs / name).mkdir()
            self._describe(service, words, self.logs / name)

    def _describe(self, service: Path, words: Sequence[str], log: Path) -> None:
        """Write the service's files."""
        raise NotImplementedError

    def reader(self, pid: int) -> int:
        """The process that was started with this engine's folder for logs."""
        name = words_of(parent_of(pid))[-1]
        [found] = [each for each in processes() if str(self.logs / name) in words_of(each)]
        return found

    def output(self, name: str) -> bytes:
        return b"".join(path.read_bytes() for path in sorted((self.logs / name).iterdir()))


def _script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)


class Runit(Scanner):
    """runsvdir as Debian starts it, with svlogd as its documentation has it."""

    name = "runit"
    needs = ("runsvdir", "runsv", "sv", "svlogd")
    package = "runit"

    def command(self) -> list[str]:
        return [str(shutil.which("runsvdir")), "-P", str(self.services)]

    def _describe(self, service: Path, words: Sequence[str], log: Path) -> None:
        _script(service / "run", "#!/bin/sh", "exec 2>&1", f"exec {shlex.join(words)}")
        _script(service / "log" / "run", "#!/bin/sh", f"exec svlogd -tt {log}")
        (log / "config").write_text(f"s{KEEP}\n")

    def stop(self, name: str) -> bool:
        return self.call("sv", "-w", "30", "stop", str(self.services / name))


class S6(Scanner):
    """s6-svscan with s6-log, each engine in execline.

    Without `lock-fd`, which would prevent a second instance: 2.11.3.2 starts nothing if it has to make that
    lock's file, and where the file is there s6-supervise itself holds the lock, which ends with it.
    """

    name = "s6"
    needs = ("s6-svscan", "s6-supervise", "s6-svc", "s6-log", "execlineb")
    package = "s6"

    def command(self) -> list[str]:
        return [str(shutil.which("s6-svscan")), "-c", "1000", str(self.services)]

    def _describe(self, service: Path, words: Sequence[str], log: Path) -> None:
        shebang = f"#!{shutil.which('execlineb')} -P"
        _script(service / "run", shebang, "fdmove -c 2 1", shlex.join(words))
        _script(service / "log" / "run", shebang, f"s6-log n20 s{KEEP} T {log}")

    def stop(self, name: str) -> bool:
        return self.call("s6-svc", "-wD", "-T", "30000", "-d", str(self.services / name))
