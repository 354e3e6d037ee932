"""What a server that runs a model in plain torch holds: `transformers serve`, our own embedding server.

Weights are as they are stored unless a `dtype` converts them; the cache holds keys and values of all heads
for the whole sequence; a prompt goes through a layer as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sagectl.plugin import KV_CACHE, OVERHEAD, WEIGHTS, MemoryPart, Shape
from sagectl_models.architecture import ITEM_SIZES, Architecture
from sagectl_models.parallel import stages
from sagectl_models.serving_memory import ACTIVATIONS, CONTEXT, gib, layer_numbers, quantised, up
from sagectl_models.weights import Weights

_GAPS = 1.15
"""torch's allocator keeps more than is alive: blocks of many sizes leave gaps."""


def token_bytes(a: Architecture, dtype: str) -> int:
    """Bytes of cache for a token, in all layers. transformers keeps latent attention's expanded."""
    if a.encoder:
        return 0
    width = 2 * a.kv
    if a.latent is not None:
        width = a.heads * (a.latent.nope + a.latent.rope + a.latent.value)
    return sum(window != 0 for window in a.windows) * width * _item(dtype)


def language_shape(
    a: Architecture,
    weights: Weights,
    *,
    dtype: str,
    context: int,
    gpus: int,
    quantise: float | None,
    eager: bool,
) -> Shape:
    """`transformers serve` on so many GPUs, among which it divides the layers.

    Args:
        quantise: as in `Serving.quantise`.
        eager: attention writes its scores out.
    """
    item = _item(dtype)
    ranks = []
    for place, layers in enumerate(stages(a.layers, gpus)):
        size = sum(quantised(a, weights.layers[layer], quantise).size for layer in layers)
        size += (weights.embedding + weights.vision) if place == 0 else 0
        size += (weights.head + weights.other) if place == gpus - 1 else 0
        cache = token_bytes(a, dtype) * context * len(layers) // max(1, a.layers)
        scores = 2 * a.heads * context * context * item if eager else 0
        # A layer's cache grows by being copied.
        copied = 2 * token_bytes(a, dtype) * context // max(1, a.layers)
        work = context * item * layer_numbers(a) + scores + copied + a.vocab * 4 * 4
        each = token_bytes(a, dtype) / 1024
        ranks.append(
            (
                MemoryPart(WEIGHTS, size, _source(weights)),
                MemoryPart(
                    KV_CACHE,
                    cache,
                    f"one sequence of {context:,} tokens, {each:,.4g} KiB a token in all layers",
                ),
                MemoryPart(ACTIVATIONS, up(_GAPS * work), f"a prompt of {context:,} tokens in one step"),
                MemoryPart(OVERHEAD, CONTEXT, f"CUDA context {gib(CONTEXT)}"),
            )
        )
    return Shape(tuple(tuple(part for part in parts if part.size) for parts in ranks), 1, gpus)


def embedding_shape(
    a: Architecture | None, weights: Weights, converted: Weights, *, dtype: str, tokens: int
) -> Shape:
    """Our embedding server: one GPU, no cache.

    Args:
        weights, converted: as stored, and as `dtype` makes them on the GPU.
        tokens: of the largest batch, padding included.
    """
    size = max(weights.size, converted.size)
    work = 2 * converted.size // 10 if a is None else tokens * _item(dtype) * layer_numbers(a)
    parts: Sequence[MemoryPart] = (
        MemoryPart(WEIGHTS, size, _source(weights)),
        MemoryPart(ACTIVATIONS, up(_GAPS * work), f"{tokens:,} tokens in one batch"),
        MemoryPart(OVERHEAD, CONTEXT, f"CUDA context {gib(CONTEXT)}"),
    )
    return Shape((tuple(part for part in parts if part.size),))


def unknown_shape(size: int, tensor: int, pipeline: int, overhead: int, *, how: str) -> Shape:
    """Weights of which only the size is known."""
    parts = (
        MemoryPart(WEIGHTS, math.ceil(size / (tensor * pipeline)), how),
        MemoryPart(OVERHEAD, overhead, "CUDA context, workspaces and activations, assumed"),
    )
    return Shape((tuple(part for part in parts if part.size),) * (tensor * pipeline), tensor, pipeline)


def _item(dtype: str) -> int:
    return min(4, ITEM_SIZES.get(dtype, 4))


def _source(weights: Weights) -> str:
    source = "" if weights.exact else ", not from headers"
    return f"{weights.parameters:,} parameters{source}"
