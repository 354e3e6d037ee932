"""What is measured of any supervisor, ours or a peer."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.lab import HERE, Supervisor, cpu_seconds, eventually, running, sized, words_of

LINE = 900
"""Bytes that a chatty engine writes at a time."""

_SAID = re.compile(rb"(\d{20}) (\d{8}) xxx")


def respawns(supervisor: Supervisor, count: int, pause: float = 0.05, patience: float = 60.0) -> list[float]:
    """Milliseconds from each `kill -9` of the only engine to its replacement's first instruction.

    Those of `count` that are measured within so many seconds, at least one.
    """
    found: list[float] = []
    begin = time.monotonic()
    while len(found) < count and (not found or time.monotonic() - begin < patience):
        time.sleep(pause)  # it has noted everything, and is idle
        [pid] = running(supervisor.engines.command())
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        [(_, began)] = supervisor.engines.began(1)
        found.append((began - killed) * 1000)
    return found


def seconds_to_run(supervisor: Supervisor, count: int) -> tuple[float, float]:
    """From the supervisor's own exec to the first instruction of the last engine; and the exec's moment."""
    begin = supervisor.start()
    return max(moment for _, moment in supervisor.engines.began(count)) - begin, begin


def idle_percent(pids: Sequence[int], seconds: float) -> float:
    """The share of a core that these processes use."""
    before, begin = cpu_seconds(pids), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_seconds(pids) - before) / (time.monotonic() - begin)


# --- Engines that make trouble -----------------------------------------------------------------


class Trouble:
    """One plain engine, one that cannot be stopped by SIGTERM, and one that writes all the time."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.counter = supervisor.home / "count"
        program = supervisor.home / "trouble.py"  # where a container sees it too
        program.write_bytes((HERE / "programs" / "trouble.py").read_bytes())
        python = [sys.executable, "-I", "-S", str(program)]
        self.plain = supervisor.engines.command()
        self.stubborn = [*python, "stubborn", str(supervisor.engines.fifo)]
        self.chatty = [*python, "chatty", str(supervisor.engines.fifo), str(self.counter)]

    def start(self, *names: str) -> None:
        """Have the supervisor run these of `plain`, `stubborn` and `chatty`."""
        self.supervisor.declare({name: getattr(self, name) for name in names})
        self.supervisor.start()
        self.supervisor.engines.began(len(names))

    def counts(self) -> dict[str, int]:
        """How many lines each instance of the chatty engine got rid of."""
        return {
            path.suffix[1:]: int.from_bytes(path.read_bytes(), "little")
            for path in self.supervisor.home.glob("count.*")
        }


def survivors(trouble: Trouble) -> tuple[bool, int]:
    """Whether the stop was reported as a success, and how many processes of the engine live after it."""
    success = trouble.supervisor.stop("stubborn")
    return success, len(running(trouble.stubborn))


@dataclass(frozen=True, slots=True)
class Outage:
    """What became of the engines while processes of the supervisor were stopped or dead, and after."""

    during: str
    after: str
    lost: int
    instances: int

    def output(self) -> str:
        """The chatty engine's story."""
        story = self.during if self.after == "writes" or self.during == "dies" else f"{self.during}, {self.after}"
        return f"{story}; {self.lost} lost"


def outage(trouble: Trouble, begin: Callable[[], None], end: Callable[[], None], seconds: float) -> Outage:
    """`begin` stops or kills something, `end` brings it back; between them pass so many seconds."""
    [pid] = running(trouble.chatty)
    [instance] = before = trouble.counts()
    os.kill(pid, signal.SIGUSR1)
    eventually(lambda: trouble.counts()[instance] > before[instance] + 100)
    begin()
    at = trouble.counts()[instance]
    time.sleep(seconds)
    during = _fate(trouble, pid, instance, at)
    trouble.supervisor.engines.drop(0)
    end()
    trouble.supervisor.engines.drop(sized(4, 1))  # whatever it starts now
    after = _fate(trouble, pid, instance, at)
    instances = len(running(trouble.plain))
    if pid in running(trouble.chatty):
        os.kill(pid, signal.SIGUSR1)
    return Outage(during, after, _lost(trouble, instance), instances)


def _fate(trouble: Trouble, pid: int, instance: str, at: int) -> str:
    """Whether an engine still writes, and if it is blocked, after how much since `at`."""
    if not words_of(pid):
        return "dies"
    count = trouble.counts()[instance]
    time.sleep(0.3)
    if trouble.counts()[instance] > count:
        return "writes"
    return f"blocks after {(count - at) * LINE / 1000:.0f} kB"


def _lost(trouble: Trouble, instance: str) -> int:
    """Lines that the kernel took and that the supervisor did not keep, once that no longer changes."""
    wanted = instance.encode()
    missing, since = -1, time.monotonic()
    while missing and time.monotonic() - since < 1:
        time.sleep(0.1)
        count = trouble.counts()[instance]
        kept = {int(number) for who, number in _SAID.findall(_output(trouble)) if who == wanted}
        now = len(set(range(count)) - kept)
        if now != missing:
            missing, since = now, time.monotonic()
    return missing


def _output(trouble: Trouble) -> bytes:
    return trouble.supervisor.output("chatty")


def stopped(pids: Sequence[int]) -> tuple[Callable[[], None], Callable[[], None]]:
    """SIGSTOP to processes, and SIGCONT."""

    def signal_all(which: signal.Signals) -> None:
        for pid in pids:
            os.kill(pid, which)

    return lambda: signal_all(signal.SIGSTOP), lambda: signal_all(signal.SIGCONT)


def killed(supervisor: Supervisor, pids: Sequence[int]) -> tuple[Callable[[], None], Callable[[], None]]:
    """SIGKILL to processes; and the supervisor's start, if it was among them."""
    again = supervisor.root in pids

    def end() -> None:
        if again:
            supervisor.start()

    return lambda: supervisor.kill(pids), end


def engine_of(command: Sequence[str]) -> int:
    """The only process with this command line."""
    [pid] = running(command)
    return pid


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
