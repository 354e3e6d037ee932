"""What is measured of any supervisor, ours or a peer."""

from __future__ import annotations

import os
import signal
import time

from tests.benchmarks.lab import Supervisor


def respawns(supervisor: Supervisor, pid: int, count: int, pause: float = 0.05) -> list[float]:
    """Milliseconds from each `kill -9` of the only engine to its replacement's first instruction."""
    found = []
    for _ in range(count):
        time.sleep(pause)  # it has noted everything, and is idle
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        [(pid, began)] = supervisor.engines.began(1)
        found.append((began - killed) * 1000)
    return found


def seconds_to_run(supervisor: Supervisor, count: int) -> tuple[float, float]:
    """From the supervisor's own exec to the first instruction of the last engine; and the exec's moment."""
    begin = supervisor.start()
    return max(moment for _, moment in supervisor.engines.began(count)) - begin, begin
