"""Results of jobs that are to be served: what becomes of one, and which engines have loaded it.

job completed ─▶ pending ─▶ served (by an engine that loaded it, or by one of its own)
                    └─────▶ failed, with the reason; what serves already is left alone
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, assert_never

from sagectl.core.actions import Action, Record
from sagectl.core.engine import Desired, Engine, LoadedModel, Serving, ServingPhase, State, Sub
from sagectl.core.events import ModelsLoaded, ServingChanged
from sagectl.plugin import LaunchPlan, Mode, Successor

_RECORDS = {
    ServingPhase.PENDING: ("serving", "info"),
    ServingPhase.SERVED: ("served", "info"),
    ServingPhase.FAILED: ("serving-failed", "error"),
    ServingPhase.ENDED: ("serving-ended", "info"),
}


def completed(engine: Engine, plan: LaunchPlan | None) -> Engine:
    """A job that completed by this plan a moment ago, with what is to become of its result."""
    successor = plan.successor if plan else None
    if successor is None:
        return replace(engine, serving=None)
    text = f"its result is to be served as {successor.name}"
    return replace(engine, serving=Serving(successor, text=text), reason=text)


def step(engine: Engine, event: ServingChanged | ModelsLoaded) -> tuple[Engine, tuple[Action, ...]]:
    """Take in how far it is, or what the engine has loaded."""
    match event:
        case ModelsLoaded():
            return replace(engine, loaded=event.models), ()
        case ServingChanged():
            return _changed(engine, event.serving)
        case _:
            assert_never(event)


def _changed(engine: Engine, serving: Serving) -> tuple[Engine, tuple[Action, ...]]:
    if engine.serving is None or engine.serving.successor != serving.successor:
        return engine, ()  # the job began anew meanwhile
    after = replace(engine, serving=serving)
    if engine.sub is Sub.COMPLETED:
        after = replace(after, reason=serving.text)
    kind, level = _RECORDS[serving.phase]
    return after, (Record(kind, serving.text, level),) if serving != engine.serving else ()


def path(model: str | None, models_dir: str) -> str | None:
    """The directory that an engine's `model` means, if it means one."""
    if not model or model.startswith((".", "~")):
        return None
    return posixpath.normpath(model if model.startswith("/") else posixpath.join(models_dir, model))


def conflict(engines: Iterable[Engine], successor: Successor, models_dir: str) -> str | None:
    """Who answers to the successor's name with something else, and must go on; None for nobody."""
    name, model = successor.name, posixpath.normpath(successor.model)
    for engine in engines:
        if is_own(engine, successor, models_dir):
            continue
        spec = engine.spec
        if name in (spec.name, spec.group):
            serves = spec.model if spec.mode is Mode.SERVE else None
            what = f"serves {serves}" if serves else f"is of the kind {spec.kind}"
            return f"there is an engine {name} already, which {what}"
        if engine.plan and name in engine.plan.served_models:
            return f"the engine {spec.name} serves {spec.model} under that name"
        other = next((m for m in engine.loaded if m.name == name and m.path != model), None)
        if other is not None:
            return f"the engine {spec.name} serves {other.path} under that name"
    return None


def is_own(engine: Engine, successor: Successor, models_dir: str) -> bool:
    """It is there to serve just this result, under this name."""
    spec = engine.spec
    there = path(spec.model, models_dir) == posixpath.normpath(successor.model)
    return spec.name == successor.name and spec.kind == successor.kind and there


def candidates(engines: Iterable[Engine], successor: Successor) -> list[Engine]:
    """Engines that may be able to load it: ready ones of its kind, those first that have it already."""
    ready = [e for e in engines if e.spec.kind == successor.kind and e.sub is Sub.READY and e.plan]
    return sorted(ready, key=lambda engine: (not has(engine, successor.name), engine.name))


def returning(engines: Iterable[Engine], name: str) -> Engine | None:
    """An engine that had taken in a model of this name, and is on its way up."""
    held = (e for e in engines if has(e, name) and e.desired is Desired.RUNNING and e.sub is not Sub.READY)
    return next((engine for engine in held if engine.state is not State.FAILED), None)


def starting(engines: Iterable[Engine], successor: Successor) -> list[Engine]:
    """Engines of its kind whose processes are on their way to be ready."""
    return [e for e in engines if e.spec.kind == successor.kind and e.sub is Sub.STARTING and e.plan]


def has(engine: Engine, name: str) -> bool:
    """It was made to serve a model of this name too."""
    return any(model.name == name for model in engine.loaded)


def edition(engine: Engine, name: str) -> int:
    """How many models of this name its process has had."""
    return max(
        (m.edition + 1 for m in engine.loaded if m.name == name and m.generation == engine.generation),
        default=0,
    )


def with_model(engine: Engine, model: LoadedModel) -> tuple[LoadedModel, ...]:
    """What it has loaded, this model included."""
    others = tuple(other for other in engine.loaded if other.name != model.name)
    return (*others, model)


def lost(engine: Engine) -> tuple[LoadedModel, ...]:
    """What it had loaded before it was started anew, and has not now."""
    if engine.sub is not Sub.READY:
        return ()
    return tuple(model for model in engine.loaded if model.generation != engine.generation)


def awaiting(serving: Serving, engine: Engine) -> Serving:
    """It is to be served by an engine that is on its way up."""
    name = serving.successor.name
    return replace(
        serving, text=f"its result is to be served as {name}, when the engine {engine.name} is ready"
    )


def served(serving: Serving, engine: str) -> Serving:
    """It is served by the engine of this name."""
    text = f"served as {serving.successor.name} by the engine {engine}"
    return replace(serving, phase=ServingPhase.SERVED, engine=engine, text=text)


def definition(successor: Successor) -> dict[str, Any]:
    """What the definition of an engine of its own says.

    It comes back with the machine: stopping it is as good as taking it out of a file.
    """
    named = {"name": successor.name, "kind": successor.kind, "model": successor.model}
    return {"autostart": True, **successor.keys, **named}


def serves_earlier(engine: Engine, serving: Serving) -> bool:
    """The engine of its own runs, and was not started for this result but for an earlier one."""
    return engine.process is not None and serving.engine != engine.name


def outcome(engine: Engine | None, name: str) -> tuple[ServingPhase, str] | None:
    """What came of the start of an engine that is to serve a result; None while that is open."""
    if engine is None:
        return ServingPhase.FAILED, f"not served as {name}: its engine was removed"
    if engine.up:
        return ServingPhase.SERVED, f"served as {name} by the engine {engine.name}"
    if engine.state is State.FAILED:
        return ServingPhase.FAILED, f"not served as {name}: its engine failed: {engine.reason}"
    if engine.state is State.INACTIVE:
        return ServingPhase.FAILED, f"not served as {name}: its engine was stopped"
    return None
