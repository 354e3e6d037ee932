"""The moves of an engine's life: what every transition is made of. `lifecycle` says when.

Each takes the engine and returns it moved, with the actions that the move asks for.
"""

from __future__ import annotations

from dataclasses import replace

from sagectl.core import restart, serving
from sagectl.core.actions import (
    Action,
    AwaitDependencies,
    AwaitMemory,
    AwaitRelease,
    CancelTimer,
    Drain,
    Forget,
    KillTree,
    Launch,
    Preflight,
    Record,
    ReleaseShim,
    SendSignal,
    SetTimer,
    StartProbe,
    StopProbes,
)
from sagectl.core.engine import Desired, Engine, Moment, Outcome, State, Sub
from sagectl.core.events import ProbeRole, Timer
from sagectl.core.probe import progress_interval
from sagectl.plugin import Mode

Step = tuple[Engine, tuple[Action, ...]]


def clear_limits(engine: Engine) -> Engine:
    return replace(engine, starts=(), unready_starts=0, backoff_step=0, consecutive_failures=0)


def begin(engine: Engine, *, after_failure: bool = False) -> Step:
    """Start a new generation from nothing. After a failure the dependencies were up once already."""
    engine = _next_generation(engine)
    if engine.spec.depends_on and not after_failure:
        waiting = ", ".join(engine.spec.depends_on)
        engine = replace(
            engine, state=State.ACTIVATING, sub=Sub.QUEUED, reason=f"waiting for {waiting}",
            waiting_for=engine.spec.depends_on,
        )  # fmt: skip
        return engine, (AwaitDependencies(engine.generation),)
    return preflight(engine)


def _next_generation(engine: Engine) -> Engine:
    return replace(
        engine, generation=engine.generation + 1, plan=None, went_ready=False, ready_since=None, outcome=None,
        diagnosis=None, readiness_failures=0, liveness_failures=0, backoff_until=None, waiting_for=(),
        blocked=False, needs_restart=False, memory_wanted=False,
    )  # fmt: skip


def preflight(engine: Engine) -> Step:
    after = replace(
        engine,
        state=State.ACTIVATING,
        sub=Sub.PREFLIGHT,
        reason="checking what it needs",
        waiting_for=(),
        blocked=False,
    )
    return after, (Preflight(engine.generation),)


def queue_for_memory(engine: Engine, now: Moment) -> Step:
    since = now.monotonic if engine.queued_since is None else engine.queued_since
    after = replace(
        engine, sub=Sub.QUEUED, memory_wanted=True, queued_since=since, reason="waiting for GPU memory"
    )
    return after, (AwaitMemory(engine.generation),)


def launch(engine: Engine, now: Moment) -> Step:
    assert engine.plan is not None
    assert engine.process is None
    assert not engine.launching
    assert not engine.tree_alive
    after = replace(
        engine, state=State.ACTIVATING, sub=Sub.STARTING, reason="starting", launching=True,
        last_advance=now.monotonic,
    )  # fmt: skip
    return after, (
        Launch(engine.generation, engine.plan),
        SetTimer(engine.generation, Timer.STARTUP, progress_interval(engine.spec.probe)),
    )


def startup_probe(engine: Engine) -> StartProbe:
    assert engine.plan is not None
    policy = engine.spec.probe
    return StartProbe(
        engine.generation, ProbeRole.STARTUP, engine.plan.probes.startup, policy.interval, policy.timeout
    )


def ready(engine: Engine, now: Moment) -> Step:
    serves = engine.spec.mode is Mode.SERVE
    first = not engine.went_ready
    took = now.monotonic - engine.process.started if engine.process else 0.0
    engine = replace(
        engine, state=State.ACTIVE, sub=Sub.READY if serves else Sub.RUNNING, reason="", went_ready=True,
        ready_since=now.monotonic if first else engine.ready_since, consecutive_failures=0, unready_starts=0,
        readiness_failures=0, liveness_failures=0, disturbances=0,
    )  # fmt: skip
    return engine, (
        CancelTimer(Timer.STARTUP),
        SetTimer(engine.generation, Timer.STABLE, restart.STABLE_AFTER),
        Record("ready", f"ready after {took:.1f} s") if serves else Record("running", "running"),
        *steady_probes(engine),
    )


def steady_probes(engine: Engine) -> tuple[Action, ...]:
    if engine.plan is None:
        return ()
    policy = engine.spec.probe
    wanted = (
        (ProbeRole.READINESS, engine.plan.probes.readiness),
        (ProbeRole.LIVENESS, engine.plan.probes.liveness),
    )
    return tuple(
        StartProbe(engine.generation, role, (probe,), policy.interval, policy.timeout)
        for role, probe in wanted
        if probe is not None
    )


def drain(engine: Engine, drain: float | None) -> Step:
    seconds = engine.spec.stop.drain if drain is None else drain
    if engine.spec.mode is not Mode.SERVE or engine.port is None or seconds <= 0:
        return terminate(engine)
    after = replace(engine, state=State.DEACTIVATING, sub=Sub.DRAINING)
    return after, (
        StopProbes(),
        CancelTimer(Timer.STABLE),
        Drain(engine.generation),
        SetTimer(engine.generation, Timer.DRAIN, seconds),
    )


