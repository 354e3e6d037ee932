"""Sizes in words."""

from __future__ import annotations

GIB = 1 << 30


def gib(size: int) -> str:
    """A size in GiB, in MiB below one of them: `20.0 GiB`, `512 MiB`."""
    if -GIB < size < GIB:
        return f"{round(size / (1 << 20))} MiB"
    return f"{size / GIB:.1f} GiB"
