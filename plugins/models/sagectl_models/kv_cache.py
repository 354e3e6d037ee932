"""The size of vLLM's KV cache: for a token, and what one sequence takes at most.

Formulas: vLLM 0.32, v1/kv_cache_interface.py (max_memory_usage_bytes of each kind of layer) and
v1/core/kv_cache_utils.py (_get_kv_cache_groups_uniform_page_size, _max_memory_usage_bytes_from_groups).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sagectl_models.architecture import ITEM_SIZES, Architecture
from sagectl_models.parallel import kv_heads_on

BLOCK = 64
"""Tokens of a block: 16 to 64, as the attention's kernels want them."""
_SPARE = 1
"""Blocks of each group beside those that are filled: vLLM keeps one that stays empty."""
_FP8_LATENT = 656 / 576
"""With fp8 the latent vector has scales, and its rotary part stays in 16 bits: 656 bytes for 576 numbers."""
_STATES = 2
"""Copies of a linear layer's state that a sequence may hold."""


@dataclass(frozen=True, slots=True)
class Cache:
    """How the cache is kept.

    item: bytes of a number. fp8: its numbers have 8 bits.
    in_flight: tokens that are worked on at once and not settled; layers with a window keep them too.
    """

    item: float
    in_flight: int
    fp8: bool = False


def item_size(dtype: str, model_dtype: str) -> float:
    """Bytes of one number in a cache of this type (`auto`, `fp8`, `fp8_e5m2`, `bfloat16`, …)."""
    if dtype == "auto":
        return min(2, ITEM_SIZES.get(model_dtype, 2))
    if "4" in dtype and "fp4" in dtype:
        return 0.5625  # with a scale of 8 bits for 16 numbers
    if dtype.startswith(("fp8", "int8", "turboquant")):
        return 1
    return ITEM_SIZES.get(dtype, 2)


def layer_token(architecture: Architecture, tensor: int, cache: Cache) -> float:
    """Bytes that one layer keeps for a token on each rank."""
    if architecture.latent is not None:  # compressed for all heads, so that every rank has all of it
        return architecture.latent.width * cache.item * (_FP8_LATENT if cache.fp8 else 1)
    return 2 * kv_heads_on(architecture, tensor) * architecture.head_dim * cache.item


def per_token(architecture: Architecture, layers: Sequence[int], tensor: int, cache: Cache) -> int:
    """Bytes for one token of a short text in these layers, on each rank."""
    keeping = sum(architecture.windows[layer] != 0 for layer in layers)
    return 0 if architecture.encoder else round(keeping * layer_token(architecture, tensor, cache))


def sequence(
    architecture: Architecture, layers: Sequence[int], tensor: int, cache: Cache, context: int
) -> int:
    """Bytes that one sequence of `context` tokens takes at most in these layers, on each rank."""
    if architecture.encoder:
        return 0
    page = layer_token(architecture, tensor, cache) * BLOCK
    groups = _groups(architecture)
    here = frozenset(layers)
    widest = max((sum(layer in here for layer in group) for _, group in groups), default=0)
    blocks = sum(_blocks(window, cache, context) for window, _ in groups)
    linear = sum(architecture.windows[layer] == 0 for layer in layers)
    # A state is a page of its own, and pages are made equally large, by more tokens in each.
    states = linear * _STATES * max(page, architecture.state * 4 / tensor) if architecture.state else 0
    return round(page * widest * blocks + states)


def _blocks(window: int | None, cache: Cache, context: int) -> int:
    tokens = context if window is None else min(window - 1 + cache.in_flight, context)
    begun = 0 if tokens == context else 1  # a window need not begin where a block does
    return -(-tokens // BLOCK) + begun + _SPARE


def _groups(architecture: Architecture) -> list[tuple[int | None, list[int]]]:
    """vLLM's groups of layers with one window each, made as large as one another."""
    alike: dict[int | None, list[int]] = defaultdict(list)
    for layer, window in enumerate(architecture.windows):
        if window != 0:
            alike[window].append(layer)
    if not alike:
        return []
    least, most = min(map(len, alike.values())), max(map(len, alike.values()))
    size = most if most < 1.5 * least else least
    found = []
    for window, members in alike.items():
        count = -(-len(members) // size)
        found += [(window, members[start::count]) for start in range(count)]
    return found
