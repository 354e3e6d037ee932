"""What every GPU's memory is promised to and used for. Pure; sizes in bytes.

free = total − kept free − foreign − Σ held by our engines, where an engine holds the larger of what is
reserved for it and what it measurably uses, and foreign is what the device uses beyond Σ measured. A byte
that is used is thus either an engine's or foreign, never both, and never free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from sagectl.core.gpu import Gpu, GpuReading
from sagectl.core.placement import Room

Key = tuple[str, int]
"""An engine's name and a GPU's index."""


class Phase(StrEnum):
    """What an engine's memory on a GPU is doing."""

    RESERVED = "reserved"
    """Granted; nothing runs yet."""
    LOADING = "loading"
    RESIDENT = "resident"
    PAUSED = "paused"
    """Given back, but for what it measurably still holds."""
    TRAINING = "training"
    RELEASING = "releasing"
    """A stop promised it. It is held in full until it is really free, or it would be given away twice."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine's memory on one GPU."""

    engine: str
    kind: str
    group: str
    gpu: int
    reserved: int
    measured: int = 0
    phase: Phase = Phase.RESERVED

    @property
    def key(self) -> Key:
        """What it is filed under."""
        return self.engine, self.gpu

    @property
    def held(self) -> int:
        """Bytes that nobody else may have."""
        return self.measured if self.phase == Phase.PAUSED else max(self.reserved, self.measured)


@dataclass(frozen=True, slots=True)
class Account:
    """One GPU's memory: total = kept_free + foreign + held + free, free being negative when overdrawn."""

    gpu: Gpu
    kept_free: int
    foreign: int
    entries: tuple[Entry, ...]
    free: int

    @property
    def reserved(self) -> int:
        """Σ reserved, paused engines' included."""
        return sum(entry.reserved for entry in self.entries)

    @property
    def measured(self) -> int:
        """Σ measured."""
        return sum(entry.measured for entry in self.entries)

    @property
    def held(self) -> int:
        """Σ held."""
        return sum(entry.held for entry in self.entries)

    @property
    def overdrawn(self) -> int:
        """Bytes by which more is promised or used than there is."""
        return max(0, -self.free)

    def held_by(self, kind: str, without: str = "") -> int:
        """Σ held by engines of a kind, but for one of them."""
        return sum(entry.held for entry in self.entries if entry.kind == kind and entry.engine != without)


def accounts(reading: GpuReading, entries: Iterable[Entry], kept_free: int) -> tuple[Account, ...]:
    """Every GPU's account. kept_free: bytes left free on each.

    An entry on a GPU that is not there is in none.
    """
    by_gpu: dict[int, list[Entry]] = {gpu.index: [] for gpu in reading.gpus}
    for entry in entries:
        if entry.gpu in by_gpu:
            by_gpu[entry.gpu].append(entry)
    return tuple(_account(gpu, tuple(by_gpu[gpu.index]), kept_free) for gpu in reading.gpus)


def _account(gpu: Gpu, entries: tuple[Entry, ...], kept_free: int) -> Account:
    foreign = max(0, gpu.used - sum(entry.measured for entry in entries))
    held = sum(entry.held for entry in entries)
    return Account(gpu, kept_free, foreign, entries, gpu.total - kept_free - foreign - held)


def budget_on(budget: int | str, total: int) -> int:
    """A budget in bytes; a share such as "40%" is one of this total. Raises ValueError for other text."""
    if isinstance(budget, int):
        return budget
    return round(float(budget.removesuffix("%")) / 100 * total)


def rooms(
    accounts: Iterable[Account], wanted_kind: str, budgets: Mapping[str, int | str], without: str = ""
) -> list[Room]:
    """The accounts as placement sees them, for an engine of this kind.

    without: an engine that asks anew; what it holds counts as free. What is overdrawn counts as nothing free.
    """
    budget = budgets.get(wanted_kind)
    result = []
    for account in accounts:
        others = [entry for entry in account.entries if entry.engine != without]
        own = sum(entry.held for entry in account.entries if entry.engine == without)
        left = None
        if budget is not None:
            held = account.held_by(wanted_kind, without)
            left = max(0, budget_on(budget, account.gpu.total) - held)
        result.append(
            Room(
                gpu=account.gpu,
                free=max(0, account.free + own),
                budget_left=left,
                groups=frozenset(entry.group for entry in others if entry.group),
                tenants=len({entry.engine for entry in others}),
            )
        )
    return result


# --- Who uses what -------------------------------------------------------------------------------


def attribute(reading: GpuReading, trees: Mapping[str, Collection[int]]) -> dict[Key, int | None]:
    """Bytes that engines use by their process trees (name → pids), where they use any.

    None for every engine on a GPU whose driver shows no processes, or not what one of ours uses there: that
    GPU is attributed by `differences`. A process that the driver lists twice, as for computing and for
    graphics, counts once; one that is in two trees counts for the first.
    """
    owners = _owners(trees)
    result: dict[Key, int | None] = {}
    for gpu in reading.gpus:
        used = _by_process(gpu, owners)
        if used is None:
            result.update({(engine, gpu.index): None for engine in trees})
        else:
            result.update({(engine, gpu.index): size for engine, size in used.items()})
    return result


def _owners(trees: Mapping[str, Collection[int]]) -> dict[int, str]:
    owners: dict[int, str] = {}
    for engine, pids in trees.items():
        for pid in pids:
            owners.setdefault(pid, engine)
    return owners


