"""The GPU ledger at work: measures, reserves, queues, watches.

What is reserved is written in the engines themselves (`Engine.reservation`), in one row with all else that
is known of them, so that no daemon can die between two writes. This adds what is measured, and decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Protocol

from sagectl.config.machine import usable_cpus
from sagectl.config.settings import GpuSettings
from sagectl.core import events as ev
from sagectl.core import ledger, queueing, sizing
from sagectl.core.engine import Desired, Engine, Reservation, State, Sub
from sagectl.core.gpu import GpuReading
from sagectl.core.ledger import Account, Entry, Key
from sagectl.core.placement import NoRoom, Room, Wanted, place
from sagectl.core.queueing import Verdict, Waiting
from sagectl.core.sizing import Demand
from sagectl.daemon import environment
from sagectl.daemon.exceeding import Exceeding
from sagectl.daemon.footprints import Footprints
from sagectl.daemon.releases import Releases
from sagectl.daemon.supervisor import Supervisor
from sagectl.plugin import Refusal
from sagectl.system.journal import Journal

log = logging.getLogger("sagectl.memory")

INTERVAL = 2.0
"""Seconds between two measurements while nothing happens."""
SOON = 0.1
"""The same while somebody waits for memory to come free."""
UNMANAGED = 60.0
"""The same where there is no GPU: a driver may come up later than we do."""
SLOW = 5.0
"""After so many seconds a driver that does not answer is in trouble; what was known last goes on."""


class Meter(Protocol):
    """Whatever measures GPUs. `read` blocks."""

    def read(self, patience: float | None = None) -> GpuReading: ...

    def environment(self) -> Mapping[str, str]:
        """Variables that an engine needs to find its GPUs."""

    def close(self) -> None: ...


class Owning(Protocol):
    """Tells which engine a process belongs to."""

    def of(self, pids: Iterable[int]) -> Mapping[str, set[int]]: ...


class GpuMemory:
    """Who holds which memory of which GPU. All on the event loop's thread; only `Meter.read` is not."""

    def __init__(
        self,
        supervisor: Supervisor,
        journal: Journal,
        owners: Owning,
        footprints: Footprints,
        meter: Callable[[GpuSettings], Meter],
    ) -> None:
        """
        Args:
            meter: makes what measures the GPUs that these settings speak of.
        """
        self.settings = GpuSettings()
        self.reading = GpuReading("none")
        self.measured: Mapping[Key, int] = {}
        """(engine's name, GPU) → bytes that its processes hold there."""
        self.verdicts: dict[str, Verdict] = {}
        """Engine's id → why it still waits."""
        self._supervisor = supervisor
        self._journal = journal
        self._make_meter = meter
        self._meter: Meter | None = None
        self._owners = owners
        self._footprints = footprints
        self._exceeding = Exceeding(supervisor, journal)
        self._demands: dict[str, tuple[int, Demand]] = {}
        self._releases = Releases(supervisor)
        self._disturbers: dict[int, tuple[str, float]] = {}
        self._baselines: dict[Key, int] = {}
        self._trees: Mapping[str, set[int]] = {}
        self._kicked = asyncio.Event()

    @property
    def managed(self) -> bool:
        """There are GPUs whose memory is accounted for."""
        return self.reading.managed

    def learned(self) -> Mapping[str, int]:
        """Footprints that were measured, by `sizing.footprint_key`."""
        return self._footprints()

    # --- Up, on, down ---------------------------------------------------------------------------

    async def configure(self, settings: GpuSettings) -> None:
        """Take these settings, and measure, so that it is known whether there are GPUs to manage."""
        before, self.settings = self.settings, settings
        if self._meter is None or replace(before, reserve=0, budgets={}) != replace(
            settings, reserve=0, budgets={}
        ):
            self.close()
            self._meter = self._make_meter(settings)
            await self._measure()
            self._try_again()
        elif before != settings:
            self._try_again()
        self.kick()

    def _try_again(self) -> None:
        """Other budgets or GPUs: what could never be placed may be, now."""
        for engine in list(self._supervisor):
            refused = engine.sub is Sub.PREFLIGHT_FAILED and engine.desired is Desired.RUNNING
            asked = self.asked(engine) if refused else None
            if asked is not None and self.impossible(asked) is None:
                self._supervisor.post(engine.id, ev.StartRequested(by_user=False))

    def close(self) -> None:
        """Let go of the driver."""
        if self._meter is not None:
            self._meter.close()
        self._meter = None

    async def run(self) -> None:
        """Measure and decide until cancelled: at intervals, and at once where something changed."""
        while True:
            pause = SOON if self._releases else INTERVAL if self.managed else UNMANAGED
            with contextlib.suppress(TimeoutError):
                # Not wait_for: of Python 3.11 it may forget that we are cancelled.
                async with asyncio.timeout(pause):
                    await self._kicked.wait()
            self._kicked.clear()
            try:
                await self._measure()
                if self.managed:
                    self._act()
                else:
                    self._let_go()
            except Exception:
                # The engines have to be looked after, whatever is wrong with the accounts.
                log.exception("the GPU accounts failed")

    def kick(self) -> None:
        """Something changed: look again now."""
        self._kicked.set()

    # --- What the effects ask -------------------------------------------------------------------

    def demand(self, engine: Engine, asked: Demand) -> None:
        """Note what an engine needs, before it queues for it."""
        self._demands[engine.id] = (engine.generation, asked)

    def await_memory(self, engine: Engine) -> None:
        """It queues. → MemoryGranted, MemoryLacking, PreflightRefused."""
        self.kick()

    def await_release(self, engine: Engine) -> None:
        """All of its processes have ended. → MemoryReleased."""
        self._releases.begin(engine)
        self.kick()

    def changed(self, engine: Engine) -> None:
        """An engine's state changed."""
        if engine.state is State.DEACTIVATING and engine.reservation is not None:
            self._note_baselines(engine, engine.reservation)
            for gpu in engine.reservation.gpu_ids:
                self._disturbers[gpu] = (engine.name, asyncio.get_running_loop().time())
        if self.reading.managed and engine.spec.gpus != 0:
            self.kick()

    def environment(self, engine: Engine) -> Mapping[str, str]:
        """What shows an engine the GPUs that it was given."""
        held, spec = engine.reservation, engine.spec
        if held is None:
            ids = spec.gpu_ids
            return environment.visible(None if ids is None else [str(index) for index in ids])
        known = {gpu.index: gpu.visible for gpu in self.reading.gpus}
        return {
            **environment.visible([known.get(index) or str(index) for index in held.gpu_ids]),
            **(self._meter.environment() if self._meter else {}),
        }

    def lacking(self, asked: Demand) -> Refusal | None:
        """Why an engine would have to wait now, if it asked for this instead of what it has."""
        found = place(asked.wanted, self._rooms(asked.wanted))
        if not isinstance(found, NoRoom):
            return None
        remedy = "stop something else first, or restart it all the same: it then waits for the memory"
        return Refusal(f"the memory for it is not there: {found.reason}", remedy, found.arithmetic)

    def cpus(self, engine: Engine) -> tuple[int, ...] | None:
        """The CPUs next to an engine's GPUs; None where that is no choice."""
        held = engine.reservation.gpu_ids if engine.reservation else ()
        near = {cpu for gpu in self.reading.gpus if gpu.index in held for cpu in gpu.cpus}
        if any(not gpu.cpus for gpu in self.reading.gpus if gpu.index in held):
            return None
        usable = usable_cpus()
        return tuple(sorted(near & usable)) if near & usable and near & usable != usable else None

    def impossible(self, asked: Demand) -> Refusal | None:
        """Why no waiting could help, as if nothing else ran here."""
        if not self.reading.gpus and self.reading.trouble:
            return None
        found = place(asked.wanted, self._empty(asked.wanted))
        if not isinstance(found, NoRoom):
            return None
        remedy = "lower `gpu_memory`, the context or the batch, raise the budget, or give it other GPUs"
        figures = ("as if nothing else were on the GPUs:", *found.arithmetic)
        return Refusal(f"can never be placed here: {found.reason}", remedy, figures)

    def owned(self, names: Iterable[str]) -> set[int]:
        """The processes of these engines that were last seen on a GPU."""
        return {pid for name in names for pid in self._trees.get(name, ())}

    def asked(self, engine: Engine) -> Demand | None:
        """What an engine queues for, or was given last in this daemon's life."""
        generation, asked = self._demands.get(engine.id, (0, None))
        return asked if generation <= engine.generation else None

    def forget(self, engine_id: str) -> None:
        """The engine is gone."""
        for known in (self._demands, self.verdicts):
            known.pop(engine_id, None)

    def disturbed(self, engine: Engine) -> str:
        """Which neighbour gave memory back on this engine's GPUs since it was launched; "" for none."""
        if engine.reservation is None or engine.process is None:
            return ""
        for gpu in engine.reservation.gpu_ids:
            name, at = self._disturbers.get(gpu, ("", 0.0))
            if name and name != engine.name and at >= engine.process.started:
                return f"{name} gave memory of GPU {gpu} back"
        return ""

    def quiet(self, engine: Engine) -> bool:
        """Nobody else loads or gives back on this engine's GPUs: a planned stop disturbs no one."""
        held = engine.reservation.gpu_ids if engine.reservation else ()
        return not any(gpu in held for gpu in self._busy(but=engine.id))

    # --- Measuring ------------------------------------------------------------------------------

    async def _measure(self) -> None:
        before = self.reading
        assert self._meter is not None
        self.reading = await asyncio.to_thread(self._meter.read, SLOW)
        if self.reading.trouble is None:
            self._reconcile()
        self._tell_trouble(before)

    def _reconcile(self) -> None:
        pids = {p.pid for gpu in self.reading.gpus for p in gpu.processes or ()}
        trees = self._trees = self._owners.of(pids)
        # Who has no reservation and uses a GPU all the same is an engine still, and nobody foreign.
        self.measured = {
            **self.measured,
            **{key: self.measured.get(key, 0) for key in ledger.attribute(self.reading, trees)},
        }
        before = self.entries()
        self._baselines = {**ledger.assumed_baselines(self.reading, before), **self._baselines}
        entries = ledger.reconcile(self.reading, before, trees, self._baselines)
        self.measured = {entry.key: entry.measured for entry in entries if entry.measured or entry.reserved}

    def _tell_trouble(self, before: GpuReading) -> None:
        trouble = self.reading.trouble
        if trouble != before.trouble:
            text = trouble or "the GPUs can be measured again"
            self._journal.record(None, None, "gpu-trouble", text, "error" if trouble else "info")
        lost_before = {gpu.uuid for gpu in before.gpus if gpu.lost}
        for gpu in self.reading.gpus:
            if gpu.lost and gpu.uuid not in lost_before:
                text = gpu.lost.rstrip(".")
                self._journal.record(None, None, "gpu-lost", text, "error")
            elif not gpu.lost and gpu.uuid in lost_before:
                text = f"GPU {gpu.index} ({gpu.name}) is back"
                self._journal.record(None, None, "gpu-back", text, "info")

    def _fail_engines_on_lost(self) -> None:
        # Each time: an engine may have been adopted or launched since the loss was seen.
        for gpu, engine in product((gpu for gpu in self.reading.gpus if gpu.lost), list(self._supervisor)):
            if engine.reservation is not None and gpu.index in engine.reservation.gpu_ids:
                failed = ev.GpuFailed(engine.generation, str(gpu.lost).rstrip("."))
                self._supervisor.post(engine.id, failed)

    # --- Accounts -------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Every reservation, with what is measured; and what is measured of engines without one."""
        found = []
        for engine in self._supervisor:
            held = engine.reservation
            gpus = held.gpu_ids if held is not None else ()
            used = (gpu for (name, gpu), size in self.measured.items() if name == engine.name and size)
            extra = [gpu for gpu in used if gpu not in gpus]
            for gpu in (*gpus, *extra):
                reserved = held.on(gpu) if held is not None else 0
                measured = self.measured.get((engine.name, gpu), 0)
                spec = engine.spec
                found.append(Entry(spec.name, spec.kind, spec.group, gpu, reserved, measured, phase(engine)))
        return found

    def accounts(self) -> tuple[Account, ...]:
        """The figures of each GPU now."""
        return ledger.accounts(self.reading, self.entries(), self.settings.reserve)

    def _rooms(self, wanted: Wanted) -> Sequence[Room]:
        return ledger.rooms(self.accounts(), wanted.kind, self.settings.budgets, without=wanted.name)

    def _empty(self, wanted: Wanted) -> Sequence[Room]:
        gpus = tuple(replace(gpu, used=0, processes=(), lost=None) for gpu in self.reading.gpus)
        nobody = ledger.accounts(replace(self.reading, gpus=gpus), (), self.settings.reserve)
        return ledger.rooms(nobody, wanted.kind, self.settings.budgets)

    def _busy(self, but: str = "") -> dict[int, str]:
        """GPU → who loads or gives memory back there."""
        found: dict[int, str] = {}
        for engine in self._supervisor:
            doing = _doing(engine)
            if doing and engine.reservation is not None and engine.id != but:
                found.update((gpu, f"{engine.name} {doing}") for gpu in engine.reservation.gpu_ids)
        return found

    # --- Deciding -------------------------------------------------------------------------------

    def _act(self) -> None:
        self._fail_engines_on_lost()
        self._releases.watch(self.reading, self.measured)
        while self._grant_one():
            pass
        running = [e for e in self._supervisor if e.state is State.ACTIVE and e.reservation is not None]
        for engine in running:
            self._footprints.note(engine, self.measured)
        self._exceeding.look(running, self.measured, self.quiet)

    def _let_go(self) -> None:
        """A reload left no GPUs to manage: nobody waits for their memory any more, or for its release."""
        self._releases.let_go()
        for one in self.waiting():
            self._supervisor.post(one.engine_id, ev.RestartRequested(by_user=False))

    def _grant_one(self) -> bool:
        """Give the first that can have it its memory; tell the others why they wait."""
        waiting = self.waiting()
        if not waiting:
            self.verdicts.clear()
            return False
        if self.reading.trouble:
            trouble = self.reading.trouble.rstrip(".")
            for one in waiting:
                self._tell(Verdict(one.engine_id, reason=f"waiting for the GPUs: {trouble}"))
            return False
        verdicts = queueing.decide(waiting, self._rooms, self._empty, self._busy())
        for verdict in verdicts:
            self._tell(verdict)
        return len(self.waiting()) < len(waiting)

    def waiting(self) -> list[Waiting]:
        """Those that queue for memory, in no order."""
        found = []
        for engine in self._supervisor:
            generation, asked = self._demands.get(engine.id, (0, None))
            if (
                engine.sub is Sub.QUEUED
                and engine.memory_wanted
                and asked
                and generation == engine.generation
            ):
                since = engine.since if engine.queued_since is None else engine.queued_since
                rank = (engine.spec.priority, since, engine.reservation is not None)
                found.append(Waiting(engine.id, asked.wanted, *rank))
        return found

    def _tell(self, verdict: Verdict) -> None:
        engine = self._supervisor.get(verdict.engine_id)
        if engine is None:
            return
        generation, asked = self._demands[engine.id]
        if verdict.placement is not None:
            gpus = {gpu.index: gpu for gpu in self.reading.gpus}
            reservation = sizing.reserve(asked, verdict.placement, gpus)
            self.verdicts.pop(engine.id, None)
            self._note_baselines(engine, reservation)
            self._supervisor.post(engine.id, ev.MemoryGranted(generation, reservation))
        elif verdict.never and (refusal := self.impossible(asked)) is not None:
            self.verdicts[engine.id] = verdict
            self._supervisor.post(engine.id, ev.PreflightRefused(generation, refusal))
        else:
            self.verdicts[engine.id] = verdict
            if verdict.reason != engine.reason:
                self._supervisor.post(engine.id, ev.MemoryLacking(generation, verdict.reason, verdict.names))

    def _note_baselines(self, engine: Engine, reservation: Reservation) -> None:
        """What is foreign as an engine begins to take or to give: attribution by difference starts there."""
        foreign = {account.gpu.index: account.foreign for account in self.accounts()}
        self._baselines.update(((engine.name, gpu), foreign.get(gpu, 0)) for gpu in reservation.gpu_ids)


def phase(engine: Engine) -> ledger.Phase:
    """What an engine does with its reservation."""
    if engine.state is State.ACTIVE:
        return ledger.Phase.TRAINING if engine.sub is Sub.RUNNING else ledger.Phase.RESIDENT
    if engine.sub is Sub.STARTING:
        return ledger.Phase.LOADING
    return ledger.Phase.RELEASING if engine.state is State.DEACTIVATING else ledger.Phase.RESERVED


def _doing(engine: Engine) -> str:
    if engine.sub is Sub.STARTING or (engine.sub is Sub.PREFLIGHT and engine.reservation is not None):
        return "is loading"
    return "is giving memory back" if engine.state is State.DEACTIVATING else ""
