"""What the benchmarks share: engines that say when they began, and looks at processes from outside."""

from __future__ import annotations

import contextlib
import functools
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagectl.errors import NoDaemon
from tests.integration.process_support import leave_no_group

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
        widths = [max((len(row[column]) for row in self.rows), default=0) for column in range(2)]
        for what, value, aim in self.rows:
            yield f"{what:{widths[0]}}  {value:{widths[1]}}  {aim}".rstrip()


@dataclass
class Table:
    """Figures of several supervisors, side by side."""

    rows: dict[str, dict[str, list[float | str]]] = field(default_factory=dict)

    def add(self, row: str, column: str, *values: float | str) -> None:
        """One more value of a cell."""
        self.rows.setdefault(row, {}).setdefault(column, []).extend(values)
        print(f"{row}: {column}: {', '.join(map(_number, values))}")

    def lines(self) -> Iterator[str]:
        """The table in Markdown, numbers as `median (least–most)`."""
        columns = list(dict.fromkeys(column for cells in self.rows.values() for column in cells))
        yield f"| | {' | '.join(columns)} |"
        yield "|---" * (len(columns) + 1) + "|"
        for row, cells in self.rows.items():
            yield f"| {row} | {' | '.join(_cell(cells.get(column, [])) for column in columns)} |"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _cell(values: list[float | str]) -> str:
    numbers = [value for value in values if not isinstance(value, str)]
    if not numbers or len(set(map(_number, values))) == 1:
        return "; ".join(dict.fromkeys(map(_number, values)))
    return f"{_number(statistics.median(numbers))} ({_number(min(numbers))}–{_number(max(numbers))})"


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
        self._words = self._program(directory)

    @staticmethod
    def _program(directory: Path) -> list[str]:
        binary = directory / "engine"
        if program := _compiled():
            binary.write_bytes(program)
            binary.chmod(0o755)
            return [str(binary)]
        script = directory / "engine.py"  # where a container sees it too
        script.write_bytes((HERE / "engine.py").read_bytes())
        return [sys.executable, "-I", "-S", str(script)]

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
            assert self._more(PATIENCE), f"only {len(found)} of {count} engines began"
        return found

    def any_began(self, seconds: float) -> bool:
        """Whether one begins within so many seconds, or has."""
        return bool(self._rest) or self._more(seconds)

    def drop(self, seconds: float) -> None:
        """Forget every beginning so far, and those of the next seconds."""
        deadline = time.monotonic() + seconds
        while self._more(max(0.0, deadline - time.monotonic())):
            pass
        self._rest = b""

    def _more(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._reader], [], [], seconds)
        if ready:
            self._rest += os.read(self._reader, 65536)
        return bool(ready)

    def close(self) -> None:
        os.close(self._reader)


@functools.cache
def _compiled() -> bytes:
    """The engine in C; nothing where there is no compiler."""
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory, "engine")
        for flags in (["-static"], []):
            command = ["cc", "-O2", *flags, "-o", str(binary), str(HERE / "engine.c")]
            with contextlib.suppress(FileNotFoundError):
                if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                    return binary.read_bytes()
    return b""


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


def processes() -> Iterator[int]:
    """All that are there."""
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def words_of(pid: int) -> list[str]:
    """Its command line; empty if it has ended, and of a zombie."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except OSError:
        return []


def running(command: Sequence[str]) -> list[int]:
    """The processes with exactly this command line, zombies left out."""
    return [pid for pid in processes() if words_of(pid) == list(command)]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


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
    """A supervisor in a directory of its own, with engines of which each is back at once when it ends."""

    name = ""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="sgbench", dir=_memory()))
        self.logs = self.home / "log"
        self.logs.mkdir()
        self.engines = Engines(self.home)
        self.process: subprocess.Popen[bytes] | None = None
        self.environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("SAGECTL", "XDG_", "NOTIFY"))
        }
        self.environ["SGBENCH"] = str(self.home)

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be measured here; empty if it can."""
        return ""

    def command(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    def declare(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Write the configuration: an engine of each name."""
        raise NotImplementedError

    def settle(self, count: int) -> None:
        """Wait until it answers, now that so many engines began."""

    def stop(self, name: str) -> bool:
        """Stop an engine by the supervisor's own command, and wait; whether it reports success."""
        raise NotImplementedError

    def reader(self, pid: int) -> int:
        """The process that reads what the engine with this process writes."""
        return self.root

    def output(self, name: str) -> bytes:
        """What it kept of the engine's output."""
        return b"".join(path.read_bytes() for path in sorted(self.logs.glob(f"{name}*")))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def root(self) -> int:
        """The process that all else hangs on."""
        return self.pid

    def configure(self, count: int) -> None:
        """Declare `count` engines."""
        self.declare({f"e{number}": self.engines.command() for number in range(count)})

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

    def kill(self, pids: Sequence[int]) -> None:
        """SIGKILL to processes of it."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it ended with the one before
                os.kill(pid, signal.SIGKILL)
        if self.pid in pids and self.process is not None:
            self.process.wait()

    def call(self, *command: str) -> bool:
        """Run one of its tools; whether that succeeded."""
        done = subprocess.run(
            command, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE
        )
        return done.returncode == 0

    def overhead(self) -> list[int]:
        """Its processes without the engines."""
        mark = os.fsencode(self.engines.fifo)
        return descendants(self.pid, lambda pid: mark not in Path(f"/proc/{pid}/cmdline").read_bytes())

    def everything(self) -> list[int]:
        """Its processes and the engines, whoever their parent is by now."""
        mark, found = os.fsencode(self.home), []
        for pid in processes():
            with contextlib.suppress(OSError):
                known = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
                if mark in known:
                    found.append(pid)
        return found

    def close(self) -> None:
        """End it and its engines, and remove the directory."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            while left := self.everything():  # engines that outlive it, and what still starts some
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
        self.engines.close()
        shutil.rmtree(self.home, ignore_errors=True)
        leave_no_group(self.home / "run")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
