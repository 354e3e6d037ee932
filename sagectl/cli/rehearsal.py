"""`fine-tune --dry-run`: what the kind and its trainer say of a job. Trains nothing, and needs no daemon."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.session import Session, error_json

if TYPE_CHECKING:
    from sagectl.cli.estimate import Card, Fit
    from sagectl.core.engine import EngineSpec
    from sagectl.plugin import EngineKind, EngineRequest, Facts, LaunchPlan, MemoryEstimate, Refusal, Shape

REFUSED = 65
"""How the trainer ends where data or options are no good."""
LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """report: the trainer's own, None where there is none. refusal: why the job cannot be."""

    memory: MemoryEstimate | None
    report: Mapping[str, Any] | None
    refusal: errors.SagectlError | None


def rehearse(session: Session, definition: dict[str, Any]) -> int:
    """Show what a job with this definition would do; 1 where it would be refused.

    Raises:
        InvalidConfig: the definition has mistakes.
    """
    spec, kind = _spec(definition)
    with tempfile.TemporaryDirectory(prefix="sagectl-dry-run-") as scratch:
        request = _request(spec, scratch)
        if not session.json:
            session.note("Looking at model and data; nothing is trained …")
        facts = _gather(kind, request, spec)
        found, fits = _placed(session, _rehearsed(kind, request, facts, spec))
    if session.json:
        session.dump(_json(definition, found, fits))
    else:
        session.out(_words(definition, found, fits, render.stdout()))
        if found.refusal is not None:
            session.complain(found.refusal)
    return exits.OK if found.refusal is None else exits.FAILURE


# --- asking --------------------------------------------------------------------------------------


def _spec(definition: dict[str, Any]) -> tuple[EngineSpec, EngineKind[Any]]:
    """The definition with the configuration's defaults, as the daemon would resolve it."""
    from sagectl.config import paths
    from sagectl.config.load import engine_from_body, load
    from sagectl.system import plugins

    places = paths.resolve(os.environ, os.getuid())
    kinds = plugins.discover()
    kind = kinds.by_name().get(definition["kind"])
    if kind is None:
        why = kinds.broken_by_name().get(definition["kind"], "it is not installed")
        raise errors.Conflict(f"the kind {definition['kind']} cannot be used: {why}")
    config = load(places.config_file, places.engines_d, kinds.by_name(), broken=kinds.broken_by_name())
    name = definition["name"]
    return engine_from_body(name, definition, kinds.by_name(), config.defaults), kind


def _request(spec: EngineSpec, scratch: str) -> EngineRequest[Any]:
    from sagectl.config import paths
    from sagectl.plugin import EngineRequest

    return EngineRequest(
        name=spec.name,
        model=spec.model,
        host=spec.host,
        port=None,
        gpu_ids=() if spec.gpus == 0 else spec.gpu_ids,
        python=spec.python,
        options=spec.options,
        probe=None,
        models_dir=str(paths.resolve(os.environ, os.getuid()).models),
        state_dir=scratch,
        gpu_memory=spec.gpu_memory,
        gpus=spec.gpus,
    )


def _gather(kind: EngineKind[Any], request: EngineRequest[Any], spec: EngineSpec) -> Facts:
    from sagectl.plugin import further_facts
    from sagectl.system.facts import gather

    environ = {**os.environ, **spec.env}
    found = asyncio.run(gather(kind.facts(request), environ))
    further = further_facts(kind, request, found)
    return found | asyncio.run(gather(further, environ)) if further else found


def _rehearsed(
    kind: EngineKind[Any], request: EngineRequest[Any], facts: Facts, spec: EngineSpec
) -> Rehearsed:
    from sagectl.plugin import Refusal, estimate

    memory = estimate(kind, request, facts)
    if isinstance(memory, Refusal):
        return Rehearsed(None, None, _refused(memory))
    plan = kind.plan(request, facts)
    if isinstance(plan, Refusal):
        return Rehearsed(memory, None, _refused(plan))
    report = _run(plan, spec, request.state_dir)
    if isinstance(report, errors.SagectlError):
        return Rehearsed(memory, None, report)
    return Rehearsed(memory, report, None)


def _refused(refusal: Refusal) -> errors.SagectlError:
    facts = {"arithmetic": list(refusal.arithmetic)} if refusal.arithmetic else {}
    return errors.Unplaceable(refusal.reason, remedy=refusal.remedy, facts=facts)


