"""Which GPUs an engine gets, or why none. Pure; the figures of an answer are part of it.

What decides, the first first: the order of the layouts; that no other replica of the engine is on a GPU;
NVLink, then a common NUMA node, within a tensor-parallel stage, then between neighbouring stages; the least
room left over, so that large holes stay large; that groups of linked GPUs stay usable as groups; few
neighbours; low indices. Rooms that differ by less than `packing.GRAIN` count as equal. `packing.WORK` says up
to where the choice is the best there is; a place that exists is always found.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sagectl.core.gpu import Gpu
from sagectl.core.packing import FAR, LINKED, NEAR, Board, least_missing, pack
from sagectl.core.sizes import gib


@dataclass(frozen=True, slots=True)
class Need:
    """What one rank needs of its GPU: bytes, or a share of the GPU's total where `share` is set."""

    size: int = 0
    share: float | None = None

    def on(self, total: int) -> int:
        """Bytes on a GPU of this size."""
        return self.size if self.share is None else int(self.share * total)


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay the engine out: a need per rank, the ranks of a pipeline stage being neighbours."""

    needs: tuple[Need, ...]
    tensor_parallel: int = 1
    pipeline_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request. layouts: the one that is liked best first; gpu_ids: exactly these, in rank order.

    group: the engine's replicas are `group@1`, `group@2`: they had better not share a GPU. "" for none.
    """

    name: str
    kind: str
    layouts: tuple[Layout, ...]
    gpu_ids: tuple[int, ...] | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """A GPU as placement sees it.

    free: bytes that nobody holds and that are not left free on purpose.
    budget_left: bytes that the kind may still take there; None without a budget.
    groups: the replica groups that hold memory there.
    tenants: how many engines do.
    """

    gpu: Gpu
    free: int
    budget_left: int | None = None
    groups: frozenset[str] = frozenset()
    tenants: int = 0

    @property
    def usable(self) -> int:
        """Bytes that the request may take."""
        return self.free if self.budget_left is None else min(self.free, self.budget_left)


@dataclass(frozen=True, slots=True)
class Placement:
    """gpu_ids and sizes (bytes) in rank order; layout: the one of the request's that was chosen."""

    gpu_ids: tuple[int, ...]
    sizes: tuple[int, ...]
    layout: Layout
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NoRoom:
    """It does not fit. reason: one sentence without a period; arithmetic: a line per GPU.

    claimed: the GPUs on which the least is missing, for which it waits; empty where memory that comes free
        would not help, since there are too few GPUs or those asked for do not exist or are lost.
    missing: bytes, the total over `claimed`.
    """

    reason: str
    arithmetic: tuple[str, ...] = ()
    claimed: tuple[int, ...] = ()
    missing: int = 0


def place(wanted: Wanted, rooms: Sequence[Room]) -> Placement | NoRoom:
    """The best place for a request on these GPUs, or the figures that speak against it.

    The first layout that fits anywhere wins, unless its tensor parallelism would go over slow links there and
    a later one on as many GPUs does without; if none fits, the answer is about the one that lacks least.
    """
    rooms = sorted(rooms, key=lambda room: room.gpu.index)
    refused: list[tuple[Layout, NoRoom]] = []
    for layout in wanted.layouts:
        answer = _lay_out(wanted, layout, rooms)
        if isinstance(answer, Placement):
            passed = [f"{_called(one)} does not fit: it {no.reason}" for one, no in refused]
            answer = _better_linked(wanted, answer, rooms) or answer
            return replace(answer, reasons=(*answer.reasons, *passed))
        refused.append((layout, answer))
    if not refused:
        return NoRoom("has no layout over GPUs", tuple(_line(wanted, room) for room in rooms))
    # What may fit some day before what never does.
    layout, least = min(refused, key=lambda one: (not one[1].claimed, one[1].missing))
    if len(refused) == 1:
        return least
    return replace(least, reason=f"{least.reason}; of {len(refused)} layouts {_called(layout)} lacks least")


