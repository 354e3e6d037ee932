"""How far a job is and how it got there, as a kind reads it from what the job wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Args:
        done, total: in `unit`; total None where it is not known.
        eta_seconds: to completion, None where it is not known.
        details: further figures (loss, learning rate), JSON scalars.
    """

    done: float
    total: float | None = None
    unit: str = "steps"
    eta_seconds: float | None = None
    details: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """A step of a job's past.

    Args:
        step: how much was done then, in the unit of its `Progress`.
        at: when, Unix seconds; None where it is not known.
        values: figures of that step (loss, learning rate), JSON scalars.
    """

    step: float
    at: float | None = None
    values: Mapping[str, Scalar] = field(default_factory=dict)


def history(kind: Any, text: str) -> Sequence[Point]:
    """What the kind reads in `LaunchPlan.history_file`; nothing for a kind that keeps no history.

    Args:
        text: whole lines, of a long file some of them.
    """
    found = getattr(kind, "history", None)
    points: Sequence[Point] = found(text) if callable(found) else ()
    return points