def _run(plan: LaunchPlan, spec: EngineSpec, scratch: str) -> Mapping[str, Any] | errors.SagectlError:
    """What the trainer says of its own dry run; it sees no GPU."""
    env = {**os.environ, **plan.env, **_env_file(spec), **spec.env, "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            [*plan.argv, "--dry-run"],
            env=env,
            cwd=plan.cwd or scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return errors.Conflict(f"{plan.argv[0]} cannot be run: {error.strerror}")
    report = _last_object(done.stdout)
    if report is not None and done.returncode == 0:
        return report
    if report is not None and done.returncode == REFUSED and "refused" in report:
        return _refused_by(report)
    said = [line for line in done.stderr.splitlines() if line.strip()][-LAST_LINES:]
    if done.returncode == REFUSED and said:
        return _in_the_trainers_words(said)
    facts = {"arithmetic": [render.clean(line) for line in said]}
    return errors.Conflict(f"the trainer's dry run ended with {done.returncode}", facts=facts)


def _refused_by(report: Mapping[str, Any]) -> errors.SagectlError:
    because = [render.clean(str(line)) for line in report.get("because") or ()]
    return errors.Unplaceable(
        render.clean(str(report["refused"])),
        remedy=render.clean(str(report.get("remedy", ""))),
        facts={"arithmetic": because} if because else {},
    )


def _in_the_trainers_words(said: Sequence[str]) -> errors.SagectlError:
    """`refused: …`, `remedy: …`; what else it says are the facts behind it."""
    told: dict[str, str] = {}
    rest = []
    for line in said:
        key, colon, text = line.partition(": ")
        if colon and key in ("refused", "remedy"):
            told[key] = render.clean(text)
        else:
            rest.append(render.clean(line))
    facts = {"arithmetic": rest} if rest else {}
    return errors.Unplaceable(
        told.get("refused", "the data or the options are refused"), remedy=told.get("remedy", ""), facts=facts
    )


def _env_file(spec: EngineSpec) -> Mapping[str, str]:
    if spec.env_file is None:
        return {}
    from sagectl.config import envfile

    try:
        return envfile.read(spec.env_file)
    except (OSError, ValueError):
        return {}  # often readable to the engine's user alone; a model that needs a token then says so


def _last_object(text: str) -> Mapping[str, Any] | None:
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        return found if isinstance(found, dict) else None
    return None


# --- what comes of it ----------------------------------------------------------------------------


def _on_gpu(memory: MemoryEstimate | None) -> bool:
    return memory is not None and bool(memory.shapes) and bool(memory.shapes[0].ranks)


def _placed(session: Session, found: Rehearsed) -> tuple[Rehearsed, list[Fit]]:
    """Where the job's memory fits; refused where it fits on no GPU, not even on an empty one."""
    from sagectl.cli.estimate import KEPT_FREE, cards, fit_on

    memory = found.memory
    if memory is None or not _on_gpu(memory):
        return found, []
    known = cards(session, ())
    if known[0].count is not None and ((found.report or {}).get("time") or {}).get("device") == "cpu":
        # There are GPUs, and nobody knows yet how fast they are.
        found = replace(found, report={**(found.report or {}), "time": None})
    fits = [fit_on(card, memory) for card in known]
    empty = [
        replace(card, free=max(card.free, card.total - KEPT_FREE), count=_as_large(card, known))
        for card in known
    ]
    if found.refusal is not None or any(fit_on(card, memory).shape for card in empty):
        return found, fits
    return replace(found, refusal=_too_large(memory.shapes[0], empty)), fits


def _too_large(shape: Shape, empty: Sequence[Card]) -> errors.SagectlError:
    from sagectl.core.sizes import gib

    wanted, needed, largest = len(shape.ranks), max(shape.sizes), max(card.free for card in empty)
    if needed <= largest:
        return errors.Unplaceable(
            f"it wants {wanted} GPUs with {gib(needed)} each, and there are not so many here",
            remedy="set `gpus` to fewer",
        )
    return errors.Unplaceable(
        f"it needs {gib(needed)} of GPU memory, and no GPU has more than {gib(largest)} of it",
        remedy='take less at once (batch_size, max_length), method = "qlora", or a smaller base model',
    )


def _as_large(card: Card, known: Sequence[Card]) -> int | None:
    return None if card.count is None else sum(other.total >= card.total for other in known)


def _json(definition: dict[str, Any], found: Rehearsed, fits: Sequence[Fit]) -> dict[str, Any]:
    from sagectl.cli.estimate import as_json

    memory = None
    if found.memory is not None and _on_gpu(found.memory):
        memory = as_json(definition["model"], definition["kind"], found.memory, fits)
    return {
        "ok": found.refusal is None,
        "refusal": None if found.refusal is None else error_json(found.refusal),
        "report": found.report,
        "memory": memory,
    }


def _words(
    definition: dict[str, Any], found: Rehearsed, fits: Sequence[Fit], style: render.Style
) -> Iterable[str]:
    from sagectl.cli.rehearsed import properties

    if found.report is not None:
        yield from render.properties(properties(found.report), style)
    memory = found.memory
    if memory is None:
        return
    if found.report is not None:
        yield ""
    if not _on_gpu(memory):
        yield from (f"{style.dot} {render.clean(note)}" for note in memory.notes)
        return
    from sagectl.cli.estimate import in_words

    yield from in_words(definition["model"], definition["kind"], memory, fits, style)
    if found.refusal is None and not any(fit.shape for fit in fits):
        yield style.paint(f"{style.dot} no GPU has that much free now: the job would wait", "yellow")
