"""What several unit tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sagectl.core.engine import EngineSpec, RestartPolicy, RestartWhen
from sagectl.core.events import StartRequested, StopRequested
from sagectl.plugin import Diagnosis, ExitStatus, Mode, Refusal
from sagectl.testing import Behaviour, Life, phase

SPEC = EngineSpec(name="chat", kind="exec", port=8001)
NEVER = replace(SPEC, restart=RestartPolicy(policy=RestartWhen.NO))
JOB = replace(SPEC, mode=Mode.RUN)

LifeIn = Callable[[str], Life]


def _fresh(where: str) -> Life:
    return Life(SPEC)


def _queued(where: str) -> Life:
    life = Life(replace(SPEC, depends_on=("embed",)), Behaviour(dependencies_after=None))
    life.tell(StartRequested())
    return life


def _preflight(where: str) -> Life:
    life = Life(SPEC)
    life.tell(StartRequested())
    return life


def _launching(where: str) -> Life:
    life = _preflight(where)
    life.until("activating (starting)")
    return life


def _starting(where: str) -> Life:
    life = Life(SPEC, Behaviour(ready_after=None))
    life.tell(StartRequested())
    life.advance(0.0)
    return life


def _ready(where: str, behaviour: Behaviour | None = None) -> Life:
    life = Life(SPEC, behaviour or Behaviour())
    life.tell(StartRequested())
    life.until("active (ready)")
    return life


def _unready(where: str) -> Life:
    life = _ready(where, Behaviour(serves=False))
    life.until("active (unready)")
    return life


def _running(where: str) -> Life:
    life = Life(JOB)
    life.tell(StartRequested())
    life.until("active (running)")
    return life


def _completed(where: str) -> Life:
    life = Life(JOB, Behaviour(exits_after=5.0, exit=ExitStatus(code=0)))
    life.tell(StartRequested())
    life.until("inactive (completed)")
    return life


def _backoff(where: str) -> Life:
    life = _ready(where)
    life.world.crash()
    life.until(where)
    return life


def _draining(where: str) -> Life:
    life = _ready(where, Behaviour(drains_after=None))
    life.tell(StopRequested())
    return life


def _stopping(where: str) -> Life:
    life = _ready(where, Behaviour(stops_after=15.0))
    life.tell(StopRequested(drain=0))
    return life


def _stopping_unhealthy(where: str) -> Life:
    life = _ready(where, Behaviour(lives=False, stops_after=15.0))
    life.until("deactivating (stopping)")
    return life


def _releasing(where: str) -> Life:
    life = _ready(where, Behaviour(children=2, outlived=True, kills_after=3.0))
    life.tell(StopRequested(drain=0))
    life.until(where)
    return life


def _releasing_crashed(where: str) -> Life:
    life = _ready(where, Behaviour(children=2, outlived=True, kills_after=3.0))
    life.world.crash()
    life.until("deactivating (releasing)")
    return life


def _stopped(where: str) -> Life:
    life = _ready(where)
    life.tell(StopRequested())
    life.until(where)
    return life


def _failed(where: str) -> Life:
    life = Life(NEVER, Behaviour(exits_after=0.5))
    life.tell(StartRequested())
    life.until(where)
    return life


def _limited(where: str) -> Life:
    life = Life(SPEC, Behaviour(exits_after=0.5))
    life.tell(StartRequested())
    life.until(where)
    return life


def _hopeless(where: str) -> Life:
    life = Life(
        SPEC, Behaviour(exits_after=0.5, diagnosis=Diagnosis("no such flag", "fix it", retryable=False))
    )
    life.tell(StartRequested())
    life.until("failed (exit-code)")
    return life


def _refused(where: str) -> Life:
    life = Life(SPEC, Behaviour(refusal=Refusal("no such model", "create it")))
    life.tell(StartRequested())
    life.until(where)
    return life


PLACES: dict[str, Callable[[str], Life]] = {
    "inactive (dead)": _fresh,
    "inactive (stopped)": _stopped,
    "inactive (completed)": _completed,
    "activating (queued)": _queued,
    "activating (preflight)": _preflight,
    "activating (starting), launching": _launching,
    "activating (starting)": _starting,
    "activating (backoff)": _backoff,
    "active (ready)": _ready,
    "active (unready)": _unready,
    "active (running)": _running,
    "deactivating (draining)": _draining,
    "deactivating (stopping)": _stopping,
    "deactivating (stopping), unhealthy": _stopping_unhealthy,
    "deactivating (releasing)": _releasing,
    "deactivating (releasing), crashed": _releasing_crashed,
    "failed (exit-code)": _failed,
    "failed (exit-code), hopeless": _hopeless,
    "failed (start-limit)": _limited,
    "failed (preflight)": _refused,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `anywhere` runs once for every place in an engine's life."""
    if "anywhere" in metafunc.fixturenames:
        metafunc.parametrize("anywhere", list(PLACES))


@pytest.fixture
def life_in() -> LifeIn:
    """An engine at a place of `PLACES`, as the reducer itself brought it there."""

    def make(where: str) -> Life:
        life = PLACES[where](where)
        assert phase(life.engine) == where.partition(",")[0]
        return life

    return make
