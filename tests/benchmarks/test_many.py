"""Two hundred engines: how soon they are up, what they cost in memory and, when idle, in processor time."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.benchmarks.lab import Figures, cpu_seconds, free_ports, pss, sized
from tests.benchmarks.measures import seconds_to_run
from tests.benchmarks.supervisors import Sagectl


def test_all_engines_are_up(figures: Figures) -> None:
    count = sized(200, 20)
    running, reported = [], []
    for _ in range(sized(5, 1)):
        with Sagectl() as sagectl:
            sagectl.configure(count)
            seconds, begin = seconds_to_run(sagectl, count)
            running.append(seconds)
            sagectl.all_active(count)
            reported.append(time.monotonic() - begin)
    for what, values in (("running", running), ("reported active", reported)):
        extremes = f"min {min(values):.2f}, max {max(values):.2f}, n {len(values)}"
        text = f"{statistics.median(values):.2f} s ({extremes})"
        figures.add(f"{count} engines {what}, from the daemon's start", text, "under 1.2 s")


@pytest.mark.parametrize(("count", "aim"), [(sized(20, 2), "under 75 MB"), (sized(200, 20), "under 280 MB")])
def test_memory(sagectl: Sagectl, figures: Figures, count: int, aim: str) -> None:
    sagectl.configure(count)
    seconds_to_run(sagectl, count)
    sagectl.all_active(count)
    time.sleep(sized(3, 1))  # caches of the start are dropped, or are there to stay
    pids = sagectl.overhead()
    shims = pss(pids[2:])
    text = f"{pss(pids):.0f} MB ({pss(pids[:1]):.0f} daemon, {pss(pids[1:2]):.1f} zygote, {shims:.0f} shims)"
    figures.add(f"PSS with {count} engines", text, aim)


def test_idle_processor_time(sagectl: Sagectl, figures: Figures) -> None:
    count = sized(200, 20)
    sagectl.configure(count, first_port=free_ports(count))
    seconds_to_run(sagectl, count)
    sagectl.all_active(count)
    time.sleep(sized(12, 0))  # each has been probed once and has its connection
    seconds = sized(40, 1)
    pids = sagectl.overhead()
    before, begin = cpu_seconds(pids), time.monotonic()
    daemon = cpu_seconds(pids[:1])
    time.sleep(seconds)
    passed = time.monotonic() - begin
    used, of_daemon = cpu_seconds(pids) - before, cpu_seconds(pids[:1]) - daemon
    text = f"{100 * used / passed:.2f} % of a core ({100 * of_daemon / passed:.2f} % the daemon; {seconds} s)"
    figures.add(f"idle with {count} engines, an HTTP probe each every 10 s", text, "under 0.5 %")
