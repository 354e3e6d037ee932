"""What a server of a model holds on each of its GPUs: weights, KV cache, activations, graphs, overhead.

Weights are counted, the cache is vLLM's own arithmetic. The rest is reckoned from what is alive at once, with
these figures, which err on the large side:

- CUDA context with the kernels of torch and cuBLAS: 0.14 GiB on a T4, about 0.6 GiB on large cards.
- Attention's workspace: 394 MiB (VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE of vLLM 0.32, envs.py).
- CUDA graphs: vLLM's log says 0.5 to 0.6 GiB for 8 billion parameters in 32 layers, about 1 GiB for 80.
- NCCL and vLLM's own all-reduce: buffers of each channel and peer, 0.5 to 1.3 GiB for 2 to 8 ranks.
- The sampler: vLLM sizes it with top-p for `max_num_seqs` requests; numbers, sorted numbers, probabilities
  and noise are six float32 copies of requests × vocabulary (v1/worker/gpu_model_runner.py,
  _dummy_sampler_run), on each rank for the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sagectl.plugin import KV_CACHE, OVERHEAD, WEIGHTS, MemoryPart, Shape
from sagectl_models import kv_cache
from sagectl_models.architecture import ITEM_SIZES, Architecture
from sagectl_models.kv_cache import Cache
from sagectl_models.parallel import kv_heads_on, stages
from sagectl_models.weights import LayerWeights, Weights

MIB = 1 << 20
GIB = 1 << 30
ACTIVATIONS = "activations"
GRAPHS = "cuda-graphs"
ADAPTERS = "adapters"
SPARE = "spare"

CONTEXT = 640 * MIB
"""CUDA context and libraries of one process on one GPU; no allocator counts it."""
WORKSPACE = 394 * MIB
STEP_TOKENS = 2048
"""vLLM's max_num_batched_tokens on cards below 70 GiB; larger ones take more unless they are told."""
MEDIA_STEP_TOKENS = 8192
"""For models that take images: vLLM raises it until the largest fits."""
SEQUENCES = 256
_SAMPLER_COPIES = 6
_ROUND = 16 * MIB
_GRAPH_BASE, _GRAPH_LAYER = 256 * MIB, 10 * MIB
_LATENT_PREFILL = 65536
"""Tokens whose compressed cache is expanded at once (vLLM's mla_attention.py)."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How vLLM serves a model.

    context: tokens of the longest sequence.
    cache_dtype: of the KV cache, `auto` for that of the numbers.
    cache: bytes of the KV cache on each GPU where the user chose it.
    quantise: bytes of a linear layer's parameter where it is quantised when loaded, else None.
    lora: ranks × adapters in one batch, 0 without.
    """

    context: int
    dtype: str = "bfloat16"
    cache_dtype: str = "auto"
    cache: int | None = None
    quantise: float | None = None
    step_tokens: int = STEP_TOKENS
    sequences: int = SEQUENCES
    eager: bool = False
    lora: int = 0


def shape(a: Architecture, weights: Weights, serving: Serving, tensor: int, pipeline: int = 1) -> Shape:
    """What each rank of a vLLM holds."""
    ranks: list[tuple[MemoryPart, ...]] = []
    for place, layers in enumerate(stages(a.layers, pipeline)):
        first, last = place == 0, place == pipeline - 1
        parts = (
            _weights_part(a, weights, serving, tensor, layers, first, last),
            _cache_part(a, serving, tensor, pipeline, layers),
            _activations(a, serving, tensor, last),
            _graphs(layers, serving, a.encoder),
            _adapters(a, serving, tensor, layers),
            _overhead(a, tensor, pipeline, layers),
        )
        ranks += [tuple(part for part in parts if part.size)] * tensor
    return Shape(tuple(ranks), tensor, pipeline)


def cache_of(a: Architecture, serving: Serving, pipeline: int = 1) -> Cache:
    """The cache's numbers. Two steps and more are under way at once, one for each stage besides."""
    item = kv_cache.item_size(serving.cache_dtype, serving.dtype)
    return Cache(item, (pipeline + 1) * serving.step_tokens, serving.cache_dtype.startswith("fp8"))


def token_bytes(a: Architecture, serving: Serving, tensor: int = 1, pipeline: int = 1) -> int:
    """Bytes of KV cache for one token of a short text, on the GPU with the most."""
    cache = cache_of(a, serving, pipeline)
    return max(kv_cache.per_token(a, layers, tensor, cache) for layers in stages(a.layers, pipeline))


def quantised(a: Architecture, layer: LayerWeights, bytes_each: float | None) -> LayerWeights:
    """A layer whose matrices are quantised while they are loaded."""
    if bytes_each is None or not layer.linear or a.quantisation is not None:
        return layer
    factor = min(1.0, bytes_each * layer.linear / max(1, layer.split + layer.kv))
    return LayerWeights(
        math.ceil(layer.split * factor), math.ceil(layer.kv * factor), layer.copied, layer.linear
    )


def up(size: float, step: int = _ROUND) -> int:
    """Rounded up: what is reckoned is not known to the byte."""
    return math.ceil(size / step) * step


