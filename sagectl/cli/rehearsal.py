"""`fine-tune --dry-run`: what the kind and its trainer say of a job. Trains nothing, and needs no daemon."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.session import Session, error_json

if TYPE_CHECKING:
    from sagectl.core.engine import EngineSpec
    from sagectl.plugin import EngineKind, EngineRequest, Facts, LaunchPlan, MemoryEstimate, Refusal

REFUSED = 65
"""How the trainer ends where data or options are no good."""
SHOWN = 10
"""Entries of a list that are shown."""
LAST_LINES = 15
_LABELS = {
    "tokens_trained": "Tokens trained",
    "bad_rows": "Bad rows",
    "longest": "Longest rows",
}


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
        found = _rehearsed(kind, request, facts, spec)
    if session.json:
        session.dump(_json(session, definition, found))
    else:
        session.out(_words(session, definition, found, render.stdout()))
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
    report = _last_object(done.stdout) if done.returncode == 0 else None
    if report is not None:
        return report
    said = [line for line in done.stderr.splitlines() if line.strip()][-LAST_LINES:]
    if done.returncode == REFUSED and said:
        return _in_the_trainers_words(said)
    facts = {"arithmetic": [render.clean(line) for line in said]}
    return errors.Conflict(f"the trainer's dry run ended with {done.returncode}", facts=facts)


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


# --- showing -------------------------------------------------------------------------------------


def _on_gpu(memory: MemoryEstimate | None) -> bool:
    return memory is not None and bool(memory.shapes) and bool(memory.shapes[0].ranks)


def _json(session: Session, definition: dict[str, Any], found: Rehearsed) -> dict[str, Any]:
    from sagectl.cli.estimate import as_json, cards, fit_on

    memory = None
    if found.memory is not None and _on_gpu(found.memory):
        fits = [fit_on(card, found.memory) for card in cards(session, ())]
        memory = as_json(definition["model"], definition["kind"], found.memory, fits)
    return {
        "ok": found.refusal is None,
        "refusal": None if found.refusal is None else error_json(found.refusal),
        "report": found.report,
        "memory": memory,
    }


def _words(
    session: Session, definition: dict[str, Any], found: Rehearsed, style: render.Style
) -> Iterable[str]:
    if found.report is not None:
        yield from render.properties(list(_report(found.report)), style)
    memory = found.memory
    if memory is None:
        return
    if found.report is not None:
        yield ""
    if not _on_gpu(memory):
        yield from (f"{style.dot} {render.clean(note)}" for note in memory.notes)
        return
    from sagectl.cli.estimate import cards, fit_on, in_words

    fits = [fit_on(card, memory) for card in cards(session, ())]
    yield from in_words(definition["model"], definition["kind"], memory, fits, style)


def _report(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The trainer's report as properties; its keys are its own."""
    for key, value in report.items():
        name = _LABELS.get(key) or render.clean(key.replace("_", " ")).capitalize()
        lines = _entries(value) if isinstance(value, list) else [_value(value)]
        yield from (("" if place else name, line) for place, line in enumerate(lines) if line)
    trained, tokens = report.get("tokens_trained"), report.get("tokens")
    if isinstance(trained, int) and isinstance(tokens, int) and tokens:
        yield "Loss on", f"{100 * trained / tokens:.1f}% of the tokens"


def _entries(values: Sequence[Any]) -> list[str]:
    lines = [_value(value) for value in values[:SHOWN]]
    return [*lines, f"and {len(values) - SHOWN:,} more"] if len(values) > SHOWN else lines or ["none"]


def _value(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}"
        case {"file": file, "row": row, "reason": reason}:
            return render.clean(f"{file}:{row}: {reason}")
        case dict():
            return ", ".join(
                f"{render.clean(str(k)).replace('_', ' ')} {_value(v)}" for k, v in value.items()
            )
        case list():
            return ", ".join(_entries(value))
    return render.clean(str(value))
