"""Where engines go and why, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sagectl.core.gpu import Gpu
from sagectl.core.placement import Layout, Need, NoRoom, Placement, Room, Wanted, place

GIB = 1 << 30


def machine(*free, total=24, links=(), nodes=None, **rooms):
    """Rooms by their free GiB; links: groups of GPUs that NVLink connects; nodes: of each GPU."""
    result = []
    for index, size in enumerate(free):
        peers = frozenset().union(*(set(group) - {index} for group in links if index in group))
        node = nodes[index] if nodes else 0
        gpu = Gpu(index, f"GPU-{index}", "card", total * GIB, 0, peers=peers, numa_node=node)
        result.append(Room(gpu, int(size * GIB), **rooms))
    return result


def lost(room, why="fell off the bus"):
    return replace(room, gpu=replace(room.gpu, lost=why))


def layout(*sizes, tp=1, pp=1):
    needs = [size if isinstance(size, Need) else Need(int(size * GIB)) for size in sizes]
    return Layout(tuple(needs), tp, pp)


def tensor(size, tp):
    return layout(*[size] * tp, tp=tp)


def wanted(*layouts, **more):
    return Wanted("chat", "llm", layouts, **more)


def ids(rooms, *layouts, **more):
    answer = place(wanted(*layouts, **more), rooms)
    assert isinstance(answer, Placement), answer
    return answer.gpu_ids


def refusal(rooms, *layouts, **more):
    answer = place(wanted(*layouts, **more), rooms)
    assert isinstance(answer, NoRoom), answer
    return answer


PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7)]
QUADS = [(0, 1, 2, 3), (4, 5, 6, 7)]
NODES = [0, 0, 0, 0, 1, 1, 1, 1]


# --- One GPU ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rooms", "size", "gpu"),
    [
        (machine(24, 24), 8, 0),
        (machine(24, 12, 9), 8, 2),
        (machine(24, 12, 7), 8, 1),
        (machine(8, 24), 8, 0),
        # 3 MiB that the driver holds for itself do not decide, the links do.
        (machine(24, 23.997, links=[(1, 2)]) + machine(0, 0, 23.99, links=[(1, 2)])[2:], 8, 0),
        # The half of a pair whose other half is full.
        (machine(24, 24, 24, 4, links=PAIRS), 20, 2),
    ],
    ids=["lowest", "smallest", "smallest-that-fits", "exact", "unlinked", "broken-pair"],
)
def test_an_engine_goes_where_the_least_room_is_left(rooms, size, gpu):
    assert ids(rooms, layout(size)) == (gpu,)


def test_fewer_neighbours_decide_between_equal_rooms():
    crowded, quiet = machine(10, 10)
    assert ids([replace(crowded, tenants=2), replace(quiet, tenants=1)], layout(4)) == (1,)


def test_a_share_is_one_of_the_card_it_is_on():
    small, large = machine(24)[0], replace(machine(24, 40, total=80)[1])
    answer = place(wanted(layout(Need(share=0.5))), [small, large])
    assert isinstance(answer, Placement)
    assert (answer.gpu_ids, answer.sizes) == ((1,), (40 * GIB,))
    assert ids([small, large], layout(Need(share=0.6))) == (0,)


def test_replicas_do_not_share_a_gpu_while_another_has_room():
    held, free = machine(10, 24)
    held = replace(held, groups=frozenset({"chat"}))
    answer = place(wanted(layout(8), group="chat"), [held, free])
    assert isinstance(answer, Placement)
    assert answer.gpu_ids == (1,)
    assert answer.reasons == (
        "fits best on GPU 1: 16.0 GiB stay free there",
        "GPU 0 already holds a replica of chat",
    )
    assert ids([held, free], layout(8), group="other") == (0,)
    assert ids([held, free], layout(8)) == (0,)


def test_replicas_share_a_gpu_rather_than_wait():
    held, full = machine(10, 2)
    answer = place(
        wanted(layout(8), group="chat"), [replace(held, groups=frozenset({"chat", "embed"})), full]
    )
    assert isinstance(answer, Placement)
    assert answer.reasons == (
        "fits on GPU 0 only: 2.0 GiB stay free there",
        "GPU 0 already holds a replica of chat; there is no room without one",
    )


def test_budgets_bind():
    rooms = [
        replace(room, budget_left=left * GIB) for room, left in zip(machine(24, 24), (4, 20), strict=True)
    ]
    assert ids(rooms, layout(8)) == (1,)
    assert refusal(rooms, layout(22)).arithmetic == (
        "GPU 0: 22.0 GiB needed, 24.0 GiB free, of which the budget of llm leaves 4.0 GiB, 18.0 GiB missing",
        "GPU 1: 22.0 GiB needed, 24.0 GiB free, of which the budget of llm leaves 20.0 GiB, 2.0 GiB missing",
    )


def test_lost_gpus_are_not_used():
    first, second = machine(10, 24)
    assert ids([lost(first), second], layout(8)) == (1,)


# --- Several GPUs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rooms", "size", "ranks", "gpus"),
    [
        (machine(24, 24, 24, 24, links=[(1, 3)]), 8, 2, (1, 3)),
        # Linked before tight.
        (machine(9, 9, 24, 24, links=[(2, 3)]), 8, 2, (2, 3)),
        (machine(9, 24, 24, 24, 24, 24, 24, 24, links=PAIRS), 8, 2, (0, 1)),
        # The smaller group does, so that the larger stays whole.
        (machine(24, 24, 24, 24, 24, 24, links=[(0, 1, 2, 3), (4, 5)]), 20, 2, (4, 5)),
        # A tighter group before another.
        (machine(*[24] * 4, *[20] * 4, links=QUADS), 8, 4, (4, 5, 6, 7)),
        # A group with a full member is none.
        (machine(24, 24, 24, 2, 24, 24, 24, 24, links=QUADS), 8, 4, (4, 5, 6, 7)),
        # What the broken group still offers.
        (machine(24, 24, 24, 2, 24, 24, 24, 24, links=QUADS), 20, 2, (0, 1)),
        # No link: one NUMA node.
        (machine(24, 24, 24, 24, nodes=[0, 1, 0, 1]), 8, 2, (0, 2)),
        # Neither.
        (machine(24, 24, nodes=[0, 1]), 8, 2, (0, 1)),
        # Pairs of one node rather than a pair and a stranger from the other.
        (machine(*[24] * 8, links=[(0, 1), (2, 3), (0, 4)], nodes=NODES), 8, 4, (0, 1, 2, 3)),
        (machine(*[24] * 8, links=[range(8)]), 8, 8, tuple(range(8))),
    ],
)
def test_a_tensor_parallel_engine_goes_where_the_links_are(rooms, size, ranks, gpus):
    assert ids(rooms, tensor(size, ranks)) == gpus


@pytest.mark.parametrize(
    ("rooms", "gpus"),
    [
        # Stages in pairs of their own.
        (machine(24, 24, 24, 24, links=[(0, 3), (1, 2)]), (0, 3, 1, 2)),
        # Neighbouring stages in one group, if there is one.
        (machine(*[24] * 8, links=[(0, 1), (2, 3), (4, 5, 6, 7)], nodes=NODES), (4, 5, 6, 7)),
        # And else on one node.
        (machine(24, 24, 2, 2, 24, 24, 24, 24, links=PAIRS, nodes=NODES), (4, 5, 6, 7)),
    ],
)
def test_a_pipeline_has_links_within_its_stages_first(rooms, gpus):
    assert ids(rooms, layout(8, 8, 8, 8, tp=2, pp=2)) == gpus


def test_the_last_stage_may_need_more_than_the_first():
    rooms = machine(24, 9, 24, 9, links=[(0, 2), (1, 3)])
    assert ids(rooms, layout(8, 8, 20, 20, tp=2, pp=2)) == (1, 3, 0, 2)
    assert ids(machine(10, 24), layout(20, 8, tp=2)) == (1, 0)


def test_a_trainers_ranks_are_one_group():
    """Four ranks that are neither tensor nor pipeline parallel."""
    rooms = machine(*[24] * 8, links=[(0, 1, 2), (4, 5, 6, 7)])
    assert ids(rooms, layout(8, 8, 8, 8)) == (4, 5, 6, 7)


def test_mig_instances_take_engines_of_one_rank():
    rooms = machine(10, 10, 24)
    parts = [replace(room, gpu=replace(room.gpu, parent="GPU-x")) for room in rooms[:2]]
    assert ids([*parts, rooms[2]], layout(8)) == (0,)
    assert refusal([*parts, rooms[2]], tensor(8, 2)).reason == (
        "needs 2 GPUs; this machine has 3; GPUs 0 and 1 are MIG, which one engine cannot combine"
    )


def test_replicas_keep_apart_before_they_are_linked():
    rooms = machine(24, 24, 24, 24, links=[(0, 1)])
    rooms[0] = replace(rooms[0], groups=frozenset({"chat"}))
    assert ids(rooms, tensor(8, 2), group="chat") == (2, 3)
    # Where they cannot, the links decide again.
    rooms = machine(24, 24, 24, links=[(0, 1)])
    rooms[:2] = [replace(room, groups=frozenset({"chat"})) for room in rooms[:2]]
    assert ids(rooms, tensor(8, 2), group="chat") == (0, 1)


@pytest.mark.parametrize(
    ("rooms", "reason"),
    [
        (machine(24, 24, links=[(0, 1)]), "GPUs 0 and 1 are linked by NVLink"),
        (machine(24, 24), "GPUs 0 and 1 are on NUMA node 0, not linked by NVLink"),
        (machine(24, 24, nodes=[0, 1]), "GPUs 0 and 1 are not linked by NVLink, and on several NUMA nodes"),
        (
            machine(24, 24, nodes=[None, None]),
            "GPUs 0 and 1 are not linked by NVLink, and of unknown NUMA nodes",
        ),
    ],
)
def test_reasons_name_the_links(rooms, reason):
    answer = place(wanted(tensor(8, 2)), rooms)
    assert isinstance(answer, Placement)
    assert answer.reasons == (
        "fits on GPUs 0 and 1 only: 16.0 GiB on GPU 0 and 16.0 GiB on GPU 1 stay free",
        reason,
    )


def test_reasons_name_the_stages():
    answer = place(wanted(layout(8, 8, 8, 8, tp=2, pp=2)), machine(*[24] * 4, links=[(0, 1), (1, 2), (2, 3)]))
    assert isinstance(answer, Placement)
    assert answer.reasons[1:] == (
        "pipeline stages are GPUs 0 and 1, then GPUs 2 and 3",
        "GPUs 0 and 1 are linked by NVLink",
        "GPUs 2 and 3 are linked by NVLink",
    )


# --- Layouts, and GPUs that were asked for ------------------------------------------------------


def test_the_first_layout_that_fits_wins():
    liked, other = tensor(20, 2), tensor(10, 4)
    answer = place(wanted(liked, other), machine(12, 12, 12, 24))
    assert isinstance(answer, Placement)
    assert answer.layout is other
    assert answer.reasons[-1] == (
        "tensor × pipeline parallelism 2 × 1 does not fit: it needs 20.0 GiB on each of 2 GPUs; "
        "the least is missing on GPUs 0 and 3: 8.0 GiB in total"
    )
    answer = place(wanted(liked, other), machine(12, 24, 12, 24))
    assert isinstance(answer, Placement)
    assert answer.layout is liked


def test_a_refusal_is_about_the_layout_that_lacks_least():
    no = refusal(machine(6, 6, 6), tensor(20, 2), tensor(8, 3), tensor(5, 4))
    assert no.reason == (
        "needs 8.0 GiB on each of 3 GPUs; the least is missing on GPUs 0, 1 and 2: 6.0 GiB in total; "
        "of 3 layouts tensor × pipeline parallelism 3 × 1 lacks least"
    )
    assert (no.claimed, no.missing) == ((0, 1, 2), 6 * GIB)


def test_gpus_that_were_asked_for_are_taken_in_that_order():
    rooms = machine(24, 24, 24, 24, links=[(0, 1)])
    answer = place(wanted(layout(20, 8, tp=2), gpu_ids=(3, 0)), rooms)
    assert isinstance(answer, Placement)
    assert (answer.gpu_ids, answer.sizes) == ((3, 0), (20 * GIB, 8 * GIB))
    assert answer.reasons[0] == (
        "GPUs 3 and 0 were asked for: 4.0 GiB on GPU 3 and 16.0 GiB on GPU 0 stay free"
    )
    # A layout over another number of GPUs does not apply.
    assert ids(rooms, tensor(8, 4), tensor(8, 2), gpu_ids=(1, 2)) == (1, 2)


# --- Refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rooms", "one", "more", "reason", "claimed", "missing"),
    [
        (
            machine(3, 12.3),
            layout(20),
            {},
            "needs 20.0 GiB on 1 GPU; the most that is free is 12.3 GiB, on GPU 1",
            (1,),
            20 * GIB - int(12.3 * GIB),
        ),
        (machine(5, 5), layout(8), {}, "the most that is free is 5.0 GiB, on GPU 0", (0,), 3 * GIB),
        (
            machine(0, 0),
            layout(8),
            {},
            "needs 8.0 GiB on 1 GPU; nothing that it may take is free",
            (0,),
            8 * GIB,
        ),
        (machine(-2), layout(8), {}, "nothing that it may take is free", (0,), 10 * GIB),
        (
            machine(24, 24, budget_left=int(12.3 * GIB)),
            layout(20),
            {},
            "the most that the budget of llm leaves is 12.3 GiB, on GPU 0",
            (0,),
            20 * GIB - int(12.3 * GIB),
        ),
        (
            machine(20 - 1 / 64),
            layout(20),
            {},
            "the most that is free is 20.0 GiB, on GPU 0, 16 MiB too little",
            (0,),
            16 << 20,
        ),
        (
            machine(5),
            layout(Need(share=0.5)),
            {},
            "needs 12.0 GiB (50% of GPU 0) on 1 GPU; the most that is free is 5.0 GiB, on GPU 0",
            (0,),
            7 * GIB,
        ),
        (
            machine(24, 5),
            layout(8),
            {"gpu_ids": (1,)},
            "needs 8.0 GiB on GPU 1, where 5.0 GiB is free",
            (1,),
            3 * GIB,
        ),
        (
            machine(24, 24, budget_left=5 * GIB),
            layout(8),
            {"gpu_ids": (1,)},
            "needs 8.0 GiB on GPU 1, where the budget of llm leaves 5.0 GiB",
            (1,),
            3 * GIB,
        ),
        (
            machine(5, 10, 7),
            tensor(9, 2),
            {},
            "needs 9.0 GiB on each of 2 GPUs; the least is missing on GPUs 1 and 2: 2.0 GiB in total",
            (1, 2),
            2 * GIB,
        ),
        (
            machine(5, 10, 7, budget_left=4 * GIB),
            tensor(9, 2),
            {},
            "on GPUs 0 and 1: 10.0 GiB in total in the budget of llm",
            (0, 1),
            10 * GIB,
        ),
        (
            machine(5, 10, 7),
            layout(12, 6, tp=2),
            {},
            "needs 6.0 GiB to 12.0 GiB on each of 2 GPUs; the least is missing on GPUs 1 and 2: 2.0 GiB",
            (1, 2),
            2 * GIB,
        ),
        (
            machine(5, 10, 7),
            tensor(9, 2),
            {"gpu_ids": (2, 0)},
            "needs 9.0 GiB on each of GPUs 0 and 2; 6.0 GiB are missing there",
            (0, 2),
            6 * GIB,
        ),
        ([], layout(8), {}, "needs 1 GPU; this machine has none", (), 0),
        (machine(24), tensor(8, 2), {}, "needs 2 GPUs; this machine has 1", (), 0),
        (
            [*machine(24), lost(machine(0, 24)[1])],
            tensor(8, 2),
            {},
            "needs 2 GPUs; this machine has 2; GPU 1 is lost",
            (),
            0,
        ),
        (
            [lost(machine(24)[0])],
            layout(8),
            {"gpu_ids": (0,)},
            "asks for GPU 0, which is lost: fell off the bus",
            (),
            0,
        ),
        (
            machine(24, 24),
            tensor(8, 2),
            {"gpu_ids": (1, 5)},
            "asks for GPU 5; this machine has GPUs 0 and 1",
            (),
            0,
        ),
        (
            machine(24, 24),
            tensor(8, 2),
            {"gpu_ids": (1, 1)},
            "asks for a GPU twice, GPUs 1 and 1",
            (),
            0,
        ),
        (
            machine(24, 24),
            tensor(8, 4),
            {"gpu_ids": (0, 1)},
            "asks for GPUs 0 and 1, but is laid out over 4 GPUs",
            (),
            0,
        ),
    ],
)
def test_a_refusal_has_the_figures(rooms, one, more, reason, claimed, missing):
    no = refusal(rooms, one, **more)
    assert no.reason.endswith(reason) or no.reason.startswith(reason)
    assert (no.claimed, no.missing) == (claimed, missing)
    assert len(no.arithmetic) == len(rooms)


def test_the_arithmetic_has_a_line_for_each_gpu():
    rooms = [*machine(12.3, 24, -2, 6), lost(machine(0, 0, 0, 0, 24)[4])]
    assert refusal(rooms, layout(20, 20, 8, tp=3)).arithmetic == (
        "GPU 0: 20.0 GiB needed, 12.3 GiB free, 7.7 GiB missing",
        "GPU 1: 20.0 GiB needed, 24.0 GiB free, fits",
        "GPU 2: at least 8.0 GiB needed, nothing free, 2.0 GiB overdrawn, 10.0 GiB missing",
        "GPU 3: 8.0 GiB needed, 6.0 GiB free, 2.0 GiB missing",
        "GPU 4: lost: fell off the bus",
    )
    assert refusal(rooms[:2], layout(20), gpu_ids=(0,)).arithmetic[1] == "GPU 1: 24.0 GiB free, not asked for"


def test_without_a_layout_there_is_no_place():
    assert refusal(machine(24)).reason == "has no layout over GPUs"


# --- Tensor or pipeline parallelism --------------------------------------------------------------


def two_ways() -> Wanted:
    """Two GPUs, each layer on both, or half of the layers on each."""
    needs = (Need(8 * GIB),) * 2
    return Wanted("chat", "llm", (Layout(needs, 2, 1), Layout(needs, 1, 2)))


def a_machine(links: tuple[tuple[int, ...], ...], *free: int) -> list[Room]:
    found = []
    for index, size in enumerate(free):
        peers = {peer for group in links if index in group for peer in group} - {index}
        gpu = Gpu(index, f"u{index}", "g", 24 * GIB, 0, peers=frozenset(peers))
        found.append(Room(gpu, size * GIB))
    return found


@pytest.mark.parametrize(
    ("links", "free", "tensor", "gpu_ids"),
    [
        (((0, 1),), (20, 20), 2, {0, 1}),
        ((), (20, 20), 1, {0, 1}),  # no NVLink: the pipeline sends less
        (((0, 1),), (4, 20, 20), 1, {1, 2}),  # the linked ones have no room
        (((0, 1), (2, 3)), (4, 20, 20, 20), 2, {2, 3}),
    ],
)
def test_layers_are_divided_where_gpus_are_linked(
    links: tuple[tuple[int, ...], ...], free: tuple[int, ...], tensor: int, gpu_ids: set[int]
) -> None:
    found = place(two_ways(), a_machine(links, *free))
    assert isinstance(found, Placement)
    assert (found.layout.tensor_parallel, set(found.gpu_ids)) == (tensor, gpu_ids)
    told = any("rather than tensor × pipeline parallelism 2 × 1" in reason for reason in found.reasons)
    assert told == (tensor == 1)


def test_a_layout_that_the_user_chose_is_kept_without_links() -> None:
    wanted = replace(two_ways(), layouts=two_ways().layouts[:1])
    found = place(wanted, a_machine((), 20, 20))
    assert isinstance(found, Placement)
    assert found.layout.tensor_parallel == 2
