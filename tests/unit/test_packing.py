"""The search for the best GPUs, against trying everything; and on machines that are too large for that."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from sagectl.core.gpu import Gpu
from sagectl.core.packing import FAR, GRAIN, LINKED, NEAR, Board, pack, score
from sagectl.core.placement import Layout, Need, NoRoom, Placement, Room, Wanted, place

GIB = 1 << 30


@st.composite
def small_machines(draw):
    count = draw(st.integers(1, 4))
    pairs = list(combinations(range(count), 2))
    linked = draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    rooms = []
    for index in range(count):
        gpu = Gpu(
            index,
            f"GPU-{index}",
            "card",
            draw(st.sampled_from([12, 16])) * GIB,
            0,
            peers=frozenset(a + b - index for a, b in linked if index in (a, b)),
            numa_node=draw(st.sampled_from([None, 0, 1])),
        )
        room = Room(
            gpu,
            free=draw(st.integers(-1, 12)) * GIB,
            budget_left=draw(st.none() | st.integers(0, 12).map(lambda size: size * GIB)),
            groups=draw(st.sampled_from([frozenset(), frozenset({"chat"})])),
            tenants=draw(st.integers(0, 2)),
        )
        rooms.append(room)
    return rooms


def wanted(layout, group=""):
    return Wanted("chat", "llm", (layout,), group=group)


NEEDS = st.integers(0, 8).map(lambda size: Need(size * GIB)) | st.sampled_from(
    [Need(share=0.25), Need(share=0.6)]
)


@st.composite
def small_layouts(draw):
    tp, pp = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (4, 1), (1, 4), (1, 3)]))
    if draw(st.booleans()):
        return Layout((draw(NEEDS),) * (tp * pp), tp, pp)
    return Layout(tuple(draw(NEEDS) for _ in range(tp * pp)), tp, pp)


def everything(layout, rooms):
    """Every way to put the ranks on GPUs of their own that have room."""
    for chosen in permutations(range(len(rooms)), len(layout.needs)):
        pairs = list(zip(layout.needs, (rooms[at] for at in chosen), strict=True))
        if all(need.on(room.gpu.total) <= room.usable for need, room in pairs):
            yield chosen


def merit(layout, rooms, chosen, group):
    """What `place` promises, reckoned anew: smaller is better."""

    def hop(a, b):
        if b in rooms[a].gpu.peers:
            return 0
        node = rooms[a].gpu.numa_node
        return 1 if node is not None and node == rooms[b].gpu.numa_node else 64

    stages = [
        chosen[at : at + layout.tensor_parallel] for at in range(0, len(chosen), layout.tensor_parallel)
    ]
    return (
        any(group and group in rooms[at].groups for at in chosen),
        sum(hop(a, b) for stage in stages for a, b in combinations(stage, 2)),
        sum(hop(a, b) for at in range(len(stages) - 1) for a in stages[at] for b in stages[at + 1]),
        sum(group in rooms[at].groups for at in chosen),
        sum(
            rooms[at].free - need.on(rooms[at].gpu.total)
            for at, need in zip(chosen, layout.needs, strict=True)
        ),
    )


@settings(max_examples=600, deadline=None)
@given(rooms=small_machines(), one=small_layouts(), group=st.sampled_from(["", "chat"]))
def test_nothing_better_is_found_by_trying_everything(rooms, one, group):
    answer = place(wanted(one, group=group), rooms)
    every = list(everything(one, rooms))
    if isinstance(answer, NoRoom):
        assert every == []
        return
    chosen = answer.gpu_ids
    assert chosen in every
    assert answer.sizes == tuple(
        need.on(rooms[at].gpu.total) for at, need in zip(chosen, one.needs, strict=True)
    )
    *links, left = merit(one, rooms, chosen, group)
    *best_links, best_left = min(merit(one, rooms, other, group) for other in every)
    assert links == best_links
    assert left < best_left + GRAIN


@settings(max_examples=300, deadline=None)
@given(rooms=small_machines(), one=small_layouts())
def test_what_is_missing_is_the_least_there_is(rooms, one):
    answer = place(wanted(one), rooms)
    if isinstance(answer, Placement):
        return
    lacking = [
        (
            sum(
                max(0, need.on(rooms[at].gpu.total) - rooms[at].usable)
                for need, at in zip(one.needs, chosen, strict=True)
            ),
            set(chosen),
        )
        for chosen in permutations(range(len(rooms)), len(one.needs))
    ]
    if not lacking:
        assert (answer.claimed, answer.missing) == ((), 0)
        return
    least = min(size for size, _ in lacking)
    assert answer.missing == least > 0
    assert (least, set(answer.claimed)) in lacking


def board_of(gpus, width, stages, seed):
    """Figures for the search alone, on more GPUs; the ranks of a stage need the same."""
    chance = random.Random(seed)
    hops = [[0] * gpus for _ in range(gpus)]
    for a, b in combinations(range(gpus), 2):
        hops[a][b] = hops[b][a] = chance.choice([LINKED, NEAR, FAR])
    free = tuple(chance.randrange(12) * GIB for _ in range(gpus))
    sizes = [chance.choice([1, 1, 2]) * GIB for _ in range(stages)]
    return Board(
        needs=tuple((size,) * gpus for size in sizes for _ in range(width)),
        usable=free,
        free=free,
        hops=tuple(map(tuple, hops)),
        shared=(False,) * gpus,
        tenants=(0,) * gpus,
        width=width,
    )


SEEDS = st.integers(0, 2**32)


def best_score(board):
    ranks = range(len(board.needs))
    fits = (
        chosen
        for chosen in permutations(range(len(board.free)), len(ranks))
        if all(board.fits(rank, gpu) for rank, gpu in enumerate(chosen))
    )
    return min((score(board, chosen) for chosen in fits), default=None)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([(1, 1), (2, 1), (3, 1), (2, 2), (1, 4), (3, 2), (1, 6), (6, 1)]), SEEDS)
def test_the_search_is_exact_on_six_gpus(shape, seed):
    board = board_of(6, *shape, seed)
    found = pack(board)
    assert (None if found is None else score(board, found)) == best_score(board)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([(8, 1), (8, 7), (4, 4), (1, 60), (1, 16), (32, 1)]), SEEDS)
def test_a_large_machine_gets_a_place_if_there_is_one(shape, seed):
    """There is one if the largest needs fit the largest rooms."""
    board = board_of(64, *shape, seed)
    needs = sorted((needs[0] for needs in board.needs), reverse=True)
    rooms = sorted(board.usable, reverse=True)
    found = pack(board)
    assert (found is not None) == all(need <= room for need, room in zip(needs, rooms, strict=False))
    if found is not None:
        assert len(set(found)) == len(needs)
        assert all(board.fits(rank, gpu) for rank, gpu in enumerate(found))


def test_groups_of_linked_gpus_are_found_on_a_large_machine():
    """Eight groups of eight; in each but one there is a GPU that is full."""
    board = board_of(64, 8, 1, 0)
    hops = tuple(tuple(LINKED if a // 8 == b // 8 else FAR for b in range(64)) for a in range(64))
    free = tuple(0 if gpu % 9 == 0 and gpu != 45 else 24 * GIB + gpu for gpu in range(64))
    assert pack(replace(board, hops=hops, free=free, usable=free)) == tuple(range(40, 48))
