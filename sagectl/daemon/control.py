"""What may be asked of a running daemon. The API translates HTTP into these calls, nothing more."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any, Protocol

from sagectl.config import engines, persist
from sagectl.config.load import engine_from_body
from sagectl.config.paths import Paths
from sagectl.config.sections import Origin
from sagectl.config.units import describe
from sagectl.core import dependencies
from sagectl.core import events as ev
from sagectl.core.engine import Engine, EngineSpec, LoadedModel, State, Sub
from sagectl.core.ledger import Account
from sagectl.core.reload import ReloadPlan
from sagectl.daemon import gpu_report, history
from sagectl.daemon.ending import Ending
from sagectl.daemon.explain import explanation
from sagectl.daemon.memory import GpuMemory
from sagectl.daemon.preflight import Preflight
from sagectl.daemon.reloading import Reloader
from sagectl.daemon.supervisor import Supervisor
from sagectl.errors import Conflict, InvalidConfig, Problem, Unkept, UnknownEngine, Unplaceable
from sagectl.plugin import FileQuery
from sagectl.system.facts import look_at
from sagectl.system.journal import Journal
from sagectl.system.plugins import Kinds
from sagectl.system.store import Store

log = logging.getLogger("sagectl.control")

PROGRESS_BYTES = 64 << 10


class Commit(Protocol):
    """`Keeper.flush`."""

    def __call__(self, *, at_once: bool = False) -> bool: ...


class Control:
    """The operations on engines and on the daemon itself. All on the event loop's thread.

    Raises, where a reference is unknown: UnknownEngine. Every method checks before it changes.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        store: Store,
        journal: Journal,
        kinds: Kinds,
        paths: Paths,
        reloader: Reloader,
        describe: Callable[[], dict[str, Any]],
        ending: Ending,
        startup_detail: Callable[[str], str | None],
        commit: Commit,
        memory: GpuMemory,
        preflight: Preflight,
    ) -> None:
        """
        Args:
            describe: the daemon's part of `status`.
            startup_detail: engine id → what its newest probe said is missing.
            commit: writes what changed to disk, so that no request is forgotten that was answered.
                False where the disk refuses it; then it is kept in memory, and tried again.
        """
        self.journal = journal
        self._supervisor = supervisor
        self._store = store
        self._kinds = kinds
        self._paths = paths
        self._reloader = reloader
        self._describe = describe
        self._ending = ending
        self._startup_detail = startup_detail
        self._commit = commit
        self._memory = memory
        self._preflight = preflight
        self.taken_out: Callable[[Engine, Sequence[LoadedModel]], None] = lambda engine, models: None
        """Told of models that an engine is not to have any more."""

    # --- Finding --------------------------------------------------------------------------------

    def engines(self) -> Sequence[Engine]:
        """Every engine, sorted by name."""
        return [self._in_words(engine) for engine in self._supervisor]

    def _in_words(self, engine: Engine) -> Engine:
        """The engine with the words of its startup probe, which change too often to be state."""
        detail = self._startup_detail(engine.id) if engine.sub is Sub.STARTING else None
        return replace(engine, reason=f"starting: {detail}") if detail else engine

    def resolve(self, ref: str) -> Sequence[Engine]:
        """The engine with this id or name, or all replicas of this group."""
        engine = self._supervisor.named(ref) or self._supervisor.get(ref)
        if engine is not None:
            return [self._in_words(engine)]
        group = [self._in_words(engine) for engine in self._supervisor if engine.spec.group == ref]
        if not group:
            names = ", ".join(engine.name for engine in self._supervisor) or "none"
            raise UnknownEngine(
                f"there is no engine {ref!r}", remedy=f"the engines are: {names}", facts={"engine": ref}
            )
        return group

    def by_port(self, port: int) -> Engine:
        """The engine that holds this port."""
        for engine in self._supervisor:
            if engine.port == port:
                return engine
        raise UnknownEngine(f"no engine has port {port}", remedy="see `sagectl list`", facts={"port": port})

    # --- Acting ---------------------------------------------------------------------------------

    def start(self, engine: Engine, *, again: bool = False) -> None:
        """Ask for it to be up, its dependencies first. Raises Conflict for a completed job."""
        if engine.sub is Sub.COMPLETED and not again:
            raise Conflict(
                f"the job {engine.name} is completed",
                remedy=f"run it anew with `sagectl start --again {engine.name}`",
                facts={"engine": engine.name, "state": engine.state.value, "substate": engine.substate},
            )
        self.start_with_dependencies(engine, by_user=True, again=again)
        self._commit()

    def start_with_dependencies(self, engine: Engine, *, by_user: bool, again: bool = False) -> None:
        """Start what it depends on and is not up, then the engine itself."""
        if engine.spec.depends_on:
            specs = {other.name: other.spec for other in self._supervisor}
            for name in dependencies.pulled_in(engine.name, specs):
                needed = self._supervisor.named(name)
                if needed is not None and not needed.up:
                    self._supervisor.post(needed.id, ev.StartRequested(by_user=by_user))
        self._supervisor.post(engine.id, ev.StartRequested(by_user=by_user, again=again))

    def stop(self, engine: Engine, *, drain: float | None = None) -> None:
        """Ask for it to be down."""
        self._supervisor.post(engine.id, ev.StopRequested(drain=drain))
        self._commit()

    def restart(self, engine: Engine) -> None:
        """Stop and start again, keeping identity."""
        self._supervisor.post(engine.id, ev.RestartRequested())
        self._commit()

    def reset_failed(self, engine: Engine) -> None:
        """Forget failures and the start limit."""
        self._supervisor.post(engine.id, ev.ResetFailed())
        self._commit()

    def unload(self, engine: Engine, name: str | None = None) -> None:
        """Have it serve a model no more that it took in while it ran; all such where `name` is None.

        Raises Conflict where it has none of that name.
        """
        models = [model for model in engine.loaded if name in (None, model.name)]
        if name is not None and not models:
            names = ", ".join(model.name for model in engine.loaded)
            raise Conflict(
                f"{engine.name} has taken in no model {name!r}",
                remedy=f"it took in {names}" if names else "what it was started with stays in it",
                facts={"engine": engine.name},
            )
        rest = tuple(model for model in engine.loaded if model not in models)
        self._supervisor.post(engine.id, ev.ModelsLoaded(rest))
        self.taken_out(engine, models)
        self._commit()

    def set_autostart(self, engine: Engine, enabled: bool) -> None:
        """`enable` and `disable`: a persistent override above the TOML, for a group as a whole.

        Raises Conflict, and Unkept where it cannot be made persistent.
        """
        if engine.transient:
            raise Conflict(
                f"{engine.name} is transient: it has no definition to enable",
                remedy=f"give it a table in {self._paths.config_file}",
                facts={"engine": engine.name},
            )
        before = self._store.overrides().get(engine.name)
        self._store.set_override(engine.name, enabled)
        if not self._commit(at_once=True):
            self._store.set_override(engine.name, before)
            raise self._unkept(f"autostart of {engine.name} cannot be changed")
        spec = replace(engine.spec, autostart=enabled)
        self._supervisor.post(engine.id, ev.SpecReplaced(spec, needs_restart=engine.needs_restart))
        word = "enabled" if enabled else "disabled"
        self.journal.record(engine.name, engine.id, word, f"autostart {word} by the user")
        self._commit()

    async def define(self, body: Mapping[str, Any]) -> Engine:
        """Define a transient engine and start it.

        Raises InvalidConfig with every wrong field, Conflict, Unplaceable where it needs more GPU memory
        than it could ever have here, and Unkept where it would be forgotten.
        """
        engine_id = self.new_id()
        name = engine_id if body.get("name") is None else body["name"]
        if not isinstance(name, str):
            raise InvalidConfig([Problem("name", f"must be a string, not {describe(name)}")])
        spec = self._spec_from(name, {k: v for k, v in body.items() if k != "name"})
        self._check_definition(spec)
        await self._check_place(spec)
        self._check_definition(spec)  # again: others may have been defined meanwhile
        engine = Engine(id=engine_id, spec=spec, transient=True)
        self._supervisor.add(engine)
        if not self._commit(at_once=True):
            refusal = self._unkept(f"{engine.name} is not defined")
            self._supervisor.post(engine_id, ev.Removed(refusal.detail))
            raise refusal
        self.journal.record(engine.name, engine.id, "defined", f"{spec.kind} engine, transient")
        self.start_with_dependencies(engine, by_user=True)
        self._commit()
        return self._supervisor.get(engine_id) or engine

    def _unkept(self, what: str) -> Unkept:
        failure = self._store.failure
        why = f"the state database {self._store.path} cannot be written ({failure})"
        return Unkept(
            f"{what}: it would be forgotten with the daemon, as {why}",
            remedy=failure.remedy if failure else "",
        )

    def _spec_from(self, name: str, body: Mapping[str, Any]) -> EngineSpec:
        config = self._reloader.config
        return engine_from_body(name, body, self._kinds.by_name(), config.defaults if config else None)

    async def _check_place(self, spec: EngineSpec) -> None:
        found = await self._preflight.unplaceable(spec)
        if found is None:
            return
        refusal, asked = found
        facts = {
            "engine": spec.name,
            "needed_gb": gpu_report.needed_gb(self._memory, asked.wanted),
            "arithmetic": list(refusal.arithmetic),
            "devices": gpu_report.devices(self._memory, spec, asked),
        }
        raise Unplaceable(f"{spec.name} {refusal.reason}", remedy=refusal.remedy, facts=facts)

    def _check_definition(self, spec: EngineSpec) -> None:
        if self._supervisor.named(spec.name) is not None:
            raise Conflict(
                f"there is an engine {spec.name!r} already",
                remedy="choose another name, or leave it out",
                facts={"engine": spec.name},
            )
        problems = []
        for other in self._supervisor:
            if spec.port is not None and spec.port in (other.port, other.spec.port):
                text = f"port {spec.port} belongs to the engine {other.name}"
                problems.append(Problem("port", text, "choose another port, or leave it out"))
        known = {other.name: other.spec for other in self._supervisor}
        for _, needed in dependencies.missing([spec, *known.values()]):
            if needed in spec.depends_on:
                problems.append(Problem("depends_on", f"there is no engine {needed!r}"))
        if problems:
            raise InvalidConfig(problems)

    @staticmethod
    def new_id() -> str:
        """A fresh engine id."""
        return f"engine-{secrets.token_hex(4)}"

    def forget(self, engine: Engine) -> None:
        """`engine prune`: drop a transient engine that is down. Raises Conflict."""
        if not engine.transient:
            raise Conflict(
                f"{engine.name} is declared in the configuration",
                remedy="remove its table and run `sagectl reload`",
                facts={"engine": engine.name},
            )
        if engine.state not in (State.INACTIVE, State.FAILED):
            raise Conflict(
                f"{engine.name} is {engine.state} ({engine.substate})",
                remedy=f"stop it first: `sagectl stop {engine.name}`",
                facts={"engine": engine.name, "state": engine.state.value},
            )
        self._supervisor.post(engine.id, ev.Removed("pruned by the user"))
        self._commit()

    async def settled(self, engine_id: str, timeout: float | None) -> Engine:
        """Wait until the engine is as desired or cannot get there (or `timeout` seconds are over)."""
        before = self._supervisor.get(engine_id)
        await self._supervisor.until(lambda: self._supervisor.arrived(engine_id), timeout)
        engine = self._supervisor.get(engine_id) or before
        if engine is None:
            raise UnknownEngine(f"there is no engine {engine_id!r}", facts={"engine": engine_id})
        return engine

    async def reload(self, *, dry_run: bool = False, restart: bool = True) -> ReloadPlan:
        """Read the configuration again and apply what changed. Raises InvalidConfig, changing nothing.

        Returns as soon as the plan is made and under way; `engines()` shows how it goes on.
        """
        return await self._reloader.reload(dry_run=dry_run, restart=restart)

    def shutdown(self) -> None:
        """Stop every engine, then the daemon. Returns at once; the daemon ends when all are down."""
        self._ending.end()

    async def reexec(self) -> None:
        """Go on with the code that is installed now, engines running. Raises Conflict where it is broken.

        Returns at once after it was tried; the daemon answers again when the new code is up.
        """
        await self._ending.renew()

    # --- Telling --------------------------------------------------------------------------------

    def explain(self, engine: Engine) -> dict[str, Any]:
        """Why it is as it is: INTERFACE's `explain` fields and `history`, its recent events."""
        history = [e for e in self.journal.tail(50, engine.name) if e.level != "debug"]
        return {**explanation(engine, history), **gpu_report.explanation(self._memory, engine)}

    def gpu(self) -> dict[str, Any]:
        """The GPUs, and who holds what of them."""
        return gpu_report.report(self._memory)

    def reservations(self) -> list[dict[str, Any]]:
        """The ledger: an entry for each engine and GPU."""
        return gpu_report.reservations(self._memory)

    def accounts(self) -> Sequence[Account]:
        """Each GPU's account, in bytes."""
        return self._memory.accounts()

    def budgets(self) -> Mapping[str, int | str]:
        """Ceilings per GPU by kind: bytes, or a share of the GPU."""
        return self._memory.settings.budgets

    def queue_length(self) -> int | None:
        """How many engines wait for GPU memory; None where none is managed."""
        return len(self._memory.waiting()) if self._memory.managed else None

    def measured_gb(self, engine: Engine) -> float | None:
        """What the engine measurably holds on the GPU where that is most, GiB."""
        held = [size for (name, _), size in self._memory.measured.items() if name == engine.name]
        return gpu_report.gb(max(held)) if held else None

    def definition(self, engine: Engine) -> dict[str, Any]:
        """The resolved definition, `{key: {"value": …, "origin": …}}`, secrets left out (`cat`)."""
        config = self._reloader.config
        origins = config.origins.get(engine.name, {}) if config else {}
        overridden = engine.name in self._store.overrides()
        spec = engine.spec
        usual = persist.flat_spec(EngineSpec(spec.name, spec.kind, mode=spec.mode, python=sys.executable))
        if engine.transient:
            origins, common = self._defaults_for(spec)
        answer = {}
        for key, value in persist.flat_spec(spec).items():
            if key == "autostart" and overridden:
                origin = "sagectl enable" if spec.autostart else "sagectl disable"
            elif engine.transient and key in origins and common.get(key) == value:
                origin = _place(origins[key], spec.kind)
            elif engine.transient:
                origin = "default" if usual.get(key) == value else "given over the API"
            else:
                origin = _place(origins.get(key), spec.kind)
            answer[key] = {"value": value, "origin": origin}
        return answer

    def _defaults_for(self, spec: EngineSpec) -> tuple[Mapping[str, Origin], Mapping[str, Any]]:
        """Where the defaults of the engine's kind stand, and what an engine of them alone comes to."""
        config = self._reloader.config
        section = config.defaults.get(spec.kind) if config else None
        if section is None:
            return {}, {}
        needed = {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(spec.options)
            if field.default is MISSING and field.default_factory is MISSING
            for value in [getattr(spec.options, field.name)]
        }
        try:
            alone = self._spec_from(spec.name, {"kind": spec.kind, **needed})
        except InvalidConfig:
            return {}, {}  # defaults that are wrong without what the request gave
        return engines.origins(section), persist.flat_spec(alone)

    def kinds(self) -> list[dict[str, Any]]:
        """Kinds with options and origin, and broken plugins with the reason."""
        return self._kinds.describe()

    def status(self) -> dict[str, Any]:
        """The daemon itself: version, pid, uptime, configuration files, warnings, broken plugins."""
        return self._describe()

    def log_path(self, engine: Engine) -> str:
        """The engine's current log file; older ones are `PATH.1`, `PATH.2`, …"""
        return str(self._paths.log / f"{engine.name}.log")

    async def progress(self, engine: Engine) -> dict[str, Any] | None:
        """A job's progress as the kind reads it, None where there is none."""
        kind = self._kinds.by_name().get(engine.spec.kind)
        file = engine.plan.progress_file if engine.plan else None
        if kind is None or file is None:
            return None
        text = (await asyncio.to_thread(look_at, FileQuery(file, read=PROGRESS_BYTES))).text
        if not text:
            return None
        try:
            progress = kind.progress(text)
        except Exception:
            log.exception("the kind %s failed to read %s", engine.spec.kind, file)
            return None
        if progress is None:
            return None
        return {
            "done": progress.done,
            "total": progress.total,
            "unit": progress.unit,
            "eta_seconds": progress.eta_seconds,
            "details": dict(progress.details),
        }

    async def history(self, engine: Engine, points: int) -> list[dict[str, Any]]:
        """The steps of a job's past, at most so many; [] where its kind keeps none."""
        kind = self._kinds.by_name().get(engine.spec.kind)
        file = engine.plan.history_file if engine.plan else None
        if kind is None or file is None:
            return []
        found = await asyncio.to_thread(history.read, kind, file, points)
        return [{**point.values, "step": point.step, "at": point.at} for point in found]


def _place(origin: Origin | None, kind: str) -> str:
    if origin is None or origin.source == "default":
        return "default"
    place = f"{origin.file}:{origin.line}"
    return f"{place} [defaults.{kind}]" if origin.source == "defaults" else place
