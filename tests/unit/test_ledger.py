"""The accounts of GPU memory: what is free, and who is charged with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl.core.gpu import Gpu, GpuProcess, GpuReading
from sagectl.core.ledger import (
    Entry,
    Phase,
    accounts,
    assumed_baselines,
    attribute,
    budget_on,
    differences,
    reconcile,
    rooms,
)

GIB = 1 << 30
KEPT = 1 * GIB


def gpu(used=0, index=0, total=24, processes=(), **more):
    listed = None if processes is None else tuple(GpuProcess(pid, _bytes(size)) for pid, size in processes)
    return Gpu(index, f"GPU-{index}", "card", total * GIB, int(used * GIB), processes=listed, **more)


def _bytes(size):
    return None if size is None else int(size * GIB)


def reading(*gpus):
    return GpuReading("simulated", gpus)


def entry(engine="chat", reserved=10, measured=0, phase=Phase.RESIDENT, index=0, kind="llm", group=""):
    return Entry(engine, kind, group, index, int(reserved * GIB), int(measured * GIB), phase)


def account(used, *entries):
    [one] = accounts(reading(gpu(used)), entries, KEPT)
    return one


# --- Accounts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "entries", "foreign", "free"),
    [
        (0, [], 0, 23),
        (3, [], 3, 20),
        # Granted, nothing loaded yet.
        (3, [entry(phase=Phase.RESERVED)], 3, 10),
        # Half loaded: what it uses is neither foreign nor taken twice.
        (8, [entry(measured=5, phase=Phase.LOADING)], 3, 10),
        (13, [entry(measured=10)], 3, 10),
        # More than was reserved counts in full.
        (15, [entry(measured=12)], 3, 8),
        # Paused: what it still holds, not what it had reserved.
        (5, [entry(measured=2, phase=Phase.PAUSED)], 3, 18),
        # Being released: nothing is free before the entry is gone.
        (9, [entry(measured=6, phase=Phase.RELEASING)], 3, 10),
        (3, [entry(measured=0, phase=Phase.RELEASING)], 3, 10),
        (13, [entry(measured=6), entry("embed", 2, 1), entry("old", 4, 3, Phase.PAUSED)], 3, 5),
        # More is promised than there is.
        (23, [entry(measured=3)], 20, -7),
        # The driver's sums lag behind those of its processes.
        (4, [entry(measured=6)], 0, 13),
    ],
)
def test_free_is_what_nobody_holds(used, entries, foreign, free):
    one = account(used, *entries)
    assert (one.foreign, one.free) == (foreign * GIB, free * GIB)
    assert one.overdrawn == max(0, -free * GIB)


def test_every_gpu_has_its_own_account():
    first, second = accounts(reading(gpu(1), gpu(2, index=1)), [entry(index=1), entry("gone", index=7)], KEPT)
    assert (first.entries, first.free) == ((), 22 * GIB)
    assert (second.reserved, second.measured, second.free) == (10 * GIB, 0, 11 * GIB)


def test_an_account_sums_up():
    one = account(
        9, entry(measured=6), entry("old", 4, 2, Phase.PAUSED), entry("embed", 1, 1, kind="embedding")
    )
    assert (one.reserved, one.measured, one.held) == (15 * GIB, 9 * GIB, 13 * GIB)
    assert one.held_by("llm") == 12 * GIB
    assert one.held_by("llm", without="chat") == 2 * GIB


# --- Rooms -----------------------------------------------------------------------------------


def the_room(used, entries, kind="llm", budgets=None, without=""):
    [room] = rooms(accounts(reading(gpu(used)), entries, KEPT), kind, budgets or {}, without)
    return room


@pytest.mark.parametrize(
    ("budgets", "left"),
    [
        ({}, None),
        ({"embedding": GIB}, None),
        ({"llm": 20 * GIB}, 8),
        ({"llm": "75%"}, 6),
        ({"llm": "12.5%"}, 0),
    ],
)
def test_a_budget_leaves_what_its_kind_does_not_hold(budgets, left):
    entries = [entry(measured=12), entry("embed", 3, kind="embedding")]
    assert the_room(12, entries, budgets=budgets).budget_left == (None if left is None else left * GIB)


@pytest.mark.parametrize(("budget", "size"), [(5, 5), ("50%", 12 * GIB), ("0.5%", round(0.12 * GIB))])
def test_a_share_is_one_of_the_total(budget, size):
    assert budget_on(budget, 24 * GIB) == size


def test_a_room_names_who_is_there():
    entries = [entry("chat@1", 4, group="chat"), entry("embed", 4), entry("chat@2", 4, group="chat")]
    room = the_room(0, entries)
    assert (room.free, room.groups, room.tenants) == (11 * GIB, {"chat"}, 3)


def test_an_engine_that_asks_anew_is_not_in_its_own_way():
    entries = [entry("chat@1", 10, 12, group="chat"), entry("embed", 4, 4)]
    room = the_room(18, entries, budgets={"llm": 20 * GIB}, without="chat@1")
    assert (room.free, room.budget_left, room.groups, room.tenants) == (17 * GIB, 16 * GIB, frozenset(), 1)


def test_an_overdrawn_gpu_has_no_room():
    assert the_room(23, [entry(measured=3)]).free == 0
    # What the engine that asks holds goes against the overdraft first.
    assert the_room(23, [entry(measured=3)], without="chat").free == 3 * GIB


# --- By process ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "trees", "used"),
    [
        ([], {"chat": [10]}, {}),
        ([(10, 4), (11, 2), (99, 5)], {"chat": [10, 11, 12], "embed": [20]}, {("chat", 0): 6}),
        ([(10, 4), (20, 1)], {"chat": [10], "embed": [20]}, {("chat", 0): 4, ("embed", 0): 1}),
        # Listed for computing and for graphics.
        ([(10, 4), (10, 4)], {"chat": [10]}, {("chat", 0): 4}),
        # In two trees.
        ([(10, 4)], {"chat": [10], "embed": [10]}, {("chat", 0): 4}),
        (None, {"chat": [10], "embed": []}, {("chat", 0): None, ("embed", 0): None}),
        ([(10, None), (20, 1)], {"chat": [10], "embed": [20]}, {("chat", 0): None, ("embed", 0): None}),
        # What a stranger uses need not be known.
        ([(10, 4), (99, None)], {"chat": [10]}, {("chat", 0): 4}),
    ],
)
def test_use_is_attributed_by_process_tree(processes, trees, used):
    expected = {key: size and size * GIB for key, size in used.items()}
    assert attribute(reading(gpu(20, processes=processes)), trees) == expected


def test_each_gpu_is_attributed_by_itself():
    two = reading(gpu(4, processes=[(10, 4)]), gpu(4, index=1, processes=None))
    assert attribute(two, {"chat": [10]}) == {("chat", 0): 4 * GIB, ("chat", 1): None}


# --- By difference ---------------------------------------------------------------------------

LOADING, TRAINING, RELEASING, PAUSED = Phase.LOADING, Phase.TRAINING, Phase.RELEASING, Phase.PAUSED
BASE = 3
"""GiB that were foreign when each of the engines was granted its memory."""


@pytest.mark.parametrize(
    ("used", "entries", "charged"),
    [
        (3, [entry(phase=LOADING)], [0]),
        (8, [entry(phase=LOADING)], [5]),
        # Over its reservation.
        (15, [entry(phase=LOADING, measured=9)], [12]),
        (15, [entry(phase=TRAINING)], [12]),
        # The neighbour keeps what it had.
        (12, [entry("embed", 5, 4), entry(phase=LOADING)], [4, 5]),
        # Two load: in proportion to what they reserved, never more.
        (9, [entry(phase=LOADING), entry("embed", 5, phase=TRAINING)], [4, 2]),
        (23, [entry(phase=LOADING), entry("embed", 5, phase=TRAINING)], [10, 5]),
        # It frees what it had, and no more.
        (13, [entry(measured=10, phase=RELEASING)], [10]),
        (7, [entry(measured=10, phase=RELEASING)], [4]),
        (3, [entry(measured=10, phase=RELEASING)], [0]),
        (20, [entry(measured=10, phase=RELEASING)], [10]),
        (7, [entry("embed", 5, 4), entry(measured=10, phase=RELEASING)], [4, 0]),
        (5, [entry("old", 10, 2, PAUSED), entry(measured=10, phase=RELEASING)], [2, 0]),
        # It sleeps: what is left of it.
        (5, [entry(measured=10, phase=PAUSED)], [2]),
        (9, [entry("embed", 5, 4), entry(measured=10, phase=PAUSED)], [4, 2]),
        # What is not released yet is not the loading one's.
        (13, [entry("old", 10, 10, RELEASING), entry(phase=LOADING)], [10, 0]),
        # Alone there: growth up to what it reserved; what is beyond may be anybody's.
        (11, [entry(measured=6)], [8]),
        (20, [entry(measured=6)], [10]),
        (7, [entry(measured=6)], [4]),
        # Several that are up: nobody knows whose it is.
        (20, [entry(measured=6), entry("embed", 5, 4)], [6, 4]),
        # But one of them was up before it was ever measured.
        (13, [entry(measured=6), entry("embed", 5)], [6, 4]),
        (20, [entry(measured=6), entry("embed", 5)], [6, 5]),
        # Less than they had: it cannot be.
        (8, [entry(measured=6), entry("embed", 5, 4)], [6, 2]),
        (0, [entry(measured=6), entry("embed", 5, 4)], [0, 0]),
        (9, [entry(phase=Phase.RESERVED)], [0]),
    ],
)
def test_use_is_attributed_by_difference(used, entries, charged):
    baselines = {one.key: BASE * GIB for one in entries}
    found = differences(gpu(used, processes=None), entries, baselines)
    assert [found[one.key] / GIB for one in entries] == charged


def test_of_several_that_load_the_highest_baseline_counts():
    """What was foreign when the later one was granted is nobody's of them."""
    chat, embed = entry(phase=LOADING), entry("embed", 10, phase=LOADING)
    baselines = {chat.key: 3 * GIB, embed.key: 5 * GIB}
    found = differences(gpu(9, processes=None), [chat, embed], baselines)
    assert found == {chat.key: 2 * GIB, embed.key: 2 * GIB}