def _better_linked(wanted: Wanted, found: Placement, rooms: Sequence[Room]) -> Placement | None:
    """Another layout on as many GPUs, whose tensor-parallel stages are linked, where this one's are not.

    vLLM's advice for GPUs without NVLink: divide the layers among them rather than each layer, since the
    pipeline sends far less (docs, "Parallelism and scaling").
    """
    gpus = {room.gpu.index: room.gpu for room in rooms}
    if _linked(found, gpus):
        return None
    for layout in wanted.layouts[wanted.layouts.index(found.layout) + 1 :]:
        if len(layout.needs) != len(found.layout.needs):
            continue
        answer = _lay_out(wanted, layout, rooms)
        if isinstance(answer, Placement) and _linked(answer, gpus):
            why = (
                f"{_called(layout)} rather than {_called(found.layout)}: no {found.layout.tensor_parallel} "
                "GPUs with room are linked by NVLink"
            )
            return replace(answer, reasons=(*answer.reasons, why))
    return None


def _linked(placement: Placement, gpus: Mapping[int, Gpu]) -> bool:
    """Every tensor-parallel stage is on GPUs that are all linked with each other."""
    ids, width = placement.gpu_ids, placement.layout.tensor_parallel
    stages = (ids[at : at + width] for at in range(0, len(ids), width))
    pairs = (pair for stage in stages for pair in itertools.combinations(stage, 2))
    return all(_hop(gpus[one], gpus[other]) == LINKED for one, other in pairs)


def _called(layout: Layout) -> str:
    return f"tensor × pipeline parallelism {layout.tensor_parallel} × {layout.pipeline_parallel}"


def _lay_out(wanted: Wanted, layout: Layout, rooms: Sequence[Room]) -> Placement | NoRoom:
    """One layout, placed or not."""
    able = _able(wanted, len(layout.needs), rooms)
    if isinstance(able, str):
        return NoRoom(able, tuple(_line(wanted, room) for room in rooms))
    board = _board(wanted, layout, able)
    chosen: tuple[int, ...] | None
    if wanted.gpu_ids is not None:
        asked = tuple(range(len(able)))
        chosen = asked if all(board.fits(at, at) for at in asked) else None
    else:
        chosen = pack(board, avoid_shared=True) if any(board.shared) else None
        chosen = pack(board) if chosen is None else chosen
    if chosen is None:
        return _refusal(wanted, layout, board, able, rooms)
    return Placement(
        gpu_ids=tuple(able[at].gpu.index for at in chosen),
        sizes=tuple(board.needs[rank][at] for rank, at in enumerate(chosen)),
        layout=layout,
        reasons=_reasons(wanted, board, able, chosen),
    )


def _able(wanted: Wanted, ranks: int, rooms: Sequence[Room]) -> list[Room] | str:
    """The GPUs that come into question, in rank order where they were asked for; or why too few do."""
    if not rooms and ranks:
        return f"needs {_count(ranks)}; this machine has none"
    if wanted.gpu_ids is not None:
        return _asked(wanted.gpu_ids, ranks, rooms)
    lost = [room for room in rooms if room.gpu.lost is not None]
    able = [room for room in rooms if room.gpu.lost is None]
    parts = [room for room in able if room.gpu.parent is not None]
    if ranks > 1:
        # CUDA shows a process one MIG instance at most, and NCCL does not connect instances.
        able = [room for room in able if room.gpu.parent is None]
    if len(able) >= ranks:
        return able
    but = [f"{_names(lost)} {_are(lost)} lost"] if lost else []
    if parts and ranks > 1:
        but.append(f"{_names(parts)} {_are(parts)} MIG, which one engine cannot combine")
    return "; ".join([f"needs {_count(ranks)}; this machine has {len(rooms)}", *but])


def _asked(gpu_ids: tuple[int, ...], ranks: int, rooms: Sequence[Room]) -> list[Room] | str:
    known = {room.gpu.index: room for room in rooms}
    if unknown := [index for index in gpu_ids if index not in known]:
        return f"asks for {_gpus(unknown)}; this machine has {_names(rooms)}"
    if len(set(gpu_ids)) != len(gpu_ids):
        return f"asks for a GPU twice, {_gpus(gpu_ids)}"
    if len(gpu_ids) != ranks:
        return f"asks for {_gpus(gpu_ids)}, but is laid out over {_count(ranks)}"
    able = [known[index] for index in gpu_ids]
    if lost := [room for room in able if room.gpu.lost is not None]:
        return f"asks for {_names(lost)}, which {_are(lost)} lost: {lost[0].gpu.lost}"
    return able


