"""Who of those that wait for GPU memory gets what now. Pure.

1. By priority, then those that only restart and have their place still, then by age; an engine that is
   granted counts at once for those after it.
2. Nobody overtakes on a GPU: what somebody with more right waits for is not given to anybody else, be it
   enough for him or not. Elsewhere he may start, so that a large engine does not hold up the whole machine.
   Who waits for nothing but his kind's budget holds up his own kind alone.
3. One at a time on a GPU: while an engine loads there, or gives memory back, no other one starts. Where it is
   placed does not depend on that; it waits for its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sagectl.core.engine import Priority
from sagectl.core.placement import NoRoom, Placement, Room, Wanted, place

RANKS = {priority: rank for rank, priority in enumerate(Priority)}
"""Critical first."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One that waits. since: CLOCK_MONOTONIC seconds. keeps: it only restarts, and has its place still."""

    engine_id: str
    wanted: Wanted
    priority: Priority
    since: float
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a request: a place, or why it waits and for whom.

    never: waiting cannot help. room: the figures where there is no room.
    """

    engine_id: str
    placement: Placement | None = None
    reason: str = ""
    names: tuple[str, ...] = ()
    never: bool = False
    room: NoRoom | None = None


def in_order(waiting: Sequence[Waiting]) -> list[Waiting]:
    """Those with more right first."""
    return sorted(waiting, key=lambda one: (RANKS[one.priority], not one.keeps, one.since, one.wanted.name))


def decide(
    waiting: Sequence[Waiting],
    rooms: Callable[[Wanted], Sequence[Room]],
    empty: Callable[[Wanted], Sequence[Room]],
    busy: Mapping[int, str],
) -> list[Verdict]:
    """A verdict for each up to the first that is granted: then the rooms are others.

    Args:
        rooms: the GPUs as they are for this request; empty: as if nothing ran, foreign processes included.
        busy: GPU → who loads or gives back there, with the verb: "chat is loading".
    """
    verdicts: list[Verdict] = []
    claims: dict[tuple[int, str], str] = {}
    turns = dict(busy)
    for one in in_order(waiting):
        wanted = one.wanted
        if isinstance(never := place(wanted, empty(wanted)), NoRoom):
            verdicts.append(Verdict(one.engine_id, reason=never.reason, never=True, room=never))
            continue
        now = rooms(wanted)
        mine = {gpu: name for (gpu, kind), name in claims.items() if kind in ("", wanted.kind)}
        found = place(wanted, [_closed(room, mine) for room in now])
        if isinstance(found, NoRoom):
            wish = place(wanted, now)
            verdict = _waits(one, wish, found, mine)
            # Who only waits behind somebody has no claim to GPUs that he would not choose.
            for gpu in wish.claimed if isinstance(wish, NoRoom) else wish.gpu_ids:
                claims.setdefault((gpu, wanted.kind), wanted.name)
                if not _only_by_budget(wanted, now):
                    claims.setdefault((gpu, ""), wanted.name)
        elif loading := [turns[gpu] for gpu in found.gpu_ids if gpu in turns]:
            names = tuple(dict.fromkeys(text.split(" ", 1)[0] for text in loading))
            where = _on(found.gpu_ids)
            reason = f"waiting for its turn on {where}: {', '.join(dict.fromkeys(loading))}"
            verdict = Verdict(one.engine_id, reason=reason, names=names)
            turns.update((gpu, f"{wanted.name} comes first") for gpu in found.gpu_ids if gpu not in turns)
        else:
            return [*verdicts, Verdict(one.engine_id, placement=found)]
        verdicts.append(verdict)
    return verdicts


def _only_by_budget(wanted: Wanted, rooms: Sequence[Room]) -> bool:
    """It would fit, were it not for its kind's budget: other kinds need not wait for it."""
    return isinstance(place(wanted, [replace(room, budget_left=None) for room in rooms]), Placement)


def _closed(room: Room, claims: Mapping[int, str]) -> Room:
    return replace(room, free=0) if room.gpu.index in claims else room


def _waits(
    one: Waiting, open_to_all: Placement | NoRoom, found: NoRoom, claims: Mapping[int, str]
) -> Verdict:
    if isinstance(open_to_all, NoRoom):
        return Verdict(
            one.engine_id, reason=f"waiting for GPU memory: {open_to_all.reason}", room=open_to_all
        )
    ahead = tuple(dict.fromkeys(claims[gpu] for gpu in open_to_all.gpu_ids if gpu in claims))
    where = _on(open_to_all.gpu_ids)
    reason = f"waiting behind {', '.join(ahead)}, which waits for memory on {where}"
    return Verdict(one.engine_id, reason=reason, names=ahead, room=found)


def _on(gpus: Sequence[int]) -> str:
    return f"GPU {gpus[0]}" if len(gpus) == 1 else f"GPUs {', '.join(map(str, gpus))}"
