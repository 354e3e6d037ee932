"""How much GPU memory an engine asks for, and why that much.

Pure. The order is that of DESIGN: the user's `gpu_memory`, a footprint that was measured in an earlier run of
the same model in the same form, the kind's estimate, and for a kind that says nothing a small engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sagectl.core.engine import EngineSpec, Reservation
from sagectl.core.gpu import Gpu
from sagectl.core.placement import Layout, Need, Placement, Wanted
from sagectl.core.sizes import GIB, gib
from sagectl.plugin import KV_CACHE, WEIGHTS, MemoryEstimate, Refusal, Shape

ASSUMED = 2 * GIB
"""What an engine gets of which neither the user nor its kind says anything."""
HEADROOM = 1.03
"""A measured peak is one of this many samples; the next run may peak a little higher."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of placement, and what has to be remembered once it is granted.

    source: as in `Reservation`. shapes: the estimate's, by their position in `wanted.layouts`.
    filed_under: the learned footprints' name for it, without the parallelism; "" where nothing is learned.
    """

    wanted: Wanted
    source: str
    shapes: tuple[Shape | None, ...] = ()
    filed_under: str = ""
    elastic: bool = False
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Bytes on the fullest GPU of the layout that is liked best; 0 where that is a share of the GPU."""
        return max((need.size for need in self.wanted.layouts[0].needs), default=0)


def footprint_key(kind: str, filed_under: str, tensor_parallel: int, pipeline_parallel: int) -> str:
    """Under which name a measured peak is kept."""
    return f"{kind}|{filed_under}|tp{tensor_parallel}pp{pipeline_parallel}"


def demand(spec: EngineSpec, estimate: MemoryEstimate | None, learned: Mapping[str, int]) -> Demand | Refusal:
    """What this engine asks for.

    Args:
        learned: by `footprint_key`, the peak in bytes on its fullest GPU, without an elastic cache.
    """
    count = len(spec.gpu_ids) if spec.gpu_ids else spec.gpus
    shapes: tuple[Shape | None, ...] = estimate.shapes if estimate is not None else ()
    fitting = tuple(s for s in shapes if s is not None and count in (None, len(s.ranks)))
    if shapes and not fitting:
        sizes = sorted({len(shape.ranks) for shape in shapes if shape is not None})
        return Refusal(
            f"it is given {count} GPUs, and is laid out for {' or '.join(map(str, sizes))}",
            "correct `gpus` or `gpu_ids`, or its tensor and pipeline parallelism",
        )
    # Of a kind that says nothing a run of the same engine with the same model is all there is to learn from.
    itself = f"{spec.group or spec.name}|{spec.model or ''}"
    filed_under = estimate.filed_under if estimate is not None else itself
    elastic = estimate is not None and estimate.elastic
    share = estimate.share if estimate is not None else None
    found = [_layout(spec, shape, filed_under, elastic, learned, share) for shape in fitting] or [
        _unknown(spec, count or 1, filed_under, learned)
    ]
    source = found[0][1]
    notes = estimate.notes if estimate is not None else ()
    if source == "assumed":
        notes = (*notes, f"its size is not known: {gib(ASSUMED)} are assumed; set `gpu_memory`")
    wanted = Wanted(
        spec.name, spec.kind, tuple(layout for layout, _ in found), spec.gpu_ids or None, spec.group
    )
    return Demand(wanted, source, fitting or (None,), filed_under, elastic, notes)


def _unknown(
    spec: EngineSpec, count: int, filed_under: str, learned: Mapping[str, int]
) -> tuple[Layout, str]:
    """The layout of an engine of which its kind says nothing."""
    peak = learned.get(footprint_key(spec.kind, filed_under, 1, 1))
    need, source = (Need(ASSUMED), "assumed") if peak is None else (Need(int(peak * HEADROOM)), "learned")
    chosen = _user(spec)
    return Layout((chosen or need,) * count), "gpu_memory" if chosen else source


def _user(spec: EngineSpec) -> Need | None:
    if spec.gpu_memory is None:
        return None
    if isinstance(spec.gpu_memory, str):
        return Need(share=float(spec.gpu_memory.rstrip("% ")) / 100)
    return Need(spec.gpu_memory)


def _layout(
    spec: EngineSpec,
    shape: Shape,
    filed_under: str,
    elastic: bool,
    learned: Mapping[str, int],
    share: float | None,
) -> tuple[Layout, str]:
    tensor, pipeline = shape.tensor_parallel, shape.pipeline_parallel
    chosen = _user(spec) or (None if share is None else Need(share=share))
    if chosen is not None:
        return Layout((chosen,) * len(shape.ranks), tensor, pipeline), "gpu_memory"
    peak = learned.get(footprint_key(spec.kind, filed_under, tensor, pipeline)) if filed_under else None
    if peak is None:
        return Layout(tuple(Need(size) for size in shape.sizes), tensor, pipeline), "estimate"
    needs = []
    for parts in shape.ranks:
        weights = sum(part.size for part in parts if part.name == WEIGHTS)
        cache = sum(part.size for part in parts if part.name == KV_CACHE) if elastic else 0
        needs.append(Need(max(int(peak * HEADROOM), weights) + cache))
    return Layout(tuple(needs), tensor, pipeline), "learned"


def reserve(asked: Demand, placement: Placement, gpus: Mapping[int, Gpu]) -> Reservation:
    """What the engine holds from now on."""
    shape = asked.shapes[asked.wanted.layouts.index(placement.layout)]
    cache = shape.part(KV_CACHE) if shape is not None and asked.elastic else 0
    return Reservation(
        gpu_ids=placement.gpu_ids,
        sizes=placement.sizes,
        totals=tuple(gpus[index].total for index in placement.gpu_ids),
        tensor_parallel=placement.layout.tensor_parallel,
        pipeline_parallel=placement.layout.pipeline_parallel,
        kv_cache=cache if cache and asked.source != "gpu_memory" else None,
        source=asked.source,
        filed_under=asked.filed_under,
        elastic=asked.elastic,
        floor=shape.part(WEIGHTS) if shape is not None else 0,
        reasons=(*_sized(asked, shape), *placement.reasons, *asked.notes),
    )


def _sized(asked: Demand, shape: Shape | None) -> tuple[str, ...]:
    if asked.source == "gpu_memory":
        return ("the size is `gpu_memory`",)
    if asked.source == "learned":
        return ("the size is the measured peak of an earlier run, and a little more",)
    if shape is None:
        return ()
    fullest = max(shape.ranks, key=lambda parts: sum(part.size for part in parts))
    parts = " + ".join(f"{part.name} {gib(part.size)}" for part in fullest)
    return (f"the size is an estimate: {parts} = {gib(max(shape.sizes))}",)
