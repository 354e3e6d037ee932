"""estimate: the GPU memory of a model, in parts, and where it fits. Needs no daemon."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.definition import model_here, setting
from sagectl.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from sagectl.plugin import EngineKind, MemoryEstimate, Shape

GIB = 1 << 30
PATIENCE = 3.0
"""Seconds for the GPU driver to answer."""
KEPT_FREE = GIB
"""What sagectl leaves free on each GPU unless `[gpu] reserve` says otherwise."""
COMMON = {16: "T4, V100", 24: "RTX 4090, A10, L4", 48: "L40S, RTX A6000", 80: "A100, H100", 141: "H200"}
"""Sizes of common cards in GiB, for machines that have none."""
# What the kinds call the options of this verb; the first that a kind has is meant.
KEYS = {
    "context": ("max_model_len", "max_input_tokens", "max_length"),
    "tp": ("tensor_parallel_size",),
    "pp": ("pipeline_parallel_size",),
    "method": ("method",),
    "max_num_seqs": ("max_num_seqs",),
    "kv_cache_dtype": ("kv_cache_dtype",),
}


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU, or a size of GPUs. free: bytes that an engine may take; count: None for any number."""

    name: str
    total: int
    free: int
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits there: a shape, or None. sequences: of the whole context at once, None without a cache."""

    card: Card
    shape: Shape | None
    sequences: int | None


def _parallel(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value} is neither a number of GPUs nor auto.")
    return int(value)


def _sizes(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[int, ...]:
    if not values:
        return ()
    from sagectl.config.units import BadValue, parse_size

    try:
        return tuple(parse_size(value) for value in values)
    except BadValue as error:
        raise click.BadParameter(f"{error.message}: {error.remedy}.") from error


def _kind_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from sagectl.system import plugins

    return [name for name in plugins.discover().by_name() if name.startswith(incomplete)]


@click.command("estimate", short_help="The GPU memory of a model, in parts, and where it fits.")
@click.argument("model", shell_complete=lambda *_: [])
@click.option("--kind", metavar="KIND", shell_complete=_kind_names, help="llm, embedding, finetune, …")
@click.option("--context", type=click.IntRange(1), metavar="N", help="Tokens of the longest sequence.")
@click.option("--tp", callback=_parallel, metavar="N|auto", help="GPUs that share each layer.")
@click.option("--pp", type=click.IntRange(1), metavar="N", help="Groups of GPUs that share the layers.")
@click.option("--max-num-seqs", type=click.IntRange(1), metavar="N", help="Requests worked on at once.")
@click.option("--kv-cache-dtype", metavar="TYPE", help="Type of the KV cache, such as fp8.")
@click.option("--method", metavar="M", help="Fine-tuning: lora, qlora or full.")
@click.option(
    "--gpu", "gpus", multiple=True, callback=_sizes, metavar="SIZE", help="A GPU such as 24GiB; repeatable."
)
@click.option(
    "-o", "settings", multiple=True, metavar="KEY=VALUE", help="Any option of the kind; repeatable."
)
@json_option
@pass_session
def estimate_verb(
    session: Session,
    /,
    model: str,
    kind: str | None,
    gpus: tuple[int, ...],
    settings: Sequence[str],
    **given: Any,
) -> int:
    """The GPU memory that a model needs, in parts, and on which GPUs it fits.

    Reads headers and config.json of a directory or of the local cache of the hub, never weights; nothing is
    downloaded. The GPUs are the daemon's where one answers, those of --gpu, or else common sizes.

    \b
      sagectl estimate Qwen/Qwen2.5-7B-Instruct --context 8192
      sagectl estimate ./my-model --tp 2 --gpu 24GiB --gpu 80GiB
      sagectl estimate Qwen/Qwen2.5-7B-Instruct --method qlora -o batch_size=2
    """
    options = {key: value for key, value in given.items() if value is not None}
    options |= {"settings": dict(setting(text) for text in settings)}
    asked = _Asked(model_here(model), kind, options)
    found = asked.estimate()
    shape = found.shapes[0] if found.shapes else None
    if shape is None or not shape.ranks:
        raise errors.Conflict(f"{model} needs no GPU: {'; '.join(found.notes)}")
    if not shape.part("weights"):
        raise errors.Conflict("; ".join(found.notes), remedy="name a directory, or download the model first")
    fits = [fit_on(card, found) for card in cards(session, gpus)]
    if session.json:
        session.dump(as_json(asked.model, asked.kind, found, fits))
    else:
        session.out(in_words(asked.model, asked.kind, found, fits, render.stdout()))
    return exits.OK


# --- asking the kind -----------------------------------------------------------------------------


class _Asked:
    """What is to be estimated. Raises the errors of `sagectl.errors` where that cannot be."""

    def __init__(self, model: str, kind: str | None, given: dict[str, Any]) -> None:
        from sagectl.config import paths
        from sagectl.plugin import CheckpointQuery
        from sagectl.system import checkpoints, plugins

        self.model = model
        self._settings = given.pop("settings")
        self._given = given
        self._models = str(paths.resolve(os.environ, os.getuid()).models)
        self._kinds = plugins.discover()
        query = CheckpointQuery(model.rstrip("/") or "/", self._models)
        self._is_embedder = "modules.json" in checkpoints.read(query, os.environ).documents
        self.kind = kind or self._likely()

    def _likely(self) -> str:
        if "method" in self._given:
            return "finetune"
        return "embedding" if self._is_embedder and "embedding" in self._kinds.by_name() else "llm"

    def estimate(self) -> MemoryEstimate:
        """The kind's answer; every layout where none is asked for."""
        from sagectl.plugin import Refusal, estimate

        kind = self._find()
        answer = estimate(kind, *self._request(kind)) if hasattr(kind, "estimate") else None
        if isinstance(answer, Refusal):
            raise errors.Unplaceable(answer.reason, remedy=answer.remedy)
        if answer is None:
            raise errors.Conflict(
                f"the kind {self.kind} says nothing of the memory that its engines need",
                remedy="set gpu_memory; sagectl learns what they use",
            )
        return answer

    def _find(self) -> EngineKind[Any]:
        kind = self._kinds.by_name().get(self.kind)
        if kind is not None:
            return kind
        broken = self._kinds.broken_by_name().get(self.kind)
        if broken is not None:
            raise errors.Conflict(f"the plugin of the kind {self.kind} cannot be used: {broken}")
        known = ", ".join(sorted(self._kinds.by_name())) or "none"
        raise errors.Conflict(
            f"no kind {self.kind} is installed", remedy=f"install its plugin, or name one of these: {known}"
        )

    def _request(self, kind: EngineKind[Any]) -> tuple[Any, Any]:
        import sys

        from sagectl.config.options import options_of
        from sagectl.plugin import EngineRequest, Facts, further_facts

        described = options_of(kind)
        values = dict(self._settings)
        for name, value in self._given.items():
            key = next((k for k in KEYS[name] if k in described.fields or k in described.aliases), None)
            if key is None:
                raise click.UsageError(f"--{name.replace('_', '-')} means nothing to the kind {self.kind}.")
            values[key] = value
        unknown = sorted(values.keys() - described.fields.keys() - described.aliases.keys())
        if unknown:
            raise click.UsageError(
                f"The kind {self.kind} has no option {unknown[0]}; `sagectl kinds` lists them."
            )
        values = {described.aliases.get(key, key): value for key, value in values.items()}
        automatic = {"tensor_parallel_size": "auto", **values}
        options = None
        if "tensor_parallel_size" in described.fields:
            options, _ = described.validate(automatic)  # None where this kind knows no automatic one
        if options is None:
            options, wrong = described.validate(values)
            if wrong:
                fault = wrong[0]
                key = ".".join(map(str, fault.path))
                raise click.UsageError(
                    f"{key}: {fault.message}" + (f"; {fault.remedy}" if fault.remedy else "")
                )
        request = EngineRequest(
            name="estimate",
            model=self.model,
            host="127.0.0.1",
            port=None,
            gpu_ids=None,
            python=sys.executable,
            options=options,
            probe=None,
            models_dir=self._models,
            state_dir="/",
            gpus=None,
        )
        facts = Facts({query: _answer(query) for query in kind.facts(request)})
        further = further_facts(kind, request, facts)
        return request, facts | Facts({query: _answer(query) for query in further})