def test_an_engine_without_a_baseline_keeps_its_figure():
    one = entry(measured=6, phase=LOADING)
    assert differences(gpu(20, processes=None), [one], {}) == {("chat", 0): 6 * GIB}


def test_who_is_down_holds_nothing_of_a_gpu_that_shows_no_processes():
    """A stranger came as it was stopped. Result: what seems not to be released is foreign."""
    down, chat, embed = entry("down", 0, 3, Phase.RESERVED), entry(measured=6), entry("embed", 5, 3)
    baselines = {chat.key: 0, embed.key: 0}
    found = reconcile(reading(gpu(12, processes=None)), [down, chat, embed], {}, baselines)
    assert [one.measured for one in found] == [0, 6 * GIB, 3 * GIB]


def test_adopted_engines_are_taken_to_use_what_they_reserved():
    """A new daemon knows no baselines. Result: foreign is what is used beyond all reservations."""
    chat, embed, next_one = entry(), entry("embed", 5), entry("next", 4, phase=Phase.RESERVED)
    for used, foreign, charged in ((9, 0, (6, 3)), (22, 3, (10, 5))):
        measured = reading(gpu(used, processes=None))
        baselines = assumed_baselines(measured, [chat, embed, next_one])
        assert set(baselines) == {chat.key, embed.key}
        found = reconcile(measured, [chat, embed, next_one], {}, baselines)
        assert [round(one.measured / GIB) for one in found] == [*charged, 0]
        assert round(account(used, *found).foreign / GIB) == foreign + (0 if used == 9 else 4)


