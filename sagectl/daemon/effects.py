"""Carries out the reducer's actions. Action → adapter → event: what comes of each is posted back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, assert_never

from sagectl.config import envfile, persist
from sagectl.config.paths import Paths
from sagectl.core import actions as act
from sagectl.core import events as ev
from sagectl.core.engine import Engine, Process
from sagectl.core.events import Event, ProbeRole, Timer
from sagectl.core.exits import out_of_memory, unasked
from sagectl.core.probe import Measurement, advance
from sagectl.core.sizing import Demand
from sagectl.daemon import environment
from sagectl.daemon.accounts import Account, account
from sagectl.daemon.preflight import Planned, Preflight
from sagectl.daemon.requests import request_of
from sagectl.plugin import Diagnosis, EngineKind, ExitStatus, FailureReport, Refusal
from sagectl.system import connections, logfiles
from sagectl.system.groups import unenforced
from sagectl.system.journal import Journal
from sagectl.system.probes import ProbeOutcome, Prober, Target
from sagectl.system.processes import LaunchOrder, Processes

_T = TypeVar("_T")

LOG_LINES = 1000
"""How many of an engine's last lines its kind is shown to explain a failure."""
LOG_BYTES = 256 << 10
DRAIN_POLL = 0.1
"""Seconds between two looks at the requests in flight."""


class Writer(Protocol):
    """The supervisor, as effects see it."""

    def post(self, engine_id: str, event: Event) -> None: ...

    def get(self, engine_id: str) -> Engine | None: ...

    def named(self, name: str) -> Engine | None: ...


class Memory(Protocol):
    """The GPU accounts, as effects see them."""

    def demand(self, engine: Engine, asked: Demand) -> None: ...

    def await_memory(self, engine: Engine) -> None: ...

    def await_release(self, engine: Engine) -> None: ...

    def disturbed(self, engine: Engine) -> str: ...

    def forget(self, engine_id: str) -> None: ...

    def environment(self, engine: Engine) -> Mapping[str, str]: ...

    def cpus(self, engine: Engine) -> tuple[int, ...] | None: ...


@dataclass(frozen=True, slots=True)
class World:
    """What effects work with."""

    paths: Paths
    kinds: Mapping[str, EngineKind[Any]]
    inherited: Mapping[str, str]
    journal: Journal


