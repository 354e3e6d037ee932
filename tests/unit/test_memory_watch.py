"""What is learned of running engines, and what is done about those that take too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sagectl.core.engine import Desired, Engine, EngineSpec, OnExceed, Reservation, State, Sub
from sagectl.core.events import MemoryExceeded, StopRequested
from sagectl.core.sizes import GIB
from sagectl.daemon.exceeding import Exceeding, excess
from sagectl.daemon.footprints import MOST, Footprints

HELD = Reservation((0,), (4 * GIB,), (24 * GIB,), filed_under="m|8192")
ENGINE = Engine(
    "e1", EngineSpec("chat", "llm"), desired=Desired.RUNNING, state=State.ACTIVE, sub=Sub.READY,
    generation=1, went_ready=True, reservation=HELD,
)  # fmt: skip
WIDE = replace(HELD, gpu_ids=(0, 1), sizes=(1, 1), totals=(2, 2))
KEY = "llm|m|8192|tp1pp1"


class Facts:
    """A store's facts."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.writes = 0

    def fact(self, key: str) -> Any:
        return self.facts.get(key)

    def set_fact(self, key: str, value: Any) -> None:
        self.facts[key] = value

    def written(self) -> None:
        self.writes += 1


def learning(facts: Facts) -> Footprints:
    return Footprints(facts, facts.written)  # type: ignore[arg-type]


def test_the_peak_of_a_run_is_kept_and_written_when_it_grows() -> None:
    facts = Facts()
    known = learning(facts)
    for size in (2, 5, 3, 5):
        known.note(ENGINE, {("chat", 0): size * GIB})
    assert known() == {KEY: 5 * GIB}
    assert facts.writes == 2
    assert learning(facts)() == {KEY: 5 * GIB}


def test_the_next_daemon_goes_on_with_the_same_runs_peak() -> None:
    facts = Facts()
    learning(facts).note(ENGINE, {("chat", 0): 5 * GIB})
    learning(facts).note(ENGINE, {("chat", 0): 3 * GIB})
    assert learning(facts)() == {KEY: 5 * GIB}


def test_another_run_replaces_the_peak_also_by_a_lower_one() -> None:
    facts = Facts()
    known = learning(facts)
    known.note(ENGINE, {("chat", 0): 5 * GIB})
    known.note(replace(ENGINE, generation=2), {("chat", 0): 3 * GIB})
    assert known() == {KEY: int(4.5 * GIB)}  # a run that was idle says little: a tenth less each time
    known.note(replace(ENGINE, generation=3), {("chat", 0): 8 * GIB})
    assert known() == {KEY: 8 * GIB}


@pytest.mark.parametrize(
    ("engine", "measured"),
    [
        (replace(ENGINE, went_ready=False), {("chat", 0): GIB}),  # it loads still
        (replace(ENGINE, reservation=None), {("chat", 0): GIB}),
        (replace(ENGINE, reservation=replace(HELD, filed_under="")), {("chat", 0): GIB}),
        (replace(ENGINE, reservation=replace(HELD, elastic=True)), {("chat", 0): GIB}),
        (replace(ENGINE, reservation=WIDE), {("chat", 0): GIB}),  # the other half is not known
        (ENGINE, {}),
        (ENGINE, {("other", 0): GIB}),
    ],
)
def test_what_says_nothing_is_not_learned(engine: Engine, measured: dict[tuple[str, int], int]) -> None:
    facts = Facts()
    known = learning(facts)
    known.note(engine, measured)
    assert (known(), facts.writes) == ({}, 0)


def test_of_an_elastic_engine_what_is_not_cache_is_learned_and_never_less_than_its_weights() -> None:
    held = replace(HELD, elastic=True, kv_cache=2 * GIB, floor=GIB)
    known = learning(Facts())
    known.note(replace(ENGINE, reservation=held), {("chat", 0): 5 * GIB})
    assert known() == {KEY: 3 * GIB}
    small = learning(Facts())
    small.note(replace(ENGINE, reservation=held), {("chat", 0): 2 * GIB})
    assert small() == {KEY: GIB}


def test_footprints_do_not_grow_for_ever() -> None:
    known = learning(Facts())
    for number in range(MOST + 10):
        held = replace(HELD, filed_under=f"m{number}")
        known.note(replace(ENGINE, reservation=held), {("chat", 0): GIB})
    assert len(known()) == MOST
    assert "llm|m9|tp1pp1" not in known()


class Told:
    """Collects what is posted and recorded."""

    def __init__(self) -> None:
        self.posted: list[Any] = []
        self.recorded: list[str] = []

    def post(self, engine_id: str, event: Any) -> None:
        self.posted.append(event)

    def record(self, *words: Any) -> None:
        self.recorded.append(f"{words[2]}: {words[3]}")


def watch(on_exceed: str, sizes: list[float], *, quiet: bool = True) -> Told:
    told = Told()
    engine = replace(ENGINE, spec=replace(ENGINE.spec, on_exceed=OnExceed(on_exceed)))
    exceeding = Exceeding(told, told)  # type: ignore[arg-type]
    for size in sizes:
        exceeding.look([engine], {("chat", 0): int(size * GIB)}, lambda _: quiet)
    return told


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (4.0, ""),
        (4.3, ""),  # 5 % and a little
        (4.4, "holds 4.4 GiB of GPU 0, where 4.0 GiB are reserved for it"),
    ],
)
def test_what_counts_as_too_much(held: float, words: str) -> None:
    assert excess(ENGINE, {("chat", 0): int(held * GIB)}) == words


def test_one_measurement_is_none_and_what_lasts_is_said_once() -> None:
    assert watch("warn", [6, 3, 6, 3]).recorded == []
    told = watch("warn", [6, 6, 6, 7])
    assert told.recorded == ["memory-exceeded: holds 6.0 GiB of GPU 0, where 4.0 GiB are reserved for it"]
    assert told.posted == []


def test_a_restart_and_a_stop_say_why() -> None:
    why = "it holds 6.0 GiB of GPU 0, where 4.0 GiB are reserved for it"
    assert watch("restart", [6, 6]).posted == [MemoryExceeded(1, why)]
    assert watch("stop", [6, 6]).posted == [StopRequested(why=f"stopped: {why}")]


def test_a_planned_stop_waits_for_a_neighbour_that_loads() -> None:
    told = watch("restart", [6, 6, 6], quiet=False)
    assert (len(told.recorded), told.posted) == (1, [])
