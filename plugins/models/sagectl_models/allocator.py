"""A limit for torch's allocator, so that a server of ours cannot take more than its reservation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sagectl.plugin import GpuGrant
from sagectl_models.serving_memory import CONTEXT, gib

VARIABLE = "SAGECTL_GPU_MEMORY_FRACTION"
"""Read by the programs that run in the engine's interpreter: a share of each visible card."""
LEAST = 0.001


@dataclass(frozen=True, slots=True)
class Cap:
    """Variables for the engine, and a note for `sagectl explain`."""

    note: str
    env: Mapping[str, str] = field(default_factory=dict)


def cap(grant: GpuGrant | None) -> Cap | None:
    """The limit that a grant sets; None without GPUs.

    What CUDA itself holds is outside of torch's allocator and taken off first. The same share is used on
    each card, so the smallest.
    """
    if grant is None or not grant.reserved:
        return None
    pairs = list(zip(grant.reserved, grant.totals, strict=True))
    share = min((reserved - CONTEXT) / total for reserved, total in pairs)
    share = max(LEAST, math.floor(share * 10_000) / 10_000)
    smallest = min(grant.reserved)
    note = f"torch may take {share:.2%} of each GPU, what CUDA itself needs ({gib(CONTEXT)}) comes on top: "
    return Cap(note + f"together {gib(smallest)}, as reserved", {VARIABLE: f"{share:g}"})
