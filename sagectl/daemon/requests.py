"""From an engine to what its kind is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sagectl.core.engine import Engine, EngineSpec
from sagectl.plugin import EngineRequest


def request_of(spec: EngineSpec, port: int | None, *, models: Path, state_dir: Path) -> EngineRequest[Any]:
    """What the kind sees of an engine."""
    return EngineRequest(
        name=spec.name,
        model=spec.model,
        host=spec.host,
        port=port,
        gpu_ids=spec.gpu_ids,
        python=spec.python,
        options=spec.options,
        probe=spec.probe_choice,
        models_dir=str(models),
        state_dir=str(state_dir),
        gpu_memory=spec.declared.get("gpu_memory"),
    )


def known_port(engine: Engine) -> int | None:
    """The port that an engine asks for or already has: identity outlives restarts."""
    return engine.spec.port if engine.spec.port is not None else engine.port
