"""GPU memory, as a kind speaks of it: what a checkpoint holds, what an engine needs, what it is granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WEIGHTS = "weights"
KV_CACHE = "kv-cache"
OVERHEAD = "overhead"
"""Names of parts that sagectl itself looks at; a kind names others as it likes."""


@dataclass(frozen=True, slots=True)
class CheckpointQuery:
    """What do the files of this model say about its size? Headers and small JSON are read, never weights.

    Args:
        model: an absolute directory, a directory below `models_dir`, or a name on the hub (with `@REVISION`
            at will) that is looked up in the engine's local cache of the hub; nothing is downloaded.
        models_dir: as in `EngineRequest`.
    """

    model: str
    models_dir: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a safetensors file. dtype: as there (`BF16`, `F8_E4M3`); size: bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """Answer to `CheckpointQuery`.

    path: the directory; None where there is none here, and `error` says why.
    tensors: by name, of all safetensors files that the index names, or of all there are.
    documents: small JSON files by their path within the directory (`config.json`,
        `quantize_config.json`, `modules.json`), parsed.
    weight_files: bytes of all files that hold weights, in whichever format.
    """

    path: str | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    weight_files: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """A part of what an engine holds on one GPU. how: the arithmetic behind it, for people."""

    name: str
    size: int
    how: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to lay an engine out over GPUs.

    ranks: for each of `tensor_parallel` × `pipeline_parallel` GPUs, in vLLM's order (the ranks of one
        pipeline stage are neighbours), the parts that it holds there.
    """

    ranks: tuple[tuple[MemoryPart, ...], ...]
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes per GPU, in the order of `ranks`."""
        return tuple(sum(part.size for part in parts) for parts in self.ranks)

    def part(self, name: str) -> int:
        """The largest part of this name on any GPU, in bytes."""
        return max((sum(p.size for p in parts if p.name == name) for parts in self.ranks), default=0)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What an engine needs of GPUs.

    shapes: the kind's preference first; more than one where the user left the parallelism to sagectl. A
        shape without ranks: it uses no GPU.
    filed_under: what learned footprints of this engine are kept under: the same model, context, quantisation
        and so on. Kind and parallelism are added by sagectl. Empty: nothing is learned.
    elastic: the engine takes whatever it is given for its cache, so that only what is not cache is learned.
    exact: the weights come from headers, not from a guess.
    notes: what was assumed, shown by `sagectl estimate` and `explain`.
    context: tokens of the sequence that the cache is reckoned for; None where there is none.
    kv_per_token: bytes of cache for a token of a short text, on the GPU with the most, in the first shape.
    share: the engine takes this share of each card whatever it needs, because the user told it so by an
        option of its kind; `gpu_memory` comes first.
    """

    shapes: tuple[Shape, ...]
    filed_under: str = ""
    elastic: bool = False
    exact: bool = True
    notes: tuple[str, ...] = ()
    context: int | None = None
    kv_per_token: int = 0
    share: float | None = None


@dataclass(frozen=True, slots=True)
class GpuGrant:
    """The GPUs and the memory on each that an engine was given, in the order of its ranks.

    Args:
        gpu_ids: as in `EngineRequest`.
        reserved: bytes on each; the engine must not take more.
        totals: bytes that each GPU has.
        kv_cache: bytes on each that were reckoned for the cache; None where the user chose the size, so that
            the cache is whatever is left of it.
    """

    gpu_ids: tuple[int, ...]
    reserved: tuple[int, ...]
    totals: tuple[int, ...]
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    kv_cache: int | None = None

    @property
    def share(self) -> float:
        """The smallest share of a GPU's total that is reserved there, in (0, 1]."""
        pairs = zip(self.reserved, self.totals, strict=True)
        return min((reserved / total for reserved, total in pairs), default=1.0)