def test_a_start_a_pause_and_a_stop_add_up():
    """One engine after the other on a GPU that shows no processes, by what its use is measured to be."""
    chat, embed = entry(phase=LOADING), entry("embed", 4, phase=Phase.RESERVED)
    baselines = {chat.key: 1 * GIB}

    def measure(used, *entries):
        found = reconcile(reading(gpu(used, processes=None)), entries, {}, baselines)
        assert account(used, *found).foreign == 1 * GIB
        return found

    [chat] = measure(9, chat)
    chat = replace(chat, phase=Phase.RESIDENT)
    baselines[embed.key] = 1 * GIB
    chat, embed = measure(12, chat, replace(embed, phase=LOADING))
    assert (chat.measured, embed.measured) == (8 * GIB, 3 * GIB)
    chat, embed = measure(5, replace(chat, phase=PAUSED), replace(embed, phase=Phase.RESIDENT))
    assert (chat.measured, embed.measured) == (1 * GIB, 3 * GIB)
    chat, embed = measure(2, chat, replace(embed, phase=RELEASING))
    assert (chat.measured, embed.measured) == (1 * GIB, 0)


# --- Reconciling -----------------------------------------------------------------------------


def test_reconciling_measures_each_gpu_as_it_can():
    gpus = reading(
        gpu(6, processes=[(10, 5), (99, 1)]),
        gpu(9, index=1, processes=None),
        gpu(4, index=2, processes=(), lost="fell off the bus"),
    )
    entries = [
        entry(),
        entry("embed", 2, 1),
        entry(index=1, phase=LOADING),
        entry(index=2, measured=4),
        entry("far", index=5, measured=3),
    ]
    found = reconcile(gpus, entries, {"chat": [10], "embed": [20]}, {("chat", 1): 2 * GIB})
    assert [one.measured / GIB for one in found] == [5, 0, 7, 4, 3]
    assert found[3] is entries[3]


