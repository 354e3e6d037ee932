"""The steps of a job's past, as its kind reads them from the file that the job appends to."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

from sagectl.plugin import EngineKind, Point
from sagectl.plugin import history as read_by
from sagectl.system.samples import read_lines

log = logging.getLogger("sagectl.history")


def read(kind: EngineKind[Any], path: str, points: int) -> Sequence[Point]:
    """At most so many steps, the newest among them. It reads a file: call it in a thread."""
    text = read_lines(path)
    if not text:
        return ()
    try:
        return thinned(read_by(kind, text), points)
    except Exception:  # a plugin's code
        log.exception("the kind %s failed to read %s", kind.name, path)
        return ()


def thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """At most `most` of them: of each stretch the one that says most, the newest of equals.

    So that evaluations stay, which only some steps have. The first and the newest of all stay too.
    """
    if len(points) <= most:
        return points
    if most < 3:
        return [points[0], points[-1]][2 - most :]
    first, *between, newest = points
    edges = [place * len(between) // (most - 2) for place in range(most - 1)]
    chosen = [
        max(reversed(between[begin:end]), key=lambda point: len(point.values))
        for begin, end in itertools.pairwise(edges)
    ]
    return [first, *chosen, newest]
