"""GPU memory in an engine's life: waited for, granted, given back. Called by `lifecycle`."""

from __future__ import annotations

from dataclasses import replace

from sagectl.core import events as ev
from sagectl.core import moves
from sagectl.core.actions import Plan, Record
from sagectl.core.engine import Engine, Moment, Outcome, State, Sub
from sagectl.core.moves import Step

DISTURBANCES = 3
"""So many starts in a row may be broken by neighbours before that is held against the engine."""


def up(engine: Engine, event: ev.MemoryNeeded | ev.MemoryLacking | ev.MemoryGranted, now: Moment) -> Step:
    """On the way up."""
    match event:
        case ev.MemoryNeeded():
            return moves.queue_for_memory(engine, now) if engine.sub is Sub.PREFLIGHT else (engine, ())
        case ev.MemoryLacking():
            return lacking(engine, event)
        case ev.MemoryGranted():
            return granted(engine, event)


def down(engine: Engine, event: ev.MemoryReleased | ev.MemoryExceeded | ev.GpuFailed, now: Moment) -> Step:
    """On the way down, or what leads there."""
    match event:
        case ev.MemoryReleased():
            return released(engine, event, now)
        case ev.MemoryExceeded():
            return exceeded(engine, event)
        case ev.GpuFailed():
            return gpu_failed(engine, event)


def lacking(engine: Engine, event: ev.MemoryLacking) -> Step:
    if not engine.memory_wanted or engine.sub is not Sub.QUEUED:
        return engine, ()
    after = replace(give_up(engine), reason=event.text, waiting_for=event.names)
    first = engine.reason == "waiting for GPU memory"
    return after, (Record("queued", event.text),) if first else ()


def give_up(engine: Engine) -> Engine:
    """What it has of an earlier start goes to others: it waits for somebody, or needs none any more."""
    return replace(engine, reservation=None)


def granted(engine: Engine, event: ev.MemoryGranted) -> Step:
    if not engine.memory_wanted or engine.sub is not Sub.QUEUED:
        return engine, ()
    after = replace(
        engine, sub=Sub.PREFLIGHT, memory_wanted=False, reservation=event.reservation, waiting_for=(),
        reason="planning its start", queued_since=None,
    )  # fmt: skip
    return after, (Plan(engine.generation),)


def forgive(engine: Engine, event: ev.Exited, outcome: Outcome) -> tuple[Engine, Outcome, tuple[Record, ...]]:
    """A start that a neighbour's stop may have broken is tried again and not counted, a few times."""
    loading = engine.sub is Sub.STARTING and not engine.went_ready and engine.outcome is None
    if not event.disturbed or not loading or not outcome.failed or engine.disturbances >= DISTURBANCES:
        return engine, outcome, ()
    text = f"{event.disturbed} while it loaded; it starts again, which is not counted"
    forgiven = replace(engine, disturbances=engine.disturbances + 1)
    return forgiven, Outcome(Sub.STOPPED, text), (Record("disturbed", text, "warning"),)


def released(engine: Engine, event: ev.MemoryReleased, now: Moment) -> Step:
    if engine.sub is not Sub.RELEASING or engine.process is not None or engine.tree_alive:
        return engine, ()
    after, actions = moves.settle(engine, now)
    return after, (Record("not-released", event.late, "warning"), *actions) if event.late else actions


def exceeded(engine: Engine, event: ev.MemoryExceeded) -> Step:
    """A failure like any other: with backoff and a limit, or it would be restarted for ever."""
    if engine.state is not State.ACTIVE:
        return engine, ()
    outcome = Outcome(Sub.UNHEALTHY, event.text)
    return moves.drain(replace(engine, outcome=outcome, reason=event.text), None)


def gpu_failed(engine: Engine, event: ev.GpuFailed) -> Step:
    if engine.state is not State.ACTIVE and engine.sub is not Sub.STARTING:
        return engine, ()
    outcome = Outcome(Sub.UNHEALTHY, event.text)
    after, actions = moves.terminate(replace(engine, outcome=outcome, reason=event.text))
    return after, (Record("gpu-failed", event.text, "error"), *actions)