def _answer(query: Any) -> Any:
    """Facts of the model's files; the engine's interpreter is not asked: it is taken to have everything."""
    from sagectl.plugin import CheckpointQuery, FileQuery, InterpreterFacts, InterpreterQuery, ProgramFacts
    from sagectl.system import checkpoints, facts

    if isinstance(query, CheckpointQuery):
        return checkpoints.read(query, os.environ)
    if isinstance(query, InterpreterQuery):
        return InterpreterFacts(dict.fromkeys(query.modules, ""))
    return facts.look_at(query) if isinstance(query, FileQuery) else ProgramFacts(None)


# --- what fits where -----------------------------------------------------------------------------


def cards(session: Session, sizes: Sequence[int]) -> list[Card]:
    """The GPUs of these sizes, else those of the daemon or of the machine, else common ones."""
    if sizes:
        from sagectl.core.sizes import gib

        return [
            Card(gib(size), size, max(0, size - KEPT_FREE), sum(other >= size for other in sizes))
            for size in sorted(set(sizes))
        ]
    devices = _of_daemon(session) or _of_machine()
    if not devices:
        return [Card(f"{n} GiB ({of})", n * GIB, n * GIB - KEPT_FREE) for n, of in COMMON.items()]
    free = [round(device["memory_free_gb"] * GIB) for device in devices]
    return [
        Card(
            f"GPU {device['gpu_id']}, {render.clean(device['name'])}",
            round(device["memory_total_gb"] * GIB),
            mine,
            sum(other >= mine for other in free),
        )
        for device, mine in zip(devices, free, strict=True)
    ]


