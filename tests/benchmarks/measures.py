"""What is measured of any supervisor, ours or a peer."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.lab import (
    FULL,
    HERE,
    Supervisor,
    cpu_seconds,
    eventually,
    parent_of,
    running,
    sized,
    words_of,
)

LINE = 900
"""Bytes that a chatty engine writes at a time."""

_SAID = re.compile(rb"(\d{20}) (\d{8}) xxx")


def respawns(supervisor: Supervisor, count: int, pause: float = 0.05, patience: float = 60.0) -> list[float]:
    """Milliseconds from each `kill -9` of an engine to its replacement's first instruction.

    Those of `count` that are measured within so many seconds, at least one.
    """
    found: list[float] = []
    begin = time.monotonic()
    while len(found) < count and (not found or time.monotonic() - begin < patience):
        time.sleep(pause)  # it has noted everything, and is idle
        pid = running(supervisor.engines.command())[0]
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        [(_, began)] = supervisor.engines.began(1)
        found.append((began - killed) * 1000)
    return found


def restarted_without(supervisor: Supervisor) -> bool:
    """Whether an engine that is killed comes back while the supervisor is dead."""
    supervisor.kill([supervisor.root])
    for pid in running(supervisor.engines.command()):
        os.kill(pid, signal.SIGKILL)
    return supervisor.engines.any_began(4 if FULL else 1.5)


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
        self.supervisor.settle(len(names))

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
        if self.during.startswith("blocks"):
            story = f"{self.during}, {'goes on' if self.after == 'writes' else 'for good'}"
        elif self.during == "writes" != self.after:
            story = f"writes, then {self.after}"
        else:
            story = self.during
        return f"{story}; {self.lost} lines lost"


def outage(trouble: Trouble, pids: Sequence[int], blow: signal.Signals, seconds: float) -> Outage:
    """Stop or kill processes of the supervisor for so long; then continue them, or start it again."""
    supervisor, begun = trouble.supervisor, trouble.counts()
    [pid], [instance] = running(trouble.chatty), begun
    os.kill(pid, signal.SIGUSR1)
    eventually(lambda: trouble.counts()[instance] > begun[instance] + 20)
    restart = blow == signal.SIGKILL and supervisor.root in pids
    parent = parent_of(pid)
    _strike(supervisor, pids, blow)
    orphaned = not words_of(parent)
    at = trouble.counts()[instance]
    time.sleep(seconds)
    during = _fate(trouble, pid, instance, at)
    supervisor.engines.drop(0)
    if blow == signal.SIGSTOP:
        _strike(supervisor, pids, signal.SIGCONT)
        eventually(lambda: _fate(trouble, pid, instance, at) == "writes")
    elif restart:
        supervisor.start()
    if blow == signal.SIGKILL:
        # A double may come, or the successor of one that died; hardly where the engine's parent lives.
        supervisor.engines.any_began((4 if FULL else 1.6) if orphaned else (1 if FULL else 0.3))
        time.sleep(sized(1, 0))
    after, instances = _fate(trouble, pid, instance, at), len(running(trouble.plain))
    if after != "dies":
        os.kill(pid, signal.SIGUSR1)
    return Outage(during, after, _lost(trouble, instance), instances)


def _strike(supervisor: Supervisor, pids: Sequence[int], blow: signal.Signals) -> None:
    if blow == signal.SIGKILL:
        return supervisor.kill(pids)
    for pid in pids:
        os.kill(pid, blow)


def _fate(trouble: Trouble, pid: int, instance: str, at: int) -> str:
    """Whether an engine still writes, and if it is blocked, after how much since `at`."""
    if not words_of(pid):
        return "dies"
    count = trouble.counts()[instance]
    time.sleep(0.3 if FULL else 0.1)
    if trouble.counts()[instance] > count:
        return "writes"
    return f"blocks after {(count - at) * LINE / 1000:.0f} kB"


def _lost(trouble: Trouble, instance: str) -> int:
    """Lines that the kernel took and that the supervisor did not keep, once that no longer changes."""
    wanted = instance.encode()
    missing, since = -1, time.monotonic()
    while missing and time.monotonic() - since < (3 if FULL else 0.3):
        time.sleep(0.05)
        written = trouble.counts()[instance]
        lines = _SAID.findall(trouble.supervisor.output("chatty"))
        now = len(set(range(written)) - {int(number) for who, number in lines if who == wanted})
        if now != missing:
            missing, since = now, time.monotonic()
    return missing
