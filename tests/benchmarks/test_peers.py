"""The same engines under sagectl and its peers, in turn, on the same machine."""

from __future__ import annotations

import signal
import time

import pytest

from tests.benchmarks.lab import FULL, Supervisor, Table, parent_of, pss, running, sized
from tests.benchmarks.machine import Systemd
from tests.benchmarks.measures import (
    Trouble,
    idle_percent,
    outage,
    respawns,
    seconds_to_run,
    survivors,
)
from tests.benchmarks.service_directories import S6, Runit
from tests.benchmarks.supervisors import Circus, Sagectl, Supervisord

KINDS: tuple[type[Supervisor], ...] = (Sagectl, Supervisord, Circus, Runit, S6, Systemd)
against = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
COUNT = sized(200, 10)
OUTAGE = 2.0 if FULL else 0.2
"""Seconds."""
SAME = "is the supervisor"


@pytest.fixture(autouse=True)
def _here(request: pytest.FixtureRequest) -> None:
    """Leave a peer out that this machine does not have."""
    if reason := request.getfixturevalue("kind").missing():
        pytest.skip(reason)


@against  # the kind changes faster than the round: what else happens on the machine meets all of them
@pytest.mark.parametrize("round_", range(sized(3, 1)))
def test_many(kind: type[Supervisor], round_: int, table: Table) -> None:
    with kind() as one:
        one.configure(COUNT)
        seconds, _ = seconds_to_run(one, COUNT)
        one.settle(COUNT)
        table.add(f"{COUNT} engines run, s", kind.name, seconds)
        time.sleep(sized(2, 0))  # caches of the start are dropped, or are there to stay
        pids = one.overhead()
        table.add(f"memory (PSS) with {COUNT} engines, MB", kind.name, pss(pids))
        table.add("processes that supervise them", kind.name, len(pids))
        table.add("processor when idle, % of a core", kind.name, idle_percent(pids, sized(4, 0) + 0.2))
        # From a second of life on none of them takes it for an engine that cannot start.
        times = respawns(one, sized(3, 1), pause=sized(11, 2) / 10, patience=4)
        table.add("kill -9 of an engine to its replacement, ms", kind.name, *times)


def _start(one: Supervisor) -> tuple[Trouble, dict[str, list[int]]]:
    """The engines that make trouble, and whom to strike in the supervisor."""
    trouble = Trouble(one)
    trouble.start("plain", "chatty", "stubborn")
    engines = [*running(trouble.chatty), *running(trouble.plain)]
    who = {
        "supervisor": [one.root],
        "engine's parent": sorted({parent_of(pid) for pid in engines}),
        "output's reader": sorted({one.reader(pid) for pid in engines}),
        "all of them": [one.root, *(pid for pid in one.overhead() if pid != one.root)],
    }
    return trouble, who


@against
def test_stop_and_outages(kind: type[Supervisor], table: Table) -> None:
    with kind() as one:
        trouble, who = _start(one)
        success, left = survivors(trouble)
        report = "" if success else ", and it reports a failure"
        table.add("processes left after a stop, of 2 that ignore SIGTERM", kind.name, f"{left}{report}")
        for part in ("supervisor", "output's reader")[: sized(2, 1)]:
            if part != "supervisor" and who[part] == [one.root]:
                text = SAME
            else:
                text = outage(trouble, who[part], signal.SIGSTOP, OUTAGE).output()
            table.add(f"output, {part} stopped (SIGSTOP)", kind.name, text)
        _killed(trouble, "supervisor", who["supervisor"], table)


@pytest.mark.parametrize("kind", KINDS if FULL else KINDS[:1], ids=lambda kind: kind.name)
@pytest.mark.parametrize("part", ["engine's parent", "output's reader", "all of them"][sized(0, 2) :])
def test_other_deaths(kind: type[Supervisor], part: str, table: Table) -> None:
    with kind() as one:
        trouble, who = _start(one)
        if who[part] == [one.root]:
            for what in ("output", "instances"):
                table.add(f"{what}, {part} killed", kind.name, SAME)
        else:
            _killed(trouble, part, who[part], table)


def _killed(trouble: Trouble, part: str, pids: list[int], table: Table) -> None:
    found = outage(trouble, pids, signal.SIGKILL, OUTAGE)
    table.add(f"output, {part} killed", trouble.supervisor.name, found.output())
    table.add(f"instances, {part} killed", trouble.supervisor.name, str(found.instances))