def gib(size: float) -> str:
    """A size for a part's arithmetic."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{round(size / MIB)} MiB"


# --- the parts -----------------------------------------------------------------------------------


def _weights_part(
    a: Architecture,
    weights: Weights,
    serving: Serving,
    tensor: int,
    layers: Sequence[int],
    first: bool,
    last: bool,
) -> MemoryPart:
    copies = kv_heads_on(a, tensor) / a.kv_heads
    size = 0
    for layer in layers:
        one = quantised(a, weights.layers[layer], serving.quantise)
        size += math.ceil(one.split / tensor) + math.ceil(one.kv * copies) + one.copied
    # Towers are held whole: few of them are divided.
    size += (math.ceil(weights.embedding / tensor) + weights.vision) if first else 0
    head = weights.head or weights.embedding
    if last:
        size += weights.other
        size += math.ceil(head / tensor) if weights.head or not first else 0
    source = f"{weights.parameters:,} parameters, {gib(weights.size)} in all"
    source += "" if weights.exact else ", not from headers"
    part = "" if len(layers) == a.layers else f", layers {layers[0]} to {layers[-1]}"
    return MemoryPart(WEIGHTS, size, f"{source}{part}{f', 1/{tensor} of each layer' if tensor > 1 else ''}")


def _cache_part(
    a: Architecture, serving: Serving, tensor: int, pipeline: int, layers: Sequence[int]
) -> MemoryPart:
    if serving.cache is not None:
        return MemoryPart(KV_CACHE, serving.cache, "as kv_cache_memory says")
    cache = cache_of(a, serving, pipeline)
    size = kv_cache.sequence(a, layers, tensor, cache, serving.context)
    each = kv_cache.per_token(a, layers, tensor, cache)
    how = f"one sequence of {serving.context:,} tokens, {each / 1024:,.4g} KiB a token"
    windows = {window for window in a.windows if window}
    if any(window < serving.context for window in windows):
        how += f", in some layers for the last {max(windows):,} only"
    return MemoryPart(KV_CACHE, size, how)


def _activations(a: Architecture, serving: Serving, tensor: int, last: bool) -> MemoryPart:
    """The larger of one step through a layer and the sampler, with a tenth for the allocator's gaps."""
    item = min(4, ITEM_SIZES.get(serving.dtype, 2))
    tokens = serving.step_tokens
    forward = tokens * item * layer_numbers(a, tensor)
    if a.latent is not None:
        width = a.latent.nope + a.latent.rope + a.latent.value
        forward += _LATENT_PREFILL * item * width * a.heads // tensor
    sampler = 0 if a.encoder or not last else serving.sequences * a.vocab * 4 * _SAMPLER_COPIES
    how = f"{tokens:,} tokens in one step"
    how += f", {serving.sequences} requests sampled from {a.vocab:,} words" if sampler > forward else ""
    return MemoryPart(ACTIVATIONS, up(1.1 * max(forward, sampler)), how)


def layer_numbers(a: Architecture, tensor: int = 1) -> int:
    """Numbers alive for each token while a layer is computed: residual, input and output, attention, MLP."""
    own = 4 * a.hidden + (2 * a.query + 2 * a.kv) // tensor
    wide = 3 * a.intermediate // tensor
    if a.experts is not None:
        each = 3 * a.experts.intermediate // tensor + a.hidden
        shared = 3 * a.experts.shared_intermediate // tensor
        wide = max(wide if len(a.experts.layers) < a.layers else 0, a.experts.per_token * each + shared)
    return own + wide


def _graphs(layers: Sequence[int], serving: Serving, encoder: bool) -> MemoryPart:
    size = 0 if serving.eager or encoder else _GRAPH_BASE + _GRAPH_LAYER * len(layers)
    return MemoryPart(GRAPHS, size, f"of {len(layers)} layers; enforce_eager does without")


def _adapters(a: Architecture, serving: Serving, tensor: int, layers: Sequence[int]) -> MemoryPart:
    """Slots for adapters of all linear layers, as vLLM allots them at its start."""
    if not serving.lora:
        return MemoryPart(ADAPTERS, 0)
    into = 3 * a.hidden + a.query + 2 * a.hidden + a.intermediate
    out = (a.query + 2 * a.kv + a.hidden + 2 * a.intermediate + a.hidden) // tensor
    factor = a.experts.count if a.experts is not None else 1
    size = len(layers) * serving.lora * (into + out) * 2 * factor
    return MemoryPart(ADAPTERS, up(size), f"max_loras × max_lora_rank = {serving.lora}")


def _overhead(a: Architecture, tensor: int, pipeline: int, layers: Sequence[int]) -> MemoryPart:
    size = CONTEXT + (0 if a.encoder else WORKSPACE)
    how = f"CUDA context {gib(CONTEXT)}" + ("" if a.encoder else f", workspace {gib(WORKSPACE)}")
    links = 256 * MIB * (math.ceil(math.log2(tensor)) + 1) if tensor > 1 else 0
    links += 256 * MIB if pipeline > 1 else 0
    if links:
        size += links
        how += f", NCCL {gib(links)}"
    if a.latent is not None:  # kv_b_proj a second time, as two matrices of 16 bits
        absorbed = len(layers) * a.heads * (a.latent.nope + a.latent.value) * a.latent.rank * 2 // tensor
        size += absorbed
        how += f", absorbed projections {gib(absorbed)}"
    return MemoryPart(OVERHEAD, up(size), how)