def _by_process(gpu: Gpu, owners: Mapping[int, str]) -> dict[str, int] | None:
    """What each engine uses there; None where that is not known."""
    if gpu.processes is None:
        return None
    sizes: dict[int, int] = {}
    for process in gpu.processes:
        if process.pid in owners:
            if process.used is None:
                return None
            sizes[process.pid] = max(process.used, sizes.get(process.pid, 0))
    result: dict[str, int] = {}
    for pid, size in sizes.items():
        result[owners[pid]] = result.get(owners[pid], 0) + size
    return result


_GROWING = (Phase.LOADING, Phase.TRAINING)
_SHRINKING = (Phase.RELEASING, Phase.PAUSED)


def differences(gpu: Gpu, entries: Sequence[Entry], baselines: Mapping[Key, int]) -> dict[Key, int]:
    """Bytes that each engine uses on a GPU whose driver does not tell, by how much the device uses.

    baselines: the GPU's foreign bytes (`Account.foreign`) when the engine's start was granted, or when its
    stop or pause began. What the device uses beyond that, and beyond what the other engines measurably use,
    is charged

    - to the only engine that loads or trains there;
    - to several such in proportion to what they hold, at most that much each;
    - else to those being released, at most what they had: so their figure falls as memory comes free, and 0
      means released;
    - else to those that are paused, in the same way;
    - else to a resident engine that is alone there, at most what it holds;
    - else to those of several such that were never seen to use anything, in the same way: what loads faster
      than it is measured is up before.

    The rest is foreign. All other engines, and those without a baseline, keep the figure that they had, as
    far as the device uses that much at all. What foreign processes take while an engine loads is charged to
    it, and a release during another's load is seen only when the device uses less than the two had.
    """
    present = [entry for entry in entries if entry.gpu == gpu.index]
    sizes = {entry.key: entry.measured for entry in present}
    moving = [entry for entry in _moving(present) if entry.key in baselines]
    if moving:
        still = sum(entry.measured for entry in present if entry not in moving)
        foreign = max(baselines[entry.key] for entry in moving)
        sizes.update(_shared_out(max(0, gpu.used - foreign - still), moving))
    return _at_most(gpu.used, sizes, [*present, *moving])


def assumed_baselines(reading: GpuReading, entries: Sequence[Entry]) -> dict[Key, int]:
    """Baselines of engines that run where nobody noted any, as a daemon that adopts them: they use what they
    reserved as far as anybody does, and the rest is foreign."""
    found: dict[Key, int] = {}
    for gpu in (gpu for gpu in reading.gpus if gpu.processes is None):
        here = [entry for entry in entries if entry.gpu == gpu.index and entry.reserved]
        rest = max(0, gpu.used - sum(entry.reserved for entry in here))
        found.update((entry.key, rest) for entry in here if entry.phase != Phase.RESERVED)
    return found


def _moving(present: Sequence[Entry]) -> Sequence[Entry]:
    """Those whose use is taken to be what changes."""
    for phases in (_GROWING, (Phase.RELEASING,), (Phase.PAUSED,)):
        if found := [entry for entry in present if entry.phase in phases]:
            return found
    up = [entry for entry in present if entry.phase == Phase.RESIDENT]
    return up if len(present) == 1 else [entry for entry in up if not entry.measured]


def _shared_out(pool: int, moving: Sequence[Entry]) -> dict[Key, int]:
    if len(moving) == 1 and moving[0].phase in _GROWING:
        return {moving[0].key: pool}
    most = {entry.key: entry.measured if entry.phase in _SHRINKING else entry.held for entry in moving}
    whole = sum(most.values())
    share = min(pool, whole)
    return {key: size * share // whole if whole else 0 for key, size in most.items()}


def _at_most(used: int, sizes: Mapping[Key, int], order: Sequence[Entry]) -> dict[Key, int]:
    """The sizes, cut from the last of the order on so that they are no more than the device uses."""
    result = dict(sizes)
    excess = sum(result.values()) - used
    for entry in reversed(order):
        cut = max(0, min(excess, result[entry.key]))
        result[entry.key] -= cut
        excess -= cut
    return result


def reconcile(
    reading: GpuReading,
    entries: Sequence[Entry],
    trees: Mapping[str, Collection[int]],
    baselines: Mapping[Key, int],
) -> tuple[Entry, ...]:
    """The entries with what was measured now; those on a GPU that is lost or not there keep their figure.

    What an engine uses where it has no entry is foreign there.
    """
    owners = _owners(trees)
    sizes: dict[Key, int] = {entry.key: entry.measured for entry in entries}
    for gpu in reading.gpus:
        if gpu.lost is not None:
            continue
        used = _by_process(gpu, owners)
        if used is None:
            # Of who has nothing reserved nobody could tell when he is gone.
            sizes.update({entry.key: 0 for entry in entries if entry.gpu == gpu.index})
            sizes.update(differences(gpu, [entry for entry in entries if entry.reserved], baselines))
        else:
            here = (entry for entry in entries if entry.gpu == gpu.index)
            sizes.update({entry.key: used.get(entry.engine, 0) for entry in here})
    return tuple(
        entry if sizes[entry.key] == entry.measured else replace(entry, measured=sizes[entry.key])
        for entry in entries
    )
