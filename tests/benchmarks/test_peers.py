"""The same engines under sagectl and its peers, in turn, on the same machine."""

from __future__ import annotations

import time

import pytest

from tests.benchmarks.lab import Supervisor, Table, parent_of, pss, sized
from tests.benchmarks.machine import Systemd
from tests.benchmarks.measures import (
    Trouble,
    engine_of,
    idle_percent,
    killed,
    outage,
    respawns,
    seconds_to_run,
    stopped,
    survivors,
)
from tests.benchmarks.service_directories import S6, Runit
from tests.benchmarks.supervisors import Circus, Sagectl, Supervisord

KINDS: tuple[type[Supervisor], ...] = (Sagectl, Supervisord, Circus, Runit, S6, Systemd)
against = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
COUNT = sized(200, 10)
OUTAGE = sized(3, 0)


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
        table.add(f"{COUNT} engines run, s", kind.name, seconds)
        time.sleep(sized(3, 0))  # caches of the start are dropped, or are there to stay
        pids = one.overhead()
        table.add(f"memory (PSS) with {COUNT} engines, MB", kind.name, pss(pids))
        table.add("processes that supervise them", kind.name, len(pids))
        table.add("processor when idle, % of a core", kind.name, idle_percent(pids, sized(8, 0) + 0.2))


@against
@pytest.mark.parametrize("round_", range(sized(2, 1)))
def test_respawn(kind: type[Supervisor], round_: int, table: Table) -> None:
    with kind() as one:
        one.configure(1)
        seconds_to_run(one, 1)
        # From a second of life on none of them takes it for an engine that cannot start.
        times = respawns(one, sized(6, 1), pause=1.1, patience=10)
        table.add("kill -9 of an engine to its replacement, ms", kind.name, *times)


@against
def test_stop_and_outages(kind: type[Supervisor], table: Table) -> None:
    with kind() as one:
        trouble = Trouble(one)
        trouble.start("plain", "stubborn", "chatty")
        success, left = survivors(trouble)
        text = f"{left} of 2" if success else f"{left} of 2, reports failure"
        table.add("left after a successful stop", kind.name, text)
        for who, pid in (("supervisor", one.root), ("reader", one.reader(engine_of(trouble.chatty)))):
            found = outage(trouble, *stopped([pid]), OUTAGE + 0.5)
            table.add(f"output, {who} stopped", kind.name, found.output())
        found = outage(trouble, *killed(one, [one.root]), OUTAGE + 0.5)
        table.add("output, supervisor killed and started", kind.name, found.output())
        table.add("instances, supervisor killed and started", kind.name, str(found.instances))