def _board(wanted: Wanted, layout: Layout, able: Sequence[Room]) -> Board:
    ranks = len(layout.needs)
    staged = layout.tensor_parallel * layout.pipeline_parallel == ranks
    return Board(
        needs=tuple(tuple(need.on(room.gpu.total) for room in able) for need in layout.needs),
        usable=tuple(room.usable for room in able),
        free=tuple(room.free for room in able),
        hops=tuple(tuple(_hop(one.gpu, other.gpu) for other in able) for one in able),
        shared=tuple(bool(wanted.group) and wanted.group in room.groups for room in able),
        tenants=tuple(room.tenants for room in able),
        # Ranks that are neither tensor nor pipeline parallel (a trainer's, say) all talk with each other.
        width=max(layout.tensor_parallel if staged else ranks, 1),
    )


def _hop(one: Gpu, other: Gpu) -> int:
    if other.index in one.peers or one.index in other.peers:
        return LINKED
    return NEAR if one.numa_node is not None and one.numa_node == other.numa_node else FAR


# --- In words ------------------------------------------------------------------------------------


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _gpus(indices: Sequence[int]) -> str:
    return f"GPU{'s' * (len(indices) > 1)} {_and([str(index) for index in indices])}"


def _names(rooms: Sequence[Room]) -> str:
    return _gpus([room.gpu.index for room in rooms])


def _are(rooms: Sequence[Room]) -> str:
    return "are" if len(rooms) > 1 else "is"


def _count(ranks: int) -> str:
    return f"{ranks} GPU{'s' * (ranks != 1)}"


def _reasons(wanted: Wanted, board: Board, able: Sequence[Room], chosen: Sequence[int]) -> tuple[str, ...]:
    """Why these, for people."""
    if not chosen:
        return ("takes no GPU",)
    taken, others = set(chosen), [at for at in range(len(able)) if at not in chosen]
    suited = [at for at in others if any(board.fits(rank, at) for rank in range(len(chosen)))]
    gpus = _names([able[at] for at in chosen])
    left = [gib(board.free[at] - board.needs[rank][at]) for rank, at in enumerate(chosen)]
    if wanted.gpu_ids is not None:
        how = f"{gpus} {'was' if len(chosen) == 1 else 'were'} asked for"
    else:
        how = f"fits best on {gpus}" if suited else f"fits on {gpus} only"
    if len(chosen) == 1:
        how += f": {left[0]} stay free there"
    else:
        each = [f"{size} on GPU {able[at].gpu.index}" for size, at in zip(left, chosen, strict=True)]
        how += f": {_and(each)} stay free"
    reasons = [how]
    stages = [chosen[at : at + board.width] for at in range(0, len(chosen), board.width)]
    if len(stages) > 1:
        each = [_names([able[at] for at in stage]) for stage in stages]
        reasons.append(f"pipeline stages are {', then '.join(each)}")
    reasons += [_togetherness(board, able, stage) for stage in stages if len(stage) > 1]
    holders = [able[at] for at in range(len(able)) if board.shared[at] and (at in taken or at in suited)]
    if holders and wanted.gpu_ids is None:
        where = f"{_names(holders)} already {'hold' if len(holders) > 1 else 'holds'} a replica"
        shares = any(board.shared[at] for at in taken)
        reasons.append(f"{where} of {wanted.group}" + ("; there is no room without one" if shares else ""))
    return tuple(reasons)


def _togetherness(board: Board, able: Sequence[Room], stage: Sequence[int]) -> str:
    """How the GPUs of a stage are connected."""
    gpus = _names([able[at] for at in stage])
    hops = {board.hops[one][other] for one in stage for other in stage if one != other}
    if hops == {LINKED}:
        return f"{gpus} are linked by NVLink"
    some = "not all" if LINKED in hops else "not"
    nodes = {able[at].gpu.numa_node for at in stage}
    if len(nodes) == 1 and None not in nodes:
        return f"{gpus} are on NUMA node {nodes.pop()}, {some} linked by NVLink"
    where = "of unknown" if None in nodes else "on several"
    return f"{gpus} are {some} linked by NVLink, and {where} NUMA nodes"


