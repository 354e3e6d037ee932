"""Why an engine is as it is, from its state alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagectl.core.engine import Desired, Engine, State, Sub
from sagectl.core.times import rfc3339
from sagectl.system.journal import Entry


def explanation(engine: Engine, history: Sequence[Entry]) -> dict[str, Any]:
    """INTERFACE's fields of `explain` but for GPU memory, with the counters, notes and recent events."""
    return {
        "engine": engine.name,
        "decision": decision(engine),
        "reason": engine.reason or reason(engine),
        "waiting_for": list(engine.waiting_for),
        "remedy": engine.diagnosis.remedy if engine.diagnosis else "",
        "arithmetic": list(engine.diagnosis.arithmetic) if engine.diagnosis else [],
        "desired": engine.desired.value,
        "restarts": restarts(engine),
        "command": list(engine.plan.argv) if engine.plan else [],
        "notes": list(engine.plan.notes) if engine.plan else [],
        "history": [
            {"id": e.id, "at": rfc3339(e.at), "kind": e.kind, "level": e.level, "text": e.text}
            for e in history
        ],
    }


def decision(engine: Engine) -> str:
    """One word for what was decided about the engine."""
    if engine.state is State.FAILED:
        return "refused" if engine.sub is Sub.PREFLIGHT_FAILED else "failed"
    if engine.sub is Sub.QUEUED:
        return "queued"
    if engine.sub is Sub.BACKOFF:
        return "restarting"
    if engine.state is State.ACTIVE:
        return "running"
    if engine.state is State.ACTIVATING:
        return "starting"
    if engine.state is State.DEACTIVATING:
        return "stopping"
    return "completed" if engine.sub is Sub.COMPLETED else "stopped"


def reason(engine: Engine) -> str:
    """Words for a state that nobody gave a reason for."""
    if engine.state is State.ACTIVE:
        return "it is wanted and works"
    if engine.state is State.INACTIVE and engine.sub is Sub.DEAD:
        if engine.desired is Desired.STOPPED and not engine.spec.autostart:
            return "nobody started it, and autostart is off"
        return "it was not started yet"
    return ""


def restarts(engine: Engine) -> dict[str, Any]:
    """How the restart policy stands, with its arithmetic."""
    policy = engine.spec.restart
    limit = f"{policy.limit} restarts within {policy.window:g} s" if policy.limit else "no limit"
    return {
        "policy": policy.policy.value,
        "count": engine.restart_count,
        "consecutive_failures": engine.consecutive_failures,
        "within_window": len(engine.starts),
        "never_ready_in_a_row": engine.unready_starts,
        "limit": limit,
        "delay_seconds": policy.delay,
        "max_delay_seconds": policy.max_delay,
        "needs_restart": engine.needs_restart,
    }
