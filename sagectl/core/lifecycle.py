"""The engine's life as a pure function: `step(engine, event, now) -> (engine, actions)`.

    inactive ──start──▶ activating: queued ▶ preflight ▶ starting ──ready──▶ active
       ▲                     ▲                              │                   │
       │                  backoff ◀───────── settle ◀── deactivating: draining ▶ stopping ▶ releasing
       └────────────────────────────────────────┴─▶ failed

Two rules hold everywhere:

1. What the user wants (`desired`) and what is (`state`) are changed by different events. A start
   during a stop changes only `desired`; `_settle`, where every end arrives, looks at it.
2. `Launch` is asked for only where no process can be alive: `process` is None, `launching` and
   `tree_alive` are false.

An event of an earlier generation, or one that the present state has no use for, changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from sagectl.core import events as ev
from sagectl.core import holding, moves, restart, serving
from sagectl.core.actions import (
    Action,
    CancelTimer,
    Forget,
    MeasureProgress,
    Record,
    ReleaseShim,
    SetTimer,
    StopProbes,
)
from sagectl.core.engine import Desired, Engine, Moment, Outcome, State, Sub
from sagectl.core.events import Event, ProbeRole, Timer
from sagectl.core.exits import describe, unasked
from sagectl.core.moves import Step
from sagectl.core.probe import progress_interval, verdict
from sagectl.core.times import counted
from sagectl.plugin import Diagnosis, ExitStatus


def step(engine: Engine, event: Event, now: Moment) -> Step:
    """Answer one event. Pure; `now` brings time and chance."""
    if getattr(event, "generation", engine.generation) != engine.generation:
        return engine, ()
    after, actions = _dispatch(engine, event, now)
    if after.state in (State.INACTIVE, State.FAILED) and (after.reservation or after.queued_since):
        after = replace(after, reservation=None, queued_since=None)
    if (after.state, after.sub, after.generation) != (engine.state, engine.sub, engine.generation):
        after = replace(after, since=now.monotonic, since_wall=now.wall)
    return after, actions


def _dispatch(engine: Engine, event: Event, now: Moment) -> Step:  # noqa: C901 - one line an event
    match event:
        case ev.StartRequested():
            return _start(engine, event, now)
        case ev.StopRequested():
            return _stop(engine, event)
        case ev.RestartRequested():
            return _restart(engine, event, now)
        case ev.ResetFailed():
            return _reset_failed(engine)
        case ev.SpecReplaced():
            return _replace_spec(engine, event)
        case ev.Removed():
            return _remove(engine, event)
        case ev.DependenciesReady():
            return moves.preflight(engine) if _awaits_dependencies(engine) else (engine, ())
        case ev.DependenciesWaiting():
            return _keep_waiting(engine, event)
        case ev.MemoryNeeded() | ev.MemoryLacking() | ev.MemoryGranted():
            return holding.up(engine, event, now)
        case ev.PreflightPassed():
            return _preflight_passed(engine, event, now)
        case ev.PreflightRefused():
            return _preflight_refused(engine, event, now)
        case ev.Spawned():
            return _spawned(engine, event, now)
        case ev.SpawnFailed():
            return _spawn_failed(engine, event, now)
        case ev.ProbeSucceeded() | ev.ProbeFailed():
            return _probed(engine, event, now)
        case ev.ProgressMeasured():
            return _progress_measured(engine, event, now)
        case ev.StatusNotified():
            return _notified(engine, event, now)
        case ev.Drained():
            return moves.terminate(engine) if engine.sub is Sub.DRAINING else (engine, ())
        case ev.Exited():
            return _exited(engine, event, now)
        case ev.TreeEmpty():
            return _tree_empty(engine, now)
        case ev.MemoryReleased() | ev.MemoryExceeded() | ev.GpuFailed():
            return holding.down(engine, event, now)
        case ev.TreeStubborn():
            return _stubborn(engine, event)
        case ev.ServingChanged() | ev.ModelsLoaded():
            return serving.step(engine, event)
        case ev.TimerFired():
            return _timer_fired(engine, event, now)
        case ev.Reattached():
            return _reattached(engine, event, now)
        case ev.Vanished():
            return _exited(engine, ev.Exited(event.generation, ExitStatus(), left=0), now)
        case ev.Resumed():
            return _resumed(engine, now)
        case _:
            assert_never(event)


# --- Requests ----------------------------------------------------------------------------------


def _start(engine: Engine, event: ev.StartRequested, now: Moment) -> Step:
    if engine.removed or engine.held or (engine.sub is Sub.COMPLETED and not event.again):
        return engine, ()
    engine = replace(engine, desired=Desired.RUNNING)
    if event.by_user:
        engine = moves.clear_limits(engine)
    if engine.state in (State.INACTIVE, State.FAILED):
        return moves.begin(engine)
    if engine.sub is Sub.BACKOFF and event.by_user:
        after, actions = moves.begin(engine)
        return after, (CancelTimer(Timer.BACKOFF), *actions)
    if engine.state is State.DEACTIVATING and (event.again or event.by_user):
        return _follow(engine, "started by the user", even_completed=event.again), ()
    return engine, ()


def _follow(engine: Engine, why: str, *, even_completed: bool) -> Engine:
    """What ends now is followed by what was asked for, not by what its own outcome would lead to."""
    assert engine.outcome is not None
    if engine.outcome.sub is Sub.COMPLETED and not even_completed:
        return engine
    return replace(engine, outcome=Outcome(Sub.STOPPED, why))


def _stop(engine: Engine, event: ev.StopRequested) -> Step:
    engine = replace(engine, held=True) if event.hold else replace(engine, desired=Desired.STOPPED)
    stopped = Outcome(Sub.STOPPED, event.why)
    match engine.state:
        case State.INACTIVE | State.FAILED:
            if engine.sub is Sub.COMPLETED or event.hold:
                return engine, ()
            return replace(engine, state=State.INACTIVE, sub=Sub.STOPPED, reason=event.why), ()
        case State.ACTIVATING if engine.sub is not Sub.STARTING:
            after = replace(
                engine, state=State.INACTIVE, sub=Sub.STOPPED, reason=event.why, waiting_for=(),
                backoff_until=None,
            )  # fmt: skip
            return after, (CancelTimer(Timer.BACKOFF), Record("stopped", event.why), ReleaseShim())
        case State.ACTIVATING:
            return moves.terminate(replace(engine, outcome=stopped, reason=event.why))
        case State.ACTIVE:
            return moves.drain(replace(engine, outcome=stopped, reason=event.why), event.drain)
        case State.DEACTIVATING:
            engine = _follow(engine, event.why, even_completed=False)
            hurry = engine.sub is Sub.DRAINING and event.drain == 0
            return moves.terminate(engine) if hurry else (engine, ())
        case _:
            assert_never(engine.state)


def _restart(engine: Engine, event: ev.RestartRequested, now: Moment) -> Step:
    if engine.removed or engine.held:
        return engine, ()
    if event.by_user:
        engine = moves.clear_limits(engine)
    engine = replace(engine, desired=Desired.RUNNING)
    stopped = Outcome(Sub.STOPPED, event.why)
    match engine.state:
        case State.INACTIVE | State.FAILED:
            return moves.begin(engine)
        case State.ACTIVATING if engine.sub is not Sub.STARTING:
            after, actions = moves.begin(engine)
            return after, (CancelTimer(Timer.BACKOFF), *actions)
        case State.ACTIVATING:
            return moves.terminate(replace(engine, outcome=stopped, reason=event.why))
        case State.ACTIVE:
            return moves.drain(replace(engine, outcome=stopped, reason=event.why), None)
        case State.DEACTIVATING:
            return _follow(engine, event.why, even_completed=True), ()
        case _:
            assert_never(engine.state)


def _reset_failed(engine: Engine) -> Step:
    engine = moves.clear_limits(engine)
    if engine.state is not State.FAILED:
        return engine, ()
    engine = replace(engine, desired=Desired.STOPPED, diagnosis=None)
    return replace(engine, state=State.INACTIVE, sub=Sub.DEAD, reason=""), ()


def _replace_spec(engine: Engine, event: ev.SpecReplaced) -> Step:
    before = engine.spec
    alive = engine.process is not None or engine.launching or engine.tree_alive
    engine = replace(engine, spec=event.spec, removed=False, needs_restart=event.needs_restart and alive)
    if engine.sub in (Sub.QUEUED, Sub.PREFLIGHT) and before != event.spec:
        return moves.begin(engine)  # what is being waited for or checked is the old declaration
    if engine.state is State.ACTIVE and before.probe != event.spec.probe:
        return engine, (StopProbes(), *moves.steady_probes(engine))
    return engine, ()


def _remove(engine: Engine, event: ev.Removed) -> Step:
    engine, actions = _stop(engine, ev.StopRequested(why=event.why))
    engine = replace(engine, removed=True)
    if engine.state is State.INACTIVE:
        return engine, (*actions, Record("removed", event.why), Forget())
    return engine, actions


# --- The way up --------------------------------------------------------------------------------


def _keep_waiting(engine: Engine, event: ev.DependenciesWaiting) -> Step:
    if not _awaits_dependencies(engine):
        return engine, ()
    engine = holding.give_up(engine)
    after = replace(engine, waiting_for=event.names, reason=event.text, blocked=event.blocked)
    return after, (Record("blocked", event.text, "warning"),) if event.blocked else ()


def _awaits_dependencies(engine: Engine) -> bool:
    return engine.sub is Sub.QUEUED and not engine.memory_wanted


def _preflight_passed(engine: Engine, event: ev.PreflightPassed, now: Moment) -> Step:
    if engine.sub is not Sub.PREFLIGHT:
        return engine, ()
    passed = holding.give_up(engine) if event.without_memory else engine
    return moves.launch(replace(passed, plan=event.plan, port=event.port), now)


def _preflight_refused(engine: Engine, event: ev.PreflightRefused, now: Moment) -> Step:
    if engine.sub is not Sub.PREFLIGHT and not engine.memory_wanted:
        return engine, ()
    refusal = event.refusal
    diagnosis = Diagnosis(refusal.reason, refusal.remedy, refusal.retryable, refusal.arithmetic)
    outcome = Outcome(Sub.PREFLIGHT_FAILED, refusal.reason)
    return moves.settle(replace(engine, outcome=outcome, diagnosis=diagnosis), now)


def _spawned(engine: Engine, event: ev.Spawned, now: Moment) -> Step:
    if not engine.launching:
        return engine, ()
    engine = replace(engine, process=event.process, launching=False, tree_alive=True)
    if engine.sub is not Sub.STARTING:  # a stop came while the process was being born
        return moves.terminate(engine)
    assert engine.plan is not None
    record = Record("started", f"started, process {event.process.pid}")
    if not engine.plan.probes.startup:
        after, actions = moves.ready(engine, now)
        return after, (record, *actions)
    return engine, (record, moves.startup_probe(engine))


def _spawn_failed(engine: Engine, event: ev.SpawnFailed, now: Moment) -> Step:
    if not engine.launching:
        return engine, ()
    engine = replace(engine, launching=False, tree_alive=event.busy)
    if engine.outcome is None:
        engine = replace(engine, outcome=Outcome(Sub.PREFLIGHT_FAILED, event.text))
    ending: tuple[Action, ...] = (*moves.end_timers(), Record("spawn-failed", event.text, "error"))
    if event.busy:
        after, actions = moves.release(engine, "processes of an earlier start are still alive")
    else:
        after, actions = moves.settle(engine, now)
    return after, (*ending, *actions)


def _probed(engine: Engine, event: ev.ProbeSucceeded | ev.ProbeFailed, now: Moment) -> Step:
    if event.role is ProbeRole.STARTUP:
        if engine.sub is not Sub.STARTING or engine.process is None:
            return engine, ()
        if isinstance(event, ev.ProbeSucceeded):
            return moves.ready(engine, now)
        return replace(engine, reason=f"starting: {event.detail}"), ()
    if engine.state is not State.ACTIVE:
        return engine, ()
    if event.role is ProbeRole.READINESS:
        return _readiness(engine, event)
    return _liveness(engine, event)


def _readiness(engine: Engine, event: ev.ProbeSucceeded | ev.ProbeFailed) -> Step:
    count, tripped = verdict(engine.spec.probe, engine.readiness_failures, event)
    engine = replace(engine, readiness_failures=count)
    if engine.sub is Sub.UNREADY and isinstance(event, ev.ProbeSucceeded):
        return replace(engine, sub=Sub.READY, reason=""), (Record("ready", "readiness probe succeeds again"),)
    if engine.sub is Sub.READY and tripped and isinstance(event, ev.ProbeFailed):
        text = f"readiness probe failed {count} times: {event.detail}"
        return replace(engine, sub=Sub.UNREADY, reason=text), (Record("unready", text, "warning"),)
    return engine, ()


def _liveness(engine: Engine, event: ev.ProbeSucceeded | ev.ProbeFailed) -> Step:
    count, tripped = verdict(engine.spec.probe, engine.liveness_failures, event)
    engine = replace(engine, liveness_failures=count)
    if not tripped or not isinstance(event, ev.ProbeFailed):
        return engine, ()
    text = f"liveness probe failed {count} times: {event.detail}"
    after, actions = moves.terminate(replace(engine, outcome=Outcome(Sub.UNHEALTHY, text), reason=text))
    return after, (Record("unhealthy", text, "error"), *actions)


def _progress_measured(engine: Engine, event: ev.ProgressMeasured, now: Moment) -> Step:
    if engine.sub is not Sub.STARTING:
        return engine, ()
    policy = engine.spec.probe
    if event.advanced:
        engine = replace(engine, last_advance=max(engine.last_advance, now.monotonic))
    if now.monotonic - engine.last_advance < policy.startup_timeout:
        return engine, (SetTimer(engine.generation, Timer.STARTUP, progress_interval(policy)),)
    waiting = f": {event.waiting}" if event.waiting else ""
    text = f"not ready, and no sign of progress for {policy.startup_timeout:g} s{waiting}"
    after, actions = moves.terminate(replace(engine, outcome=Outcome(Sub.TIMEOUT, text), reason=text))
    return after, (Record("timeout", text, "error"), *actions)


def _notified(engine: Engine, event: ev.StatusNotified, now: Moment) -> Step:
    if event.extend is not None and engine.sub is Sub.STARTING:
        until = now.monotonic + event.extend - engine.spec.probe.startup_timeout
        engine = replace(engine, last_advance=max(engine.last_advance, until))
    if event.status is not None and engine.sub in (Sub.STARTING, Sub.READY, Sub.RUNNING):
        engine = replace(engine, reason=event.status)
    if event.extend is not None and engine.sub is Sub.STOPPING:
        return engine, (SetTimer(engine.generation, Timer.STOP, event.extend),)
    return engine, ()


# --- The way down ------------------------------------------------------------------------------


def _exited(engine: Engine, event: ev.Exited, now: Moment) -> Step:
    if engine.state not in (State.ACTIVE, State.DEACTIVATING) and engine.sub is not Sub.STARTING:
        return engine, ()
    outcome = engine.outcome or unasked(engine.spec.mode, event.status)
    engine, outcome, forgiven = holding.forgive(engine, event, outcome)
    engine = replace(
        engine, process=None, launching=False, tree_alive=event.left > 0, last_exit=event.status,
        outcome=outcome, diagnosis=event.diagnosis if outcome.failed else None,
    )  # fmt: skip
    level = "error" if outcome.failed else "info"
    record = Record("exited", describe(event.status), level)
    quiet: tuple[Action, ...] = (StopProbes(), *moves.end_timers(), record, *forgiven)
    if event.left:
        left = counted(event.left, "process", "processes")
        after, actions = moves.release(engine, f"ending {left} that it left behind")
    else:
        after, actions = moves.give_back(engine, now)
    return after, (*quiet, *actions)


def _tree_empty(engine: Engine, now: Moment) -> Step:
    if engine.sub is not Sub.RELEASING or engine.process is not None:
        return engine, ()
    return moves.give_back(replace(engine, tree_alive=False), now)


def _stubborn(engine: Engine, event: ev.TreeStubborn) -> Step:
    if engine.sub is not Sub.RELEASING:
        return engine, ()
    pids = ", ".join(str(pid) for pid in event.pids[:5])
    text = f"{counted(len(event.pids), 'process does', 'processes do')} not end even by SIGKILL: {pids}"
    if engine.reason == text:
        return engine, ()
    return replace(engine, reason=text), (Record("stubborn", text, "warning"),)


# --- Timers and a new daemon -------------------------------------------------------------------


def _timer_fired(engine: Engine, event: ev.TimerFired, now: Moment) -> Step:
    match event.timer:
        case Timer.STARTUP:
            return engine, (MeasureProgress(engine.generation),) if engine.sub is Sub.STARTING else ()
        case Timer.BACKOFF:
            return moves.begin(engine, after_failure=True) if engine.sub is Sub.BACKOFF else (engine, ())
        case Timer.DRAIN:
            if engine.sub is not Sub.DRAINING:
                return engine, ()
            text = "requests were still in flight at the deadline"
            after, actions = moves.terminate(engine)
            return after, (Record("drain-timeout", text, "warning"), *actions)
        case Timer.STOP:
            if engine.sub is not Sub.STOPPING or engine.launching:
                return engine, ()
            text = f"still alive {engine.spec.stop.timeout:g} s after the stop signal; killing it"
            after, actions = moves.release(engine, text)
            return after, (Record("stop-timeout", text, "warning"), *actions)
        case Timer.STABLE:
            return replace(engine, backoff_step=0) if engine.state is State.ACTIVE else engine, ()
        case _:
            assert_never(event.timer)


def _reattached(engine: Engine, event: ev.Reattached, now: Moment) -> Step:
    engine = replace(engine, process=event.process, launching=False, tree_alive=True)
    record = Record("adopted", f"adopted: process {event.process.pid} went on without a daemon")
    if engine.state is State.DEACTIVATING or engine.desired is Desired.STOPPED:
        after, actions = _go_on_down(engine)
        return after, (record, *actions)
    if engine.state is State.ACTIVE:
        after = replace(engine, readiness_failures=0, liveness_failures=0)
        stable = SetTimer(engine.generation, Timer.STABLE, restart.STABLE_AFTER)
        return after, (record, stable, *moves.steady_probes(after))
    return _reattached_starting(engine, record, now)


def _go_on_down(engine: Engine) -> Step:
    engine = replace(engine, outcome=engine.outcome or Outcome(Sub.STOPPED, "stopped by the user"))
    if engine.sub is Sub.RELEASING:
        return moves.release(engine, engine.reason)
    if engine.state is State.ACTIVE or engine.sub is Sub.DRAINING:
        return moves.drain(engine, None)
    return moves.terminate(engine)


def _reattached_starting(engine: Engine, record: Record, now: Moment) -> Step:
    engine = replace(
        engine, state=State.ACTIVATING, sub=Sub.STARTING, reason="starting", last_advance=now.monotonic,
        outcome=None, diagnosis=None, backoff_until=None, waiting_for=(),
    )  # fmt: skip
    if engine.plan is None or not engine.plan.probes.startup:
        after, actions = moves.ready(engine, now)
        return after, (record, *actions)
    timer = SetTimer(engine.generation, Timer.STARTUP, progress_interval(engine.spec.probe))
    return engine, (record, timer, moves.startup_probe(engine))


def _resumed(engine: Engine, now: Moment) -> Step:
    engine = replace(engine, process=None, launching=False, tree_alive=False)
    if engine.state is State.DEACTIVATING or engine.removed:
        outcome = engine.outcome or Outcome(Sub.STOPPED, engine.reason)
        return moves.settle(replace(engine, outcome=outcome), now)
    stopped = engine.desired is Desired.STOPPED
    if engine.state is State.FAILED or (stopped and engine.state is State.INACTIVE):
        return engine, (ReleaseShim(),)
    if stopped:
        return moves.settle(replace(engine, outcome=Outcome(Sub.STOPPED, "stopped by the user")), now)
    if engine.sub is Sub.BACKOFF and engine.backoff_until is not None:
        left = max(0.0, engine.backoff_until - now.monotonic)
        return engine, (SetTimer(engine.generation, Timer.BACKOFF, left),)
    return moves.begin(engine)
