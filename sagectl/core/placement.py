"""Which GPUs an engine gets, or why none. Pure; the figures of an answer are part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sagectl.core.gpu import Gpu


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

    claimed: the GPUs on which the least is missing, for which it waits.
    """

    reason: str
    arithmetic: tuple[str, ...] = ()
    claimed: tuple[int, ...] = ()
    missing: int = 0


def place(wanted: Wanted, rooms: Sequence[Room]) -> Placement | NoRoom:
    """The best place for a request on these GPUs, or the figures that speak against it."""
    raise NotImplementedError
