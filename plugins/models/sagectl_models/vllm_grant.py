"""From the memory that an engine was granted to vLLM's flags.

vLLM 0.32 takes `--gpu-memory-utilization` of the card for everything; where less is free it does not start.
With `--kv-cache-memory-bytes` the cache has that size and nothing is measured; the share is still asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sagectl.plugin import GpuGrant
from sagectl_models.flags import given, value
from sagectl_models.serving_memory import gib

SHARE = "--gpu-memory-utilization"
CACHE = "--kv-cache-memory-bytes"


@dataclass(frozen=True, slots=True)
class Told:
    """What the user himself says of vLLM's memory: by options, or by flags in `extra_args`."""

    share: bool
    cache: bool


def told(share: float | None, cache: int | str | None, extra_args: Sequence[str]) -> Told:
    """From the two options and the flags."""
    return Told(
        share is not None or given(SHARE, extra_args),
        cache is not None or given(CACHE, extra_args) or given("--kv-cache-memory", extra_args),
    )


def share_told(share: float | None, extra_args: Sequence[str]) -> float | None:
    """The share of each card that the user tells vLLM to take, by its option or its flag."""
    if share is not None:
        return share
    try:
        found = float(value(SHARE, extra_args) or "")
    except ValueError:
        return None
    return found if 0 < found <= 1 else None


def sized(grant: GpuGrant | None, user: Told) -> bool:
    """Whether sagectl chooses the size of the cache."""
    return grant is not None and bool(grant.kv_cache) and not user.share and not user.cache


def memory(grant: GpuGrant, user: Told) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The flags that keep vLLM within the grant, and notes. What the user says himself comes first."""
    if user.share:
        return (), (
            "gpu_memory_utilization is the user's own: vLLM does not learn that "
            f"{gib(min(grant.reserved))} of each GPU is reserved",
        )
    share = math.floor(grant.share * 10_000) / 10_000
    flags: tuple[str, ...] = (SHARE, f"{share:g}")
    notes: tuple[str, ...] = (
        f"gpu_memory_utilization = {share:g}: {gib(min(grant.reserved))} are reserved on each GPU",
    )
    if sized(grant, user):
        assert grant.kv_cache is not None
        flags += (CACHE, str(grant.kv_cache))
        notes += (f"kv_cache_memory = {gib(grant.kv_cache)}, as reckoned for one sequence",)
    return flags, notes
