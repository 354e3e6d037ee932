"""Reads what the trainer writes of its steps: progress.json and history.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sagectl.plugin import Point, Progress

_FIGURES = frozenset(
    {
        *("epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second"),
        *("trained_tokens", "memory_gb", "event"),
    }
)
_MOST = 1e15


def progress(text: str) -> Progress | None:
    """How far it is; None where the text does not say."""
    found = _object(text)
    if found is None or not _number(found.get("done")):
        return None
    total, eta = found.get("total"), found.get("eta_seconds")
    details = found.get("details")
    return Progress(
        done=found["done"],
        total=total if _number(total) else None,
        unit="steps",
        eta_seconds=eta if _number(eta) else None,
        details=_scalars(details) if isinstance(details, dict) else {},
    )


def history(text: str) -> Sequence[Point]:
    """The steps, each once: evaluations and events stand with the step that they belong to."""
    steps: dict[float, dict[str, Any]] = {}
    for line in text.splitlines():
        entry = _object(line)
        if entry is not None and _number(entry.get("step")):
            steps.setdefault(entry["step"], {}).update(entry)
    return [
        Point(
            step,
            entry["at"] if _number(entry.get("at")) else None,
            _scalars({key: value for key, value in entry.items() if key in _FIGURES}),
        )
        for step, entry in sorted(steps.items())
    ]


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # cut off by a kill, or not the trainer's
        return None
    return found if isinstance(found, dict) else None


def _number(value: Any) -> bool:
    # A comparison with NaN is false.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST


def _scalars(values: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
    """JSON's values: what is no finite number becomes a word."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
        if value is None or isinstance(value, str | int | float)
    }
