"""From an engine to what its kind is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sagectl.core.engine import Engine, EngineSpec, Reservation
from sagectl.plugin import EngineRequest, GpuGrant


def request_of(
    spec: EngineSpec,
    port: int | None,
    *,
    models: Path,
    state_dir: Path,
    reservation: Reservation | None = None,
) -> EngineRequest[Any]:
    """What the kind sees of an engine.

    Args:
        reservation: what it was given, where that is decided.
    """
    return EngineRequest(
        name=spec.name,
        model=spec.model,
        host=spec.host,
        port=port,
        gpu_ids=spec.gpu_ids if reservation is None else reservation.gpu_ids,
        python=spec.python,
        options=spec.options,
        probe=spec.probe_choice,
        models_dir=str(models),
        state_dir=str(state_dir),
        gpu_memory=spec.gpu_memory,
        gpus=spec.gpus,
        grant=None if reservation is None else grant_of(reservation),
    )


def grant_of(reservation: Reservation) -> GpuGrant:
    """What the kind sees of a reservation."""
    return GpuGrant(
        gpu_ids=reservation.gpu_ids,
        reserved=reservation.sizes,
        totals=reservation.totals,
        tensor_parallel=reservation.tensor_parallel,
        pipeline_parallel=reservation.pipeline_parallel,
        kv_cache=reservation.kv_cache,
    )


def known_port(engine: Engine) -> int | None:
    """The port that an engine asks for or already has: identity outlives restarts."""
    return engine.spec.port if engine.spec.port is not None else engine.port