def _of_daemon(session: Session) -> list[Mapping[str, Any]]:
    """The GPUs of the daemon; none where none answers, or where it manages none."""
    try:
        found = session.client.gpu().get("devices", [])
    except errors.SagectlError:
        return []
    return [device for device in found if not device.get("lost")]


def _of_machine() -> list[Mapping[str, Any]]:
    """The GPUs as the driver shows them; what they hold now is foreign."""
    from pathlib import Path

    from sagectl.config.settings import GpuSettings
    from sagectl.system.gpus import Gpus

    gpus = Gpus(GpuSettings(backend="nvml"), Path("/nonexistent"))
    try:
        found = gpus.read(PATIENCE).gpus
    finally:
        gpus.close()
    return [
        {
            "gpu_id": gpu.index,
            "name": gpu.name,
            "memory_total_gb": gpu.total / GIB,
            "memory_free_gb": (gpu.total - gpu.used - KEPT_FREE) / GIB,
        }
        for gpu in found
        if not gpu.lost
    ]


def fit_on(card: Card, found: MemoryEstimate) -> Fit:
    """The shape that is liked best of those that fit on so many such cards."""
    for shape in _possible(card, found):
        if max(shape.sizes) <= card.free:
            caches = [_cache(shape, rank) for rank in range(len(shape.ranks))]
            if not found.elastic or not all(caches):
                return Fit(card, shape, None)
            rooms = [1 + (card.free - size) // _cache(shape, rank) for rank, size in enumerate(shape.sizes)]
            return Fit(card, shape, min(rooms))
    return Fit(card, None, None)


def _possible(card: Card, found: MemoryEstimate) -> list[Shape]:
    return [shape for shape in found.shapes if card.count is None or len(shape.ranks) <= card.count]


def _cache(shape: Shape, rank: int) -> int:
    return sum(part.size for part in shape.ranks[rank] if part.name == "kv-cache")


# --- words -----------------------------------------------------------------------------------


def _gb(size: int) -> float:
    return round(size / GIB, 3)


def as_json(model: str, kind: str, found: MemoryEstimate, fits: Iterable[Fit]) -> dict[str, Any]:
    """An estimate with at least one shape, and where it fits."""
    shape = found.shapes[0]
    fullest = max(range(len(shape.ranks)), key=lambda rank: shape.sizes[rank])
    return {
        "model": model,
        "engine_kind": kind,
        "exact": found.exact,
        "tensor_parallel_size": shape.tensor_parallel,
        "pipeline_parallel_size": shape.pipeline_parallel,
        "parts": [{"name": p.name, "size_gb": _gb(p.size), "how": p.how} for p in shape.ranks[fullest]],
        "needed_gb": _gb(max(shape.sizes)),
        "needed_gb_by_gpu": [_gb(size) for size in shape.sizes],
        "weights_gb": _gb(shape.part("weights")),
        "context": found.context,
        "kv_per_token_bytes": found.kv_per_token,
        "fits": [
            {
                "gpu": fit.card.name,
                "total_gb": _gb(fit.card.total),
                "free_gb": _gb(fit.card.free),
                "fits": fit.shape is not None,
                "gpus": None if fit.shape is None else len(fit.shape.ranks),
                "tensor_parallel_size": None if fit.shape is None else fit.shape.tensor_parallel,
                "pipeline_parallel_size": None if fit.shape is None else fit.shape.pipeline_parallel,
                "needed_gb": None if fit.shape is None else _gb(max(fit.shape.sizes)),
                "sequences": fit.sequences,
            }
            for fit in fits
        ],
        "notes": list(found.notes),
    }


def in_words(
    model: str, kind: str, found: MemoryEstimate, fits: Sequence[Fit], style: render.Style
) -> Iterable[str]:
    """The parts of an estimate with at least one shape, where it fits, and what was assumed."""
    from sagectl.core.sizes import gib

    shape = found.shapes[0]
    about = "exact weights" if found.exact else "estimated weights"
    yield f"{style.paint(render.clean(model), 'bold')}  {kind}, {_layout(shape)}, {about}"
    yield ""
    fullest = max(range(len(shape.ranks)), key=lambda rank: shape.sizes[rank])
    parts = [(part.name, gib(part.size), part.how) for part in shape.ranks[fullest]]
    yield from render.table(
        (
            render.Column("PART"),
            render.Column("PER GPU" if len(shape.ranks) > 1 else "MEMORY", right=True),
            render.Column("HOW", shrink=20, drop=1),
        ),
        [
            *parts,
            (render.Cell("together", "bold"), render.Cell(gib(max(shape.sizes)), "bold"), ""),
        ],
        style,
    )
    yield ""
    yield from _fit_table(found, fits, style)
    if found.notes:
        yield ""
    for note in found.notes:
        yield style.paint(f"{style.dot} {render.clean(note)}", "dim")


def _fit_table(found: MemoryEstimate, fits: Sequence[Fit], style: render.Style) -> Iterable[str]:
    from sagectl.core.sizes import gib

    rows = []
    for fit in fits:
        if fit.shape is None:
            least = min(_possible(fit.card, found) or found.shapes, key=lambda shape: max(shape.sizes))
            needed = f"{gib(max(least.sizes))} on {_layout(least)}"
            rows.append((fit.card.name, gib(fit.card.free), render.Cell("no", "red"), needed, ""))
        else:
            each = " each" if len(fit.shape.ranks) > 1 else ""
            needed = f"{gib(max(fit.shape.sizes))}{each}"
            layout = render.Cell(_layout(fit.shape), "green")
            rows.append((fit.card.name, gib(fit.card.free), layout, needed, _sequences(fit.sequences)))
    title = f"SEQUENCES OF {found.context:,}" if found.context else "SEQUENCES"
    yield from render.table(
        (
            render.Column("GPU", shrink=12),
            render.Column("USABLE", right=True),
            render.Column("FITS ON"),
            render.Column("NEEDS", drop=1),
            render.Column(title, right=True, drop=2),
        ),
        rows,
        style,
    )


def _sequences(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _layout(shape: Shape) -> str:
    """`1 GPU`, `4 GPUs: tensor 4`, `4 GPUs: tensor 2 × pipeline 2`."""
    count = len(shape.ranks)
    if count == 1:
        return "1 GPU"
    ways = []
    if shape.tensor_parallel > 1:
        ways.append(f"tensor {shape.tensor_parallel}")
    if shape.pipeline_parallel > 1:
        ways.append(f"pipeline {shape.pipeline_parallel}")
    return f"{count} GPUs" + (f": {' × '.join(ways)}" if ways else "")