def terminate(engine: Engine) -> Step:
    """Ask the main process to end. `outcome` is set by whoever wants it to."""
    assert engine.outcome is not None
    engine = replace(engine, state=State.DEACTIVATING, sub=Sub.STOPPING)
    quiet: tuple[Action, ...] = (StopProbes(), *end_timers())
    if engine.launching:  # the signal follows in `_spawned`
        return engine, quiet
    stop = engine.spec.stop
    return engine, (
        *quiet,
        SendSignal(engine.generation, stop.signal),
        SetTimer(engine.generation, Timer.STOP, stop.timeout),
    )


def release(engine: Engine, why: str) -> Step:
    """SIGKILL whatever is left of the tree, until nothing is."""
    after = replace(engine, state=State.DEACTIVATING, sub=Sub.RELEASING, reason=why)
    return after, (KillTree(engine.generation),)


def give_back(engine: Engine, now: Moment) -> Step:
    """Nothing of the tree is alive. It is down once the GPU driver has its memory back, too."""
    if engine.reservation is None:
        return settle(engine, now)
    after = replace(
        engine, state=State.DEACTIVATING, sub=Sub.RELEASING,
        reason="waiting until the GPU driver has its memory back",
    )  # fmt: skip
    return after, (AwaitRelease(engine.generation),)


def end_timers() -> tuple[Action, ...]:
    return tuple(CancelTimer(t) for t in (Timer.STARTUP, Timer.STABLE, Timer.DRAIN, Timer.STOP))


def settle(engine: Engine, now: Moment) -> Step:
    """Every end arrives here, with nothing of the engine alive and `outcome` set."""
    outcome = engine.outcome
    assert outcome is not None
    assert engine.process is None
    assert not engine.tree_alive
    plan = engine.plan
    if engine.needs_restart:  # the plan is not that of the present declaration
        engine = replace(engine, plan=None, needs_restart=False)
    if engine.removed:
        gone = replace(engine, state=State.INACTIVE, sub=Sub.DEAD, reason=outcome.text)
        return gone, (Record("removed", outcome.text), ReleaseShim(), Forget())
    if outcome.sub is Sub.COMPLETED:
        done = replace(
            engine, state=State.INACTIVE, sub=Sub.COMPLETED, reason="", desired=Desired.STOPPED,
            consecutive_failures=0, unready_starts=0, backoff_step=0,
        )  # fmt: skip
        return serving.completed(done, plan), (Record("completed", outcome.text), ReleaseShim())
    if engine.desired is Desired.STOPPED or engine.held:
        down = replace(engine, state=State.INACTIVE, sub=Sub.STOPPED, reason=outcome.text)
        return down, (Record("stopped", outcome.text), ReleaseShim())
    if not outcome.failed:
        return begin(engine)
    return _after_failure(replace(engine, consecutive_failures=engine.consecutive_failures + 1), outcome, now)


def _after_failure(engine: Engine, outcome: Outcome, now: Moment) -> Step:
    decision = restart.decide(
        engine.spec.restart,
        restart.History(engine.starts, engine.unready_starts, engine.backoff_step),
        now=now.monotonic,
        chance=now.chance,
        went_ready=engine.went_ready,
        hopeless=engine.diagnosis is not None and not engine.diagnosis.retryable,
    )
    what = engine.diagnosis.summary.rstrip(".") if engine.diagnosis else outcome.text
    if isinstance(decision, restart.GiveUp):
        sub = Sub.START_LIMIT if decision.limited else outcome.sub
        reason = f"{what}; {decision.text}" if decision.limited else what
        failed = replace(engine, state=State.FAILED, sub=sub, reason=reason)
        return failed, (Record("failed", f"{what}; {decision.text}", "error"), ReleaseShim())
    engine = replace(
        engine, restart_count=engine.restart_count + 1, starts=decision.history.starts,
        unready_starts=decision.history.unready, backoff_step=decision.history.step,
    )  # fmt: skip
    if decision.delay <= 0:
        return _again_at_once(engine, what, now)
    text = f"{what}; restarting in {decision.delay:.1f} s"
    waiting = replace(
        engine, state=State.ACTIVATING, sub=Sub.BACKOFF, reason=text,
        backoff_until=now.monotonic + decision.delay,
    )  # fmt: skip
    return waiting, (
        Record("restart", text, "warning"),
        SetTimer(engine.generation, Timer.BACKOFF, decision.delay),
    )


def _again_at_once(engine: Engine, what: str, now: Moment) -> Step:
    record = Record("restart", f"{what}; restarting at once", "warning")
    plan = engine.plan
    # Without one, settle dropped it, because a reload made it outdated. And GPUs are loaded one at a time.
    if plan is None or engine.reservation is not None:
        after, actions = begin(engine, after_failure=True)
        return after, (*actions, record)
    # What worked a moment ago needs no second preflight: this is the quick way back.
    after, actions = launch(replace(_next_generation(engine), plan=plan), now)
    return after, (*actions, record)
