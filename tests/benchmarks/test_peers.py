"""The same engines under sagectl, supervisord and circus, in turn, on the same machine."""

from __future__ import annotations

import pytest

from tests.benchmarks.lab import Figures, pss, sized, spread
from tests.benchmarks.measures import respawns, seconds_to_run
from tests.benchmarks.supervisors import PEERS, Sagectl


@pytest.mark.parametrize("round_", range(sized(2, 1)))
@pytest.mark.parametrize("kind", [Sagectl, *PEERS], ids=lambda kind: kind.name)
def test_against(kind: type[Sagectl], round_: int, figures: Figures) -> None:
    with kind() as one:
        one.configure(1)
        one.start()
        [(pid, _)] = one.engines.began(1)
        times = respawns(one, pid, sized(20, 1), pause=0.1)
        figures.add(f"{kind.name}: kill -9 to respawn", spread(times, digits=1))
    count = sized(200, 10)
    with kind() as one:
        one.configure(count)
        seconds, _ = seconds_to_run(one, count)
        figures.add(f"{kind.name}: {count} engines running", f"{seconds:.2f} s")
        figures.add(f"{kind.name}: PSS with {count} engines", f"{pss(one.overhead()):.0f} MB")
