"""Values of the core as the API's JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sagectl.config import persist
from sagectl.core.engine import Engine, ServingPhase, State, Sub
from sagectl.core.reload import ReloadPlan
from sagectl.core.sizes import GIB
from sagectl.core.times import rfc3339
from sagectl.plugin import ExitStatus, Mode, Probes

if TYPE_CHECKING:
    from sagectl.system.journal import Entry

_YEAR_3000 = 32_503_680_000


def engine_json(
    engine: Engine,
    *,
    log_path: str,
    progress: dict[str, Any] | None,
    now: float | None = None,
    measured_gb: float | None = None,
) -> dict[str, Any]:
    """An engine as users read it.

    Args:
        measured_gb: of GPU memory, GiB, on the GPU where that is most.
        now: CLOCK_MONOTONIC, as in the engine's own times.
    """
    spec, process = engine.spec, engine.process
    elapsed = (time.monotonic() if now is None else now) - process.started if process else None
    return {
        "engine_id": engine.id,
        "name": spec.name,
        "engine_kind": spec.kind,
        "model_id": spec.model,
        "state": engine.state.value,
        "substate": engine.substate,
        "reason": engine.reason,
        "desired": engine.desired.value,
        "pid": process.pid if process else None,
        "port": engine.port,
        "address": _address(spec.host, engine.port),
        **_gpus(engine),
        "measured_memory_gb": measured_gb,
        "uptime_seconds": None if elapsed is None else round(max(0.0, elapsed), 3),
        "restart_count": engine.restart_count,
        "consecutive_failures": engine.consecutive_failures,
        "last_exit_code": _exit_code(engine.last_exit),
        **_health(engine),
        "progress": progress,
        "priority": spec.priority.value,
        "labels": dict(spec.labels),
        **persist.grants(spec),
        "mode": spec.mode.value,
        "group": spec.group,
        "transient": engine.transient,
        "autostart": spec.autostart,
        "needs_restart": engine.needs_restart,
        "since": rfc3339(engine.since_wall) if engine.since_wall else None,
        "started_at": rfc3339(process.started_wall) if process else None,
        **_trouble(engine),
        **_service(engine),
        "log_path": log_path,
    }


def _trouble(engine: Engine) -> dict[str, Any]:
    """How it ended last, and what it waits for."""
    return {
        "last_exit": _exit(engine.last_exit),
        "diagnosis": _diagnosis(engine),
        "waiting_for": list(engine.waiting_for),
        "blocked": engine.sub is Sub.QUEUED and engine.blocked,
    }


def _health(engine: Engine) -> dict[str, Any]:
    return {
        "healthy": healthy(engine),
        "probed": None if engine.plan is None else engine.plan.probes != Probes(),
    }


def _service(engine: Engine) -> dict[str, Any]:
    """What it serves, and of a job what becomes of its result."""
    return {"serves": _serves(engine), "serving": _serving(engine)}


def _serves(engine: Engine) -> list[str]:
    """Names of models; what it took in is told only while it has it."""
    own = engine.plan.served_models if engine.plan else ()
    loaded = (model.name for model in engine.loaded if model.generation == engine.generation)
    return [*own, *(loaded if engine.state is State.ACTIVE else ())]


def _serving(engine: Engine) -> dict[str, Any] | None:
    found = engine.serving
    if found is None or (found.phase is ServingPhase.PENDING and engine.sub is not Sub.COMPLETED):
        return None  # of a run before this one
    return {
        "name": found.successor.name,
        "model": found.successor.model,
        "phase": found.phase.value,
        "engine": found.engine or None,
        "text": found.text,
    }


def _gpus(engine: Engine) -> dict[str, Any]:
    held = engine.reservation
    ids = engine.spec.gpu_ids if held is None else held.gpu_ids
    return {
        "gpu_ids": None if ids is None else list(ids),
        "memory_per_gpu_gb": None if held is None else round(max(held.sizes) / GIB, 3),
    }


def _address(host: str, port: int | None) -> str | None:
    if port is None:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _exit(status: ExitStatus | None) -> dict[str, Any] | None:
    if status is None:
        return None
    return {"code": status.code, "signal": status.signal, "oom_kill": status.oom_kill}


def _exit_code(status: ExitStatus | None) -> int | None:
    """As subprocess tells it: minus the number for a signal."""
    if status is None:
        return None
    return -status.signal if status.signal is not None else status.code


def _diagnosis(engine: Engine) -> dict[str, Any] | None:
    found = engine.diagnosis
    if found is None:
        return None
    return {"summary": found.summary, "remedy": found.remedy, "arithmetic": list(found.arithmetic)}


def healthy(engine: Engine) -> bool | None:
    """None while there is nothing to judge: it is down by intent, or on its way."""
    if engine.state is State.ACTIVE:
        return engine.sub is not Sub.UNREADY
    if engine.state is State.FAILED or engine.sub is Sub.BACKOFF:
        return False
    return None


def has_progress(engine: Engine) -> bool:
    """Is it a job, and has it run?"""
    return engine.spec.mode is Mode.RUN and engine.plan is not None


def progress_json(engine: Engine, progress: Mapping[str, Any] | None) -> dict[str, Any]:
    """How far a job is."""
    return {
        "engine_id": engine.id,
        "name": engine.name,
        "state": engine.state.value,
        "substate": engine.substate,
        "progress": progress,
    }


def point_json(point: Mapping[str, Any]) -> dict[str, Any]:
    """A step of a job's past. A time that is none is left out: the job wrote it."""
    at = point["at"]
    return {**point, "at": rfc3339(at) if at is not None and 0 <= at < _YEAR_3000 else None}


def event_json(entry: Entry) -> dict[str, Any]:
    """An event of the journal."""
    return {
        "id": entry.id,
        "at": rfc3339(entry.at),
        "engine": entry.engine,
        "engine_id": entry.engine_id,
        "kind": entry.kind,
        "level": entry.level,
        "text": entry.text,
        "state": entry.state,
        "substate": entry.substate,
    }


def lost_json(count: int) -> dict[str, Any]:
    """What stands in a stream for events that are gone. `count` 0: nobody knows how many."""
    many = f"Up to {count} events" if count else "Some events"
    return {
        "id": None,
        "at": rfc3339(time.time()),
        "engine": None,
        "engine_id": None,
        "kind": "lost",
        "level": "warning",
        "text": f"{many} before this point are no longer kept",
        "state": None,
        "substate": None,
    }


def reload_json(plan: ReloadPlan) -> dict[str, Any]:
    """What a reload changes."""
    return asdict(plan)
