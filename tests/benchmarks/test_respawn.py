"""How long an engine that was killed is away."""

from __future__ import annotations

from tests.benchmarks.lab import Figures, sized, spread
from tests.benchmarks.measures import respawns
from tests.benchmarks.supervisors import Sagectl


def test_a_killed_engine_is_back(sagectl: Sagectl, figures: Figures) -> None:
    sagectl.configure(1)
    sagectl.start()
    sagectl.engines.began(1)
    sagectl.all_active(1)
    times = respawns(sagectl, sized(200, 5))
    figures.add("kill -9 to respawn, without delay", spread(times), "p50 under 3 ms")