class Effects:
    """One adapter call for each action, and the callbacks by which processes and probes report."""

    def __init__(self, world: World, supervisor: Writer, preflight: Preflight, memory: Memory) -> None:
        self._world = world
        self._supervisor = supervisor
        self._preflight = preflight
        self._memory = memory
        self.processes: Processes | None = None
        self.prober = Prober(self._probed)
        self._timers: dict[tuple[str, Timer], asyncio.TimerHandle] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._measured: dict[str, tuple[int, Measurement]] = {}
        self.said_ready: dict[str, int] = {}
        """Adopted engines by name → the generation that had said READY=1 to an earlier daemon."""

    # --- Actions --------------------------------------------------------------------------------

    def perform(self, engine: Engine, action: act.Action) -> None:  # noqa: C901 - one line an action
        """Do what the reducer asked for."""
        match action:
            case act.Preflight():
                self._run(engine.id, "preflight", self._check(engine))
            case act.Plan():
                self._run(engine.id, "preflight", self._plan(engine))
            case act.AwaitMemory():
                self._memory.await_memory(engine)
            case act.AwaitRelease():
                self._memory.await_release(engine)
            case act.Launch():
                self._launch(engine, action)
            case act.SendSignal():
                self._shims.signal(engine.name, action.generation, action.signal)
            case act.KillTree():
                self._shims.kill_tree(engine.name, action.generation)
            case act.ReleaseShim():
                self._shims.release(engine.name)
            case act.Drain():
                self._run(engine.id, "drain", self._drain(engine))
            case act.StartProbe():
                self._start_probe(engine, action)
            case act.StopProbes():
                self.prober.stop(engine.id)
            case act.MeasureProgress():
                self._run(engine.id, "measure", self._measure(engine))
            case act.SetTimer():
                self._set_timer(engine.id, action)
            case act.CancelTimer():
                self._cancel_timer(engine.id, action.timer)
            case act.Forget():
                self._forget(engine)
            case act.AwaitDependencies() | act.Record():
                raise AssertionError("the supervisor does this itself")
            case _:
                assert_never(action)

    @property
    def _shims(self) -> Processes:
        assert self.processes is not None
        return self.processes

    def _run(self, engine_id: str, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Run one task per engine and purpose; a newer one replaces it."""
        key = (engine_id, what)
        previous = self._tasks.pop(key, None)
        if previous is not None:
            previous.cancel()
        task = asyncio.get_running_loop().create_task(work, name=f"{what} {engine_id}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._done(key, done))

    def _done(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": f"{key[1]} of {key[0]} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _check(self, engine: Engine) -> None:
        answer = await self._asked(engine, self._preflight.check(engine))
        if isinstance(answer, Demand):
            self._memory.demand(engine, answer)
            self._supervisor.post(engine.id, ev.MemoryNeeded(engine.generation))
        else:
            self._checked(engine, answer, without_memory=True)

    async def _plan(self, engine: Engine) -> None:
        self._checked(engine, await self._asked(engine, self._preflight.plan(engine)))

    def _checked(self, engine: Engine, answer: Planned | Refusal, *, without_memory: bool = False) -> None:
        if isinstance(answer, Refusal):
            self._supervisor.post(engine.id, ev.PreflightRefused(engine.generation, answer))
        else:
            plan, port = answer
            passed = ev.PreflightPassed(engine.generation, plan, port, without_memory)
            self._supervisor.post(engine.id, passed)

    async def _asked(self, engine: Engine, work: Coroutine[Any, Any, _T]) -> _T:
        """Ask an engine's kind. What it raises must not leave the engine in preflight for ever."""
        try:
            return await work
        except Exception as error:
            text = f"the kind {engine.spec.kind!r} failed to plan the start: {type(error).__name__}: {error}"
            refusal = self._preflight.broken_plugin(text)
            self._supervisor.post(engine.id, ev.PreflightRefused(engine.generation, refusal))
            raise

    def _launch(self, engine: Engine, action: act.Launch) -> None:
        spec = engine.spec
        state_dir = self._world.paths.engine_state / engine.name
        try:
            user = account(spec.user)
            _make_state_dir(state_dir, user)
            variables = self._environment(engine, action.plan.env, user)
        except (OSError, ValueError, LookupError) as error:
            self._supervisor.post(
                engine.id, ev.SpawnFailed(action.generation, f"cannot prepare the start: {error}")
            )
            return
        order = LaunchOrder(
            generation=action.generation,
            argv=action.plan.argv,
            env=variables,
            cwd=action.plan.cwd or str(state_dir),
            user=None if user is None else (user.uid, user.gid, user.groups),
            context=context_of(engine),
            rlimits=engine.spec.limits,
            nice=engine.spec.nice,
            oom_score_adjust=engine.spec.oom_score_adjust,
            cpu_affinity=engine.spec.cpu_affinity or self._memory.cpus(engine),
            memory_max=engine.spec.memory_max,
            cpu_weight=engine.spec.cpu_weight,
        )
        asked = {"memory_max": order.memory_max, "cpu_weight": order.cpu_weight}
        for lacking in unenforced(self._shims.groups, asked):
            self._note(engine.name, "not-enforced", lacking, "warning")
        self._measured.pop(engine.id, None)
        self._shims.launch(engine.name, order)

    def _environment(
        self, engine: Engine, planned: Mapping[str, str], user: Account | None
    ) -> dict[str, str]:
        spec = engine.spec
        file = envfile.read(spec.env_file) if spec.env_file else {}
        return environment.compose(
            self._world.inherited,
            plan=planned,
            env=spec.env,
            env_file=file,
            gpus=self._memory.environment(engine),
            user={} if user is None else user.variables,
        )

    async def _drain(self, engine: Engine) -> None:
        assert engine.port is not None
        while await asyncio.to_thread(connections.in_flight, engine.port):  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(DRAIN_POLL)
        self._supervisor.post(engine.id, ev.Drained(engine.generation))

    async def _measure(self, engine: Engine) -> None:
        reading = await self._shims.measure(engine.name, engine.generation)
        if reading is None:
            what: str | None = None
        else:
            now = Measurement(reading.log_written, reading.rss_bytes, reading.read_bytes)
            generation, before = self._measured.get(engine.id, (engine.generation, None))
            what = advance(before if generation == engine.generation else None, now)
            self._measured[engine.id] = (engine.generation, now)
        waiting = self.prober.last_detail(engine.id) or ""
        event = ev.ProgressMeasured(engine.generation, what is not None, what or "", waiting)
        self._supervisor.post(engine.id, event)

    def target(self, engine: Engine) -> Target:
        """Where and as whom a planned engine is asked anything."""
        assert engine.plan is not None
        user = account(engine.spec.user)
        ready = self.said_ready.get(engine.name) == engine.generation
        return Target(
            host=engine.spec.host,
            port=engine.port,
            env=self._environment(engine, engine.plan.env, user),
            cwd=engine.plan.cwd or str(self._world.paths.engine_state / engine.name),
            user=None if user is None else (user.uid, user.gid, user.groups),
            notify_state=lambda: ready,
        )

    def _start_probe(self, engine: Engine, action: act.StartProbe) -> None:
        self.prober.start(
            engine.id,
            action.generation,
            action.role,
            self.target(engine),
            action.probes,
            action.interval,
            action.timeout,
        )

    def _set_timer(self, engine_id: str, action: act.SetTimer) -> None:
        self._cancel_timer(engine_id, action.timer, tasks=False)
        loop = asyncio.get_running_loop()
        self._timers[engine_id, action.timer] = loop.call_later(
            action.seconds, self._fire, engine_id, action.generation, action.timer
        )

    def _fire(self, engine_id: str, generation: int, timer: Timer) -> None:
        self._timers.pop((engine_id, timer), None)
        self._supervisor.post(engine_id, ev.TimerFired(generation, timer))

    def _cancel_timer(self, engine_id: str, timer: Timer, *, tasks: bool = True) -> None:
        handle = self._timers.pop((engine_id, timer), None)
        if handle is not None:
            handle.cancel()
        draining = self._tasks.pop((engine_id, "drain"), None) if tasks and timer is Timer.DRAIN else None
        # Not from within itself: `Drained` comes from this very task.
        if draining is not None and draining is not asyncio.current_task():
            draining.cancel()

    def _forget(self, engine: Engine) -> None:
        self.prober.stop(engine.id)
        self._memory.forget(engine.id)
        self._measured.pop(engine.id, None)
        for timer in Timer:
            self._cancel_timer(engine.id, timer)
        for key in [key for key in self._tasks if key[0] == engine.id]:
            self._tasks.pop(key).cancel()

    async def close(self) -> None:
        """Stop asking, waiting and timing; engines and shims are left alone."""
        for engine_id, timer in list(self._timers):
            self._cancel_timer(engine_id, timer)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.prober.close()

    # --- Reports of processes and probes ----------------------------------------------------------

    def _post_named(self, name: str, event: Event) -> None:
        engine = self._supervisor.named(name)
        if engine is not None:
            self._supervisor.post(engine.id, event)

    def spawned(self, name: str, generation: int, process: Process) -> None:
        """The shim started the process."""
        self._post_named(name, ev.Spawned(generation, process))

    def spawn_failed(self, name: str, generation: int, text: str, busy: bool = False) -> None:
        """The shim could not, or would not."""
        self._post_named(name, ev.SpawnFailed(generation, text, busy))

    def exited(self, name: str, generation: int, status: ExitStatus, left: int) -> None:
        """The main process ended."""
        engine = self._supervisor.named(name)
        if engine is None or engine.generation != generation:
            return
        outcome = engine.outcome or unasked(engine.spec.mode, status)
        diagnosis = self.diagnose(engine, status) if outcome.failed else None
        disturbed = self._memory.disturbed(engine) if outcome.failed else ""
        self._supervisor.post(engine.id, ev.Exited(generation, status, left, diagnosis, disturbed))

    def tree_empty(self, name: str, generation: int) -> None:
        """Nothing of the tree is left."""
        self._post_named(name, ev.TreeEmpty(generation))

    def stubborn(self, name: str, generation: int, pids: tuple[int, ...]) -> None:
        """Something survives SIGKILL."""
        self._post_named(name, ev.TreeStubborn(generation, pids))

    def notified(self, name: str, generation: int, fields: Mapping[str, str]) -> None:
        """The engine spoke by sd_notify."""
        engine = self._supervisor.named(name)
        if engine is None or engine.generation != generation:
            return
        self.prober.notified(engine.id, generation, fields)
        extend = fields.get("EXTEND_TIMEOUT_USEC", "")
        if "STATUS" in fields or extend.isdecimal():
            seconds = int(extend) / 1e6 if extend.isdecimal() else None
            self._supervisor.post(engine.id, ev.StatusNotified(generation, fields.get("STATUS"), seconds))

    def log_trouble(self, name: str, text: str) -> None:
        """The shim could not write the engine's log."""
        self._note(name, "log-trouble", text, "warning")

    def shim_replaced(self, name: str, text: str) -> None:
        """A shim died and another one watches its engine now."""
        self._note(name, "shim-replaced", text, "warning")

    def _note(self, name: str, kind: str, text: str, level: str) -> None:
        engine = self._supervisor.named(name)
        if engine is not None:
            self._world.journal.record(
                name, engine.id, kind, text, level, engine.state.value, engine.substate
            )

    def _probed(self, key: str, generation: int, role: ProbeRole, outcome: ProbeOutcome) -> None:
        event: Event
        if outcome.ok:
            event = ev.ProbeSucceeded(generation, role)
        else:
            event = ev.ProbeFailed(generation, role, outcome.detail, outcome.timed_out, outcome.advancing)
        self._supervisor.post(key, event)

    # --- Explaining -------------------------------------------------------------------------------

    def diagnose(self, engine: Engine, status: ExitStatus | None) -> Diagnosis | None:
        """Ask the engine's kind what its last log lines mean."""
        kind = self._world.kinds.get(engine.spec.kind)
        if kind is None:
            return None
        position = engine.process.log_position if engine.process else 0
        path = self._world.paths.log / f"{engine.name}.log"
        lines = logfiles.last_lines_since(path, position, LOG_LINES, LOG_BYTES)
        request = request_of(
            engine.spec,
            engine.port,
            models=self._world.paths.models,
            state_dir=self._world.paths.engine_state / engine.name,
            reservation=engine.reservation,
        )
        report = FailureReport("running" if engine.went_ready else "starting", status, tuple(lines))
        try:
            return kind.explain(request, report) or (out_of_memory(status) if status else None)
        except Exception as error:  # a plugin's fault costs the explanation, not the restart
            text = f"the kind {engine.spec.kind!r} failed to explain: {type(error).__name__}: {error}"
            self._note(engine.name, "plugin-error", text, "error")
            return None


def context_of(engine: Engine) -> dict[str, Any]:
    """What the shim keeps beside the process, enough to rebuild the engine without the database."""
    return {"engine": persist.dump_engine(engine)}


def _make_state_dir(path: Path, user: Account | None) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is None:
        return
    found = path.stat()
    if (found.st_uid, found.st_gid) != (user.uid, user.gid):  # a read-only file system refuses it anyway
        os.chown(path, user.uid, user.gid)
