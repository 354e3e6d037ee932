"""Who of those that wait gets GPU memory, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sagectl.core.engine import Priority
from sagectl.core.gpu import Gpu
from sagectl.core.placement import Layout, Need, Room, Wanted
from sagectl.core.queueing import Verdict, Waiting, decide, in_order
from sagectl.core.sizes import GIB

TOTAL = 24


def waiting(
    name: str, size: int, priority: str = "normal", since: float = 0.0, gpus: tuple[int, ...] | None = None
) -> Waiting:
    count = len(gpus) if gpus else 1
    wanted = Wanted(name, "llm", (Layout((Need(size * GIB),) * count),), gpus)
    return Waiting(f"id-{name}", wanted, Priority(priority), since)


def machine(*free: int) -> list[Room]:
    """GPUs of 24 GiB with so many of them free."""
    return [
        Room(Gpu(index, f"u{index}", "g", TOTAL * GIB, 0), size * GIB, tenants=int(size < TOTAL))
        for index, size in enumerate(free)
    ]


def verdicts(free: Sequence[int], *ones: Waiting, busy: dict[int, str] | None = None) -> dict[str, Verdict]:
    found = decide(ones, lambda _: machine(*free), lambda _: machine(*[TOTAL] * len(free)), busy or {})
    return {one.engine_id.removeprefix("id-"): one for one in found}


def test_priority_comes_before_age_and_age_before_the_name() -> None:
    ones = [
        waiting("b", 1, since=1.0),
        waiting("a", 1, since=1.0),
        waiting("old", 1, since=0.5),
        waiting("low", 1, "background", 0.0),
        waiting("high", 1, "high", 9.0),
    ]
    assert [one.wanted.name for one in in_order(ones)] == ["high", "old", "a", "b", "low"]


def test_the_first_that_fits_is_granted_and_then_the_rooms_are_asked_again() -> None:
    found = verdicts([10], waiting("a", 5), waiting("b", 5, since=1))
    assert list(found) == ["a"]
    assert found["a"].placement is not None
    assert found["a"].placement.gpu_ids == (0,)


def test_nobody_overtakes_on_the_gpu_that_another_waits_for() -> None:
    found = verdicts([10, 4], waiting("large", 20), waiting("small", 8, since=1), waiting("tiny", 3, since=2))
    assert found["large"].reason == (
        "waiting for GPU memory: needs 20.0 GiB on 1 GPU; the most that is free is 10.0 GiB, on GPU 0"
    )
    assert found["small"].reason == "waiting behind large, which waits for memory on GPU 0"
    assert found["small"].names == ("large",)
    tiny = found["tiny"].placement
    assert tiny is not None
    assert tiny.gpu_ids == (1,)


def test_who_has_more_right_overtakes() -> None:
    found = verdicts([10], waiting("large", 20), waiting("vital", 8, "critical", 5.0))
    assert found["vital"].placement is not None


def test_one_loads_at_a_time_and_the_place_does_not_depend_on_that() -> None:
    busy = {0: "chat is loading"}
    found = verdicts([10, 24], waiting("a", 5), waiting("b", 20, since=1), busy=busy)
    assert found["a"].reason == "waiting for its turn on GPU 0: chat is loading"
    assert found["a"].names == ("chat",)
    assert found["b"].placement is not None
    assert found["b"].placement.gpu_ids == (1,)


def test_who_waits_for_a_turn_is_waited_for() -> None:
    busy = {0: "chat is giving memory back"}
    pair = waiting("pair", 5, gpus=(0, 1))
    found = verdicts([10, 10], pair, waiting("b", 5, since=1, gpus=(1,)), busy=busy)
    assert found["b"].reason == "waiting for its turn on GPU 1: pair comes first"
    assert found["b"].names == ("pair",)


def test_what_can_never_fit_waits_for_nobody_and_holds_nobody_up() -> None:
    found = verdicts([10], waiting("huge", 30, "critical"), waiting("a", 5))
    assert found["huge"].never
    assert "30.0 GiB" in found["huge"].reason
    assert found["a"].placement is not None


def test_several_gpus_are_claimed_together() -> None:
    found = verdicts([4, 4, 20], waiting("pair", 8, gpus=(0, 1)), waiting("a", 2, since=1))
    assert "needs 8.0 GiB" in found["pair"].reason
    placed = found["a"].placement
    assert placed is not None
    assert placed.gpu_ids == (2,)


def test_who_restarts_has_its_place_before_older_ones_of_its_priority() -> None:
    again = replace(waiting("again", 20, since=9), keeps=True)
    ones = [waiting("old", 20), again, waiting("high", 20, "high", since=10)]
    assert [one.wanted.name for one in in_order(ones)] == ["high", "again", "old"]


def test_who_waits_for_his_kinds_budget_holds_up_no_other_kind() -> None:
    """The llm budget is used up; an embedding engine comes later, and so does another llm engine."""
    first, second = waiting("first", 6), waiting("second", 2, since=2.0)
    other = replace(
        waiting("other", 4, since=1.0), wanted=replace(waiting("other", 4).wanted, kind="embedding")
    )

    def rooms(wanted: Wanted) -> list[Room]:
        left = 3 * GIB if wanted.kind == "llm" else None
        return [replace(room, budget_left=left) for room in machine(20)]

    found = decide([first, other, second], rooms, lambda _: machine(TOTAL), {})
    by_name = {one.engine_id.removeprefix("id-"): one for one in found}
    assert "budget of llm" in by_name["first"].reason
    assert by_name["other"].placement is not None
    found = decide([first, second], rooms, lambda _: machine(TOTAL), {})
    assert found[1].reason == "waiting behind first, which waits for memory on GPU 0"