def _refusal(
    wanted: Wanted, layout: Layout, board: Board, able: Sequence[Room], rooms: Sequence[Room]
) -> NoRoom:
    """The figures that speak against a layout for which there are GPUs enough."""
    if wanted.gpu_ids is None:
        chosen, missing = least_missing(board)
    else:
        chosen = tuple(range(len(able)))
        missing = sum(max(0, board.needs[at][at] - board.usable[at]) for at in chosen)
    needed = {able[at].gpu.index: board.needs[rank][at] for rank, at in enumerate(chosen)}
    claimed = [room for room in rooms if room.gpu.index in needed]
    if len(claimed) == 1:
        [need] = layout.needs
        reason = _one_too_small(wanted, need, claimed[0], missing)
    else:
        reason = _several_too_small(wanted, claimed, needed, missing)
    sizes = {room.gpu.index: {needs[at] for needs in board.needs} for at, room in enumerate(able)}
    sizes |= {index: {size} for index, size in needed.items()}
    return NoRoom(
        reason=reason,
        arithmetic=tuple(_line(wanted, room, sizes.get(room.gpu.index, ())) for room in rooms),
        claimed=tuple(sorted(needed)),
        missing=missing,
    )


def _lacking(size: int) -> str:
    return gib(size) if size >= 1 << 20 else "less than 1 MiB"


def _bound(room: Room) -> bool:
    """The budget is what limits it there."""
    return room.budget_left is not None and room.budget_left < room.free


def _one_too_small(wanted: Wanted, need: Need, room: Room, missing: int) -> str:
    index, size = room.gpu.index, gib(need.on(room.gpu.total))
    share = "" if need.share is None else f" ({need.share:.0%} of GPU {index})"
    what = f"the budget of {wanted.kind} leaves" if _bound(room) else "is free"
    # What looks the same to one decimal is told in smaller units.
    little = f", {_lacking(missing)} too little" if gib(room.usable) == size else ""
    if wanted.gpu_ids is not None:
        have = gib(max(room.usable, 0))
        where = f"where {what} {have}" if _bound(room) else f"where {have} {what}"
        return f"needs {size}{share} on GPU {index}, {where}{little}"
    if room.usable <= 0 and _bound(room):
        return f"needs {size}{share} on 1 GPU; nothing is left of the budget of {wanted.kind}"
    if room.usable <= 0:
        return f"needs {size}{share} on 1 GPU; nothing that it may take is free"
    return f"needs {size}{share} on 1 GPU; the most that {what} is {gib(room.usable)}, on GPU {index}{little}"


def _several_too_small(wanted: Wanted, claimed: Sequence[Room], needed: dict[int, int], missing: int) -> str:
    low, high = gib(min(needed.values())), gib(max(needed.values()))
    size = high if low == high else f"{low} to {high}"
    short = [room for room in claimed if needed[room.gpu.index] > room.usable]
    why = f" in the budget of {wanted.kind}" if all(_bound(room) for room in short) else ""
    if wanted.gpu_ids is not None:
        return f"needs {size} on each of {_names(claimed)}; {_lacking(missing)} are missing there{why}"
    each = f"needs {size} on each of {_count(len(claimed))}"
    return f"{each}; the least is missing on {_names(claimed)}: {_lacking(missing)} in total{why}"


def _line(wanted: Wanted, room: Room, sizes: Collection[int] = ()) -> str:
    """A GPU's part of the arithmetic. sizes: what the ranks that may be there need."""
    start, gpu = f"GPU {room.gpu.index}:", room.gpu
    if gpu.lost is not None:
        return f"{start} lost: {gpu.lost}"
    have = f"{gib(room.free)} free" if room.free >= 0 else f"nothing free, {gib(-room.free)} overdrawn"
    if room.budget_left is not None and _bound(room):
        have += f", of which the budget of {wanted.kind} leaves {gib(max(room.budget_left, 0))}"
    if not sizes:
        asked = wanted.gpu_ids is None or gpu.index in wanted.gpu_ids
        return f"{start} {have}{'' if asked else ', not asked for'}"
    missing = min(sizes) - room.usable
    verdict = "fits" if missing <= 0 else f"{_lacking(missing)} missing"
    least = "at least " if len(sizes) > 1 else ""
    return f"{start} {least}{gib(min(sizes))} needed, {have}, {verdict}"