# --- Whatever the figures are --------------------------------------------------------------------

SIZES = st.integers(0, 30 * GIB)
ENTRIES = st.lists(
    st.builds(
        Entry,
        engine=st.sampled_from("abcdef"),
        kind=st.sampled_from(["llm", "embedding"]),
        group=st.just(""),
        gpu=st.just(0),
        reserved=SIZES,
        measured=SIZES,
        phase=st.sampled_from(Phase),
    ),
    max_size=6,
    unique_by=lambda one: one.engine,
)


@given(used=st.integers(0, 24 * GIB), entries=ENTRIES)
def test_the_parts_are_the_total_and_no_byte_counts_twice(used, entries):
    one = account(used / GIB, *entries)
    assert one.kept_free + one.foreign + one.held + one.free == one.gpu.total
    assert one.foreign >= 0
    # What is used is not free, and what is measured is not foreign.
    assert one.free <= one.gpu.total - one.gpu.used - one.kept_free
    assert one.foreign + one.measured == max(one.gpu.used, one.measured)


@given(used=st.integers(0, 24 * GIB), entries=ENTRIES, kind=st.sampled_from(["llm", "embedding"]))
def test_an_entry_less_never_leaves_less(used, entries, kind):
    for gone in entries:
        rest = [one for one in entries if one is not gone]
        assert account(used / GIB, *rest).free >= account(used / GIB, *entries).free
        before, after = (the_room(used / GIB, some, kind, {kind: "50%"}) for some in (entries, rest))
        assert after.usable >= before.usable


@given(used=st.integers(0, 24 * GIB), entries=ENTRIES, data=st.data())
def test_differences_charge_no_more_than_is_used(used, entries, data):
    here = replace(gpu(processes=None), used=used)
    known = data.draw(st.lists(st.sampled_from(entries), unique=True)) if entries else []
    baselines = {one.key: data.draw(SIZES) for one in known}
    found = differences(here, entries, baselines)
    assert found.keys() == {one.key for one in entries}
    assert all(size >= 0 for size in found.values())
    assert sum(found.values()) <= used
    for one in entries:
        if one.phase in (RELEASING, PAUSED):
            assert found[one.key] <= one.measured


@given(
    listed=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=12),
    trees=st.dictionaries(st.sampled_from("abc"), st.sets(st.integers(0, 12)), max_size=3),
)
def test_attribution_never_exceeds_what_the_processes_use(listed, trees):
    found = attribute(reading(gpu(24, processes=listed)), trees)
    each = {pid: max(size for other, size in listed if other == pid) for pid, _ in listed}
    ours = {pid for pids in trees.values() for pid in pids}
    assert sum(found.values()) == sum(size for pid, size in each.items() if pid in ours) * GIB
