"""What the benchmarks share: engines that say when they began, and looks at processes from outside."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagectl.errors import NoDaemon

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PATIENCE = 60.0
FULL = os.environ.get("SAGECTL_BENCHMARKS") == "full"
"""Whether to measure (`make bench`), or only to show that measuring works, in a few seconds."""


def sized(full: int, short: int) -> int:
    """How much of something: in earnest, and in `make test`."""
    return full if FULL else short


@dataclass
class Figures:
    """The rows that are printed at the end."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, value: str, aim: str = "") -> None:
        """One figure, and what it should be."""
        self.rows.append((what, value, aim))
        print(f"{what}: {value}" + (f" (aim: {aim})" if aim else ""))

    def lines(self) -> Iterator[str]:
        """The rows as a table."""
        widths = [max(len(row[column]) for row in self.rows) for column in range(2)]
        for what, value, aim in self.rows:
            yield f"{what:{widths[0]}}  {value:{widths[1]}}  {aim}".rstrip()


def spread(values: Sequence[float], unit: str = "ms", digits: int = 2) -> str:
    """Median, 10th and 90th percentile."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[(len(ordered) * 9) // 10]
    median = statistics.median(ordered)
    return f"{median:.{digits}f} {unit} (p10 {low:.{digits}f}, p90 {high:.{digits}f}, n {len(ordered)})"


# --- Engines ---------------------------------------------------------------------------------


class Engines:
    """A program for engines, and the FIFO into which each instance writes its pid and its beginning."""

    def __init__(self, directory: Path) -> None:
        self.fifo = directory / "began"
        os.mkfifo(self.fifo)
        self._reader = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        self._words = self._build(directory)

    @staticmethod
    def _build(directory: Path) -> list[str]:
        binary = directory / "engine"
        for flags in (["-static"], []):
            command = ["cc", "-O2", *flags, "-o", str(binary), str(HERE / "engine.c")]
            with contextlib.suppress(FileNotFoundError):
                if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                    return [str(binary)]
        return [sys.executable, "-I", "-S", str(HERE / "engine.py")]

    def command(self, port: int | None = None) -> list[str]:
        """What to run."""
        return [*self._words, str(self.fifo), *([] if port is None else [str(port)])]

    def began(self, count: int) -> list[tuple[int, float]]:
        """The next `count` beginnings, as (pid, CLOCK_MONOTONIC seconds)."""
        found: list[tuple[int, float]] = []
        while len(found) < count:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                pid, moment = line.split()
                found.append((int(pid), int(moment) / 1e9))
                self._rest = rest
                continue
            ready, _, _ = select.select([self._reader], [], [], PATIENCE)
            assert ready, f"only {len(found)} of {count} engines began"
            self._rest += os.read(self._reader, 65536)
        return found

    def close(self) -> None:
        os.close(self._reader)


def free_ports(count: int) -> int:
    """The first of so many consecutive ports that nobody holds now."""
    first = 20000 + os.getpid() * 61 % 8000
    while True:
        taken = [port for port in range(first, first + count) if not _free(port)]
        if not taken:
            return first
        first = taken[-1] + 1


def _free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# --- Processes -------------------------------------------------------------------------------


def descendants(pid: int, wanted: Callable[[int], bool] = lambda pid: True) -> list[int]:
    """The process and all below it, as far as they are `wanted`."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            if wanted(child):
                found += descendants(child, wanted)
    return found


def pss(pids: Sequence[int]) -> float:
    """What these processes have in memory together, shared pages by share, in MB (10^6 bytes)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total * 1024 / 1e6


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time of these processes so far; to the nanosecond where the kernel has schedstat."""
    total = 0.0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
            except OSError:
                fields = (task / "stat").read_text().rpartition(") ")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def run_timed(command: Sequence[str], env: dict[str, str]) -> tuple[float, float]:
    """Wall clock and processor milliseconds of a whole process."""
    begin = time.perf_counter()
    pid = os.posix_spawn(
        command[0], list(command), env, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - begin
    assert status == 0, (command, status)
    return wall * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def eventually(condition: Callable[[], Any], pause: float = 0.01) -> Any:
    """The first true value of `condition`. Where it cannot tell yet, that is no error."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError, NoDaemon):
            if value := condition():
                return value
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(pause)


# --- Supervisors -----------------------------------------------------------------------------


def _memory() -> str:
    """A file system in memory, as /run is, where there is one from which programs may be run."""
    folder = "/dev/shm"
    usable = os.access(folder, os.W_OK) and not os.statvfs(folder).f_flag & os.ST_NOEXEC
    return folder if usable else "/tmp"


class Supervisor:
    """A supervisor in a directory of its own. `start` execs it and returns the moment (monotonic)."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="sgbench", dir=_memory()))
        self.engines = Engines(self.home)
        self.process: subprocess.Popen[bytes] | None = None
        self.environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("SAGECTL", "XDG_", "NOTIFY"))
        }

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    def start(self) -> float:
        """Start it; returns when that was (CLOCK_MONOTONIC)."""
        with (self.home / "output").open("ab") as output:
            begin = time.monotonic()
            self.process = subprocess.Popen(
                self.command(),
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
            )
        return begin

    def overhead(self) -> list[int]:
        """Its processes without the engines."""
        mark = os.fsencode(self.engines.fifo)
        return descendants(self.pid, lambda pid: mark not in Path(f"/proc/{pid}/cmdline").read_bytes())

    def close(self) -> None:
        """End it and its engines, and remove the directory."""
        if self.process is not None:
            everything = descendants(self.pid)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE / 2)
            except subprocess.TimeoutExpired:  # circus does that at times
                for pid in everything:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait()
        self.engines.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
