"""Applies a configuration: at the daemon's start without restarts, at `reload` one engine after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from sagectl.config.load import Config
from sagectl.core import events as ev
from sagectl.core import reload
from sagectl.core.engine import Desired, Engine, EngineSpec, State
from sagectl.core.reload import ReloadPlan
from sagectl.daemon.preflight import Preflight, inspect
from sagectl.daemon.supervisor import Supervisor
from sagectl.errors import InvalidConfig, Problem
from sagectl.system.journal import Journal


class Starter(Protocol):
    """Starts an engine and what it depends on."""

    def start_with_dependencies(self, engine: Engine, *, by_user: bool, again: bool = False) -> None: ...


class Reloader:
    """Holds the configuration in force."""

    def __init__(
        self,
        supervisor: Supervisor,
        journal: Journal,
        preflight: Preflight,
        load: Callable[[], Config],
        overrides: Callable[[], Mapping[str, bool]],
        new_id: Callable[[], str],
    ) -> None:
        """
        Args:
            load: reads and validates the configuration; raises InvalidConfig.
            overrides: autostart as `enable` and `disable` left it, by engine name.
        """
        self.config: Config | None = None
        self.starter: Starter | None = None
        self.applied: Callable[[Config], None] = lambda config: None
        """Told of each configuration that a reload put in force, for what is not about engines."""
        self._check: Callable[[Config], tuple[str, ...]] = lambda config: ()
        self._quiet: Callable[[Engine], bool] = lambda engine: True
        self._supervisor = supervisor
        self._journal = journal
        self._preflight = preflight
        self._load = load
        self._overrides = overrides
        self._new_id = new_id
        self._rolling: asyncio.Task[None] | None = None

    def attach(
        self, starter: Starter, check: Callable[[Config], tuple[str, ...]], quiet: Callable[[Engine], bool]
    ) -> None:
        """Say who is made only after us.

        Args:
            check: what else is to be said of a configuration before it is in force.
            quiet: whether a planned stop of this engine disturbs nobody.
        """
        self.starter, self._check, self._quiet = starter, check, quiet

    def specs(self, config: Config) -> dict[str, EngineSpec]:
        """What the configuration declares, with the overrides of autostart applied."""
        overrides = self._overrides()
        return {
            spec.name: replace(spec, autostart=overrides.get(spec.name, spec.autostart))
            for spec in config.specs
        }

    async def reload(self, *, dry_run: bool, restart: bool) -> ReloadPlan:
        """Read, compare, and (unless `dry_run`) apply. Raises InvalidConfig and changes nothing."""
        config = await asyncio.to_thread(self._load)
        new = self.specs(config)
        self._refuse_transient_names(new)
        plan = self._compare(new, config, restart=restart)
        plan = replace(plan, warnings=(*plan.warnings, *self._check(config)))
        if dry_run:
            return plan
        if self._rolling is not None:
            # Engines that it had not come to yet differ still, so the new plan has them.
            self._rolling.cancel()
        self.config = config
        self._journal.record(None, None, "reloaded", _summary(plan))
        self.applied(config)
        self.apply(plan, new, start_added=True)
        if plan.restarts:
            self._rolling = asyncio.get_running_loop().create_task(
                self._roll(plan, new), name="rolling restart"
            )
        return plan

    def adopt(self, config: Config) -> ReloadPlan:
        """Apply the configuration at the daemon's start: nothing that runs is restarted by it."""
        self.config = config
        new = self.specs(config)
        plan = self._compare(new, config, restart=False)
        self.apply(plan, new, start_added=False)
        return plan

    def _compare(self, new: Mapping[str, EngineSpec], config: Config, *, restart: bool) -> ReloadPlan:
        declared = [engine for engine in self._supervisor if not engine.transient and not engine.removed]
        return reload.plan(
            {engine.name: engine.spec for engine in declared},
            new,
            restart=restart,
            running={engine.name for engine in declared if _has_process(engine)},
            keep=config.left_out_names,
            warnings=tuple(str(problem) for problem in (*config.warnings, *config.left_out)),
        )

    def _refuse_transient_names(self, new: Mapping[str, EngineSpec]) -> None:
        problems = [
            Problem(
                f"engines.{engine.name}",
                "a transient engine has this name already",
                f"stop and prune it first: sagectl stop {engine.name}; sagectl engine prune",
            )
            for engine in self._supervisor
            if engine.transient and engine.name in new
        ]
        if problems:
            raise InvalidConfig(problems)

    def apply(self, plan: ReloadPlan, new: Mapping[str, EngineSpec], *, start_added: bool) -> None:
        """Everything of a plan that needs no restart."""
        for name in plan.removed:
            self._post(name, ev.Removed())
        for name in (change.name for change in plan.in_place):
            engine = self._supervisor.named(name)
            assert engine is not None
            mended = engine.state is State.FAILED and reload.launch_changed(engine.spec, new[name])
            self._post(name, ev.SpecReplaced(new[name], needs_restart=engine.needs_restart))
            if mended and engine.desired is Desired.RUNNING:
                # Whoever edits what failed wants to see whether it works now.
                self._post(name, ev.StartRequested())
        for change in plan.needs_restart:
            self._post(change.name, ev.SpecReplaced(new[change.name], needs_restart=True))
            text = f"{', '.join(change.keys)} changed and takes effect at its next start"
            self._note(change.name, "needs-restart", text, "warning")
        for name in plan.added:
            self._add(new[name], start=start_added)

    def _add(self, spec: EngineSpec, *, start: bool) -> None:
        leaving = self._supervisor.named(spec.name)
        if leaving is not None:  # removed a moment ago and still on its way down: it comes back
            self._post(spec.name, ev.SpecReplaced(spec))
        else:
            self._supervisor.add(Engine(id=self._new_id(), spec=spec))
        engine = self._supervisor.named(spec.name)
        if start and spec.autostart and engine is not None:
            assert self.starter is not None
            self.starter.start_with_dependencies(engine, by_user=False)

    async def _roll(self, plan: ReloadPlan, new: Mapping[str, EngineSpec]) -> None:
        """Restart what changed, one at a time, each only after its preflight passed."""
        for change in plan.restarts:
            engine = self._supervisor.named(change.name)
            if engine is None:
                continue
            changed = f"{', '.join(change.keys)} changed"
            engine_id = engine.id
            await self._supervisor.until(lambda key=engine_id: self._may_stop(key))  # type: ignore[misc]
            refusal = await inspect(self._preflight, replace(engine, spec=new[change.name]))
            engine = self._supervisor.named(change.name)
            if engine is None:
                continue
            if refusal is not None:
                self._post(change.name, ev.SpecReplaced(new[change.name], needs_restart=True))
                text = f"{changed}, but it would not start: {refusal.reason} ({refusal.remedy})"
                self._note(change.name, "restart-refused", f"{text}; it runs on as it was", "error")
                continue
            running = _has_process(engine) and engine.desired is Desired.RUNNING
            self._post(change.name, ev.SpecReplaced(new[change.name], needs_restart=running))
            if running:
                self._post(change.name, ev.RestartRequested(by_user=False, why=f"restarted: {changed}"))
                await self._supervisor.until(lambda key=engine_id: self._supervisor.arrived(key))  # type: ignore[misc]

    def _may_stop(self, engine_id: str) -> bool:
        engine = self._supervisor.get(engine_id)
        return engine is None or self._quiet(engine)

    def _post(self, name: str, event: ev.Event) -> None:
        engine = self._supervisor.named(name)
        if engine is not None:
            self._supervisor.post(engine.id, event)

    def _note(self, name: str, kind: str, text: str, level: str) -> None:
        engine = self._supervisor.named(name)
        if engine is not None:
            self._journal.record(name, engine.id, kind, text, level, engine.state.value, engine.substate)

    async def close(self) -> None:
        """Give up a rolling restart."""
        if self._rolling is not None:
            self._rolling.cancel()
            await asyncio.gather(self._rolling, return_exceptions=True)


def _has_process(engine: Engine) -> bool:
    return engine.process is not None or engine.launching or engine.state is State.ACTIVE


def _summary(plan: ReloadPlan) -> str:
    counts = {
        "added": len(plan.added),
        "removed": len(plan.removed),
        "changed in place": len(plan.in_place),
        "to restart": len(plan.restarts),
        "needing a restart": len(plan.needs_restart),
        "unchanged": plan.unchanged,
    }
    return "configuration read again: " + ", ".join(f"{n} {word}" for word, n in counts.items() if n)
