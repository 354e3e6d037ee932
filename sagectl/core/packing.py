"""Which of some GPUs the ranks of one layout take: the search behind `placement`, on bare figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import or_

GRAIN = 256 << 20
"""Bytes. Rooms that differ by less count as equal: what a driver holds for itself differs from GPU to GPU."""

WORK = 14_000
"""How many single choices a search looks at before it takes the best that it has found: about 0.1 s at most.

Up to 6 GPUs there are fewer, so that the search is exact there; on 8 it hardly ever ends early. Whether there
is a fit at all is exact at any size.
"""

LINKED, NEAR, FAR = 0, 1, 64
"""Between two GPUs: NVLink; none, but one NUMA node; neither.

No number of near pairs in a stage of up to 64 ranks outweighs having to leave the node: whoever does has at
least ranks − 1 far pairs, and there are ranks × (ranks − 1) / 2 pairs in all.
"""


@dataclass(frozen=True, slots=True)
class Board:
    """Ranks and GPUs by position, sizes in bytes.

    needs: of each rank, on each GPU. usable: what may be taken there. free: what nobody holds there.
    hops: LINKED, NEAR or FAR, between each two. shared: another replica is there. width: ranks per stage.
    """

    needs: tuple[tuple[int, ...], ...]
    usable: tuple[int, ...]
    free: tuple[int, ...]
    hops: tuple[tuple[int, ...], ...]
    shared: tuple[bool, ...]
    tenants: tuple[int, ...]
    width: int

    def fits(self, rank: int, gpu: int) -> bool:
        """There is room for this rank on this GPU."""
        return self.needs[rank][gpu] <= self.usable[gpu]


def _grains(size: int) -> int:
    """Rounded, so that sizes just below and just above a whole GiB are equal."""
    return (size + GRAIN // 2) // GRAIN


Score = tuple[int, int, int, int, int, int]
"""What is better when smaller, in this order: hops within stages, hops between neighbouring stages, GPUs
shared with another replica, room left (in grains), linked room lost to others (in grains), other tenants."""


def score(board: Board, chosen: Sequence[int]) -> Score:
    """How good it is to put the ranks on these GPUs, in rank order."""
    stages = [chosen[at : at + board.width] for at in range(0, len(chosen), board.width)]
    within = sum(board.hops[a][b] for stage in stages for at, a in enumerate(stage) for b in stage[:at])
    between = sum(board.hops[a][b] for one, other in pairwise(stages) for a in one for b in other)
    left = sum(board.free[gpu] - board.needs[rank][gpu] for rank, gpu in enumerate(chosen))
    return (
        within,
        between,
        sum(board.shared[gpu] for gpu in chosen),
        _grains(left),
        _grains(_linked_room_lost(board, chosen)),
        sum(board.tenants[gpu] for gpu in chosen),
    )


def _linked_room_lost(board: Board, chosen: Sequence[int]) -> int:
    """What engines over several GPUs could take on a chosen GPU and one linked with it, and no longer can."""
    lost, taken = 0, set(chosen)
    for rank, gpu in enumerate(chosen):
        before = board.free[gpu]
        after = before - board.needs[rank][gpu]
        for other, hop in enumerate(board.hops[gpu]):
            if hop == LINKED and other not in taken:
                room = board.free[other]
                lost += min(before, room) - min(after, room)
    return lost


def pack(board: Board, avoid_shared: bool = False) -> tuple[int, ...] | None:
    """The best GPUs for the ranks, in rank order; None where they do not fit. Ties go to lower positions."""
    return _Search(board, avoid_shared).run()


@dataclass(frozen=True, slots=True)
class _Spent:
    """The sums over the ranks that are placed."""

    within: int = 0
    between: int = 0
    shared: int = 0
    free: int = 0
    tenants: int = 0


class _Search:
    """Depth first, rank by rank, best bound first. Sets of GPUs are bit masks.

    Ranks of one stage that need the same are placed in ascending order, since their order means nothing.
    """

    def __init__(self, board: Board, avoid_shared: bool) -> None:
        self.board = board
        self.ranks = len(board.needs)
        gpus = range(len(board.free))
        self.fits = [
            sum(1 << g for g in gpus if board.fits(r, g) and not (avoid_shared and board.shared[g]))
            for r in range(self.ranks)
        ]
        self.uniform = len(set(self.fits)) <= 1
        self.linked = [sum(1 << o for o in gpus if o != g and board.hops[g][o] == LINKED) for g in gpus]
        self.by_room = sorted(gpus, key=lambda g: board.free[g])
        # The most that the ranks may need: exact where needs do not depend on the card.
        self.most = sum(max(needs, default=0) for needs in board.needs)
        self.run_end = [self._end_of_run(rank) for rank in range(self.ranks)]
        self.chosen: list[int] = []
        self.unused = (1 << len(board.free)) - 1
        self.best: tuple[int, ...] | None = None
        self.best_score: Score | None = None
        self.work = 0

    def _end_of_run(self, rank: int) -> int:
        """The first rank after this one that is of another stage or needs something else."""
        board, end = self.board, rank + 1
        while end < self.ranks and end % board.width and board.needs[end] == board.needs[rank]:
            end += 1
        return end

    def run(self) -> tuple[int, ...] | None:
        """Look; what was found."""
        if not self._completable():
            return None
        if not self.ranks:
            return ()
        budget, options = WORK, list(self._options(_Spent()))
        options.sort()
        for at, (bound, gpu, spent) in enumerate(options):
            if self.best_score is not None and bound >= self.best_score:
                break
            # Each first choice has its share, or the first one could use up everything.
            self.work = budget // (len(options) - at)
            budget -= self.work
            self._try(gpu, spent)
            budget += max(self.work, 0)
        return self.best

    def _try(self, gpu: int, spent: _Spent) -> None:
        """Place the next rank there, and go on if the others can be placed then."""
        self.chosen.append(gpu)
        self.unused ^= 1 << gpu
        if self._completable():
            self._extend(spent)
        self.unused ^= 1 << gpu
        self.chosen.pop()

    def _extend(self, spent: _Spent) -> None:
        if len(self.chosen) == self.ranks:
            found = score(self.board, self.chosen)
            if self.best_score is None or found < self.best_score:
                self.best, self.best_score = tuple(self.chosen), found
            return
        options = sorted(self._options(spent))
        self.work -= len(options)
        for bound, gpu, then in options:
            if self.best_score is not None and (bound >= self.best_score or self.work <= 0):
                return
            self._try(gpu, then)

    def _options(self, spent: _Spent) -> Iterator[tuple[Score, int, _Spent]]:
        """Where the next rank may go: the least that the whole can come to then, the GPU, the sums."""
        board, rank = self.board, len(self.chosen)
        start = rank - rank % board.width
        stage, before = self.chosen[start:], self.chosen[max(start - board.width, 0) : start]
        end = min(start + board.width, self.ranks)
        mates = reduce(or_, self.fits[rank + 1 : end], 0) & self.unused
        suited = reduce(or_, self.fits[rank:]) & self.unused
        rooms = [g for g in self.by_room if suited >> g & 1][: self.ranks - rank]
        room = sum(board.free[g] for g in rooms)
        for gpu in _bits(self._allowed(rank)):
            # The smallest rooms for the others: without this one, or else without the last of them.
            rest = room - board.free[gpu if gpu in rooms else rooms[-1]]
            hops = board.hops[gpu]
            then = _Spent(
                spent.within + sum(hops[member] for member in stage),
                spent.between + sum(hops[member] for member in before),
                spent.shared + board.shared[gpu],
                spent.free + board.free[gpu],
                spent.tenants + board.tenants[gpu],
            )
            later = mates & (-1 << (gpu + 1) if self.run_end[rank] == end else ~(1 << gpu))
            within = then.within + NEAR * self._unlinked([*stage, gpu], later, end - rank - 1)
            left = then.free + rest - self.most
            yield (within, then.between, then.shared, _grains(left), 0, then.tenants), gpu, then

    def _unlinked(self, stage: list[int], mates: int, lacking: int) -> int:
        """How many pairs without NVLink the stage gets at least from as many of these as it lacks."""
        return sum(max(0, lacking - (self.linked[gpu] & mates).bit_count()) for gpu in stage)

    def _allowed(self, rank: int) -> int:
        """The GPUs that may be tried for a rank now."""
        at = len(self.chosen)
        mask = self.fits[rank] & self.unused
        if at and rank < self.run_end[at - 1]:
            mask &= -1 << (self.chosen[-1] + 1)
        return mask

    def _completable(self) -> bool:
        """The ranks that are not placed yet can be."""
        at = len(self.chosen)
        if at == self.ranks:
            return True
        masks = [self._allowed(rank) for rank in range(at, self.ranks)]
        if self.uniform:
            run = self.run_end[at - 1] - at if at else 0
            enough = run <= 0 or masks[0].bit_count() >= run
            return enough and (self.fits[0] & self.unused).bit_count() >= len(masks)
        self.work -= len(masks)
        return _matches(masks)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _matches(masks: Sequence[int]) -> bool:
    """Each rank can have a GPU of its own, its mask naming those that suit it (augmenting paths)."""
    holder: dict[int, int] = {}

    def seat(rank: int, tried: set[int]) -> bool:
        for gpu in _bits(masks[rank]):
            if gpu in tried:
                continue
            tried.add(gpu)
            if gpu not in holder or seat(holder[gpu], tried):
                holder[gpu] = rank
                return True
        return False

    return all(seat(rank, set()) for rank in range(len(masks)))


def least_missing(board: Board) -> tuple[tuple[int, ...], int]:
    """The GPUs, in rank order, on which the least in total is missing, and how many bytes that is.

    Ties go to lower positions. There must be as many GPUs as ranks.
    """
    gpus = len(board.free)
    # Positions decide among equals: their sum weighs less than a byte.
    unit = gpus * gpus + 1
    costs = [
        [max(0, need - usable) * unit + at for at, (need, usable) in enumerate(_pairs(needs, board))]
        for needs in board.needs
    ]
    chosen = _cheapest(costs, gpus)
    missing = sum(costs[rank][gpu] // unit for rank, gpu in enumerate(chosen))
    return tuple(_in_order(board, chosen)), missing


def _pairs(needs: Sequence[int], board: Board) -> Iterator[tuple[int, int]]:
    return zip(needs, board.usable, strict=True)


def _in_order(board: Board, chosen: Sequence[int]) -> list[int]:
    """The same GPUs; those of ranks that need the same ascend."""
    result = list(chosen)
    for needs in dict.fromkeys(board.needs):
        alike = [rank for rank, one in enumerate(board.needs) if one == needs]
        for rank, gpu in zip(alike, sorted(chosen[rank] for rank in alike), strict=True):
            result[rank] = gpu
    return result


def _cheapest(costs: Sequence[Sequence[int]], columns: int) -> list[int]:
    """A column for each row at the least cost in total: the Hungarian method, rows × rows × columns steps."""
    row_price, column_price = [0] * (len(costs) + 1), [0] * (columns + 1)
    row_of = [0] * (columns + 1)  # counted from 1; column 0 is where a new row begins
    for row in range(1, len(costs) + 1):
        row_of[0], column = row, 0
        slack: list[int | None] = [None] * (columns + 1)
        way, seen = [0] * (columns + 1), [False] * (columns + 1)
        while row_of[column]:
            seen[column] = True
            here, step, closest = row_of[column], None, 0
            for other in range(1, columns + 1):
                if seen[other]:
                    continue
                cost = costs[here - 1][other - 1] - row_price[here] - column_price[other]
                known = slack[other]
                if known is None or cost < known:
                    slack[other], way[other], known = cost, column, cost
                if step is None or known < step:
                    step, closest = known, other
            for other in range(columns + 1):
                if seen[other]:
                    row_price[row_of[other]] += step or 0
                    column_price[other] -= step or 0
                elif (known := slack[other]) is not None:
                    slack[other] = known - (step or 0)
            column = closest
        while column:
            row_of[column], column = row_of[way[column]], way[column]
    found = {row: column for column, row in enumerate(row_of) if column and row}
    return [found[row] - 1 for row in range(1, len(costs) + 1)]
