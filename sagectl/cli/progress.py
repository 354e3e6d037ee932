"""How far a job is, in words, bars and sparklines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sagectl.cli import render

if TYPE_CHECKING:
    from sagectl.client import Engine

BAR = 24
"""Columns of a bar."""
SPARKS = "▁▂▃▄▅▆▇█"
PLAIN_SPARKS = "_.-=+*#@"
_APART = ("phase", "event")
"""Details that stand in a place of their own."""
_FIRST = (
    *("epoch", "loss", "eval_loss", "learning_rate", "tokens_per_second", "trained_tokens", "memory_gb"),
    "grad_norm",
)
"""Details that people look for, before others: a terminal may cut the rest off."""
_TRAINING = "training"


def headline(progress: Mapping[str, Any] | None, *, running: bool = True) -> str:
    """`37% step 120/320, 4m left`; what it does instead of training where it says so.

    Args:
        running: what is left is told of jobs that run only.
    """
    if not progress:
        return ""
    done, total, unit = progress["done"], progress["total"], progress["unit"]
    count = f"{done:g}{f'/{total:g}' if total else ''}"
    words = [f"step {count}" if unit == "steps" else f"{count} {unit}"]
    if total:
        words.insert(0, f"{percent(progress)}%")
    phase = (progress.get("details") or {}).get("phase")
    other = isinstance(phase, str) and phase != _TRAINING and running
    if other and not done:
        words = []
    parts = [" ".join(words)] if words else []
    if other:
        parts.append(render.clean(str(phase)))
    if running and progress.get("eta_seconds") is not None:
        parts.append(f"{render.duration(round(progress['eta_seconds']))} left")
    return ", ".join(parts)


def percent(progress: Mapping[str, Any]) -> int:
    """Whole percents that are done; 100 of what is complete only."""
    total = progress["total"]
    return max(0, min(100, int(100 * progress["done"] / total))) if total else 0


def in_list(engine: Engine) -> str:
    """The cell of a table: nothing for what is complete."""
    if not engine["progress"] or engine["substate"] == "completed":
        return ""
    return headline(engine["progress"], running=engine["state"] == "active")


def bar(progress: Mapping[str, Any], *, unicode: bool, width: int = BAR) -> str:
    """`█████░░░░░`, `[#####-----]`; nothing where the whole is not known."""
    if not progress["total"]:
        return ""
    full = width * percent(progress) // 100
    if unicode:
        return "█" * full + "░" * (width - full)
    return f"[{'#' * full}{'-' * (width - full)}]"


def sparkline(values: Sequence[float], *, unicode: bool) -> str:
    """A column for each value, from the lowest to the highest; `!` for one that is no number."""
    marks = SPARKS if unicode else PLAIN_SPARKS
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high - low

    def mark(value: float) -> str:
        if not math.isfinite(value):
            return "!"
        return marks[round((value - low) / span * (len(marks) - 1))] if span else marks[0]

    return "".join(mark(value) for value in values)


def details(progress: Mapping[str, Any]) -> str:
    """`epoch 0.42, loss 1.234, learning rate 9.1e-05, 1,234 tokens/s`."""
    found = progress.get("details") or {}
    keys = [*(key for key in _FIRST if key in found), *(key for key in found if key not in _FIRST)]
    return ", ".join(_detail(key, found[key]) for key in keys if found[key] is not None and key not in _APART)


def lines(engine: Engine, style: render.Style) -> list[str]:
    """The bar with the headline, the details, and what is wrong, as `status` shows them."""
    progress = engine["progress"]
    if not progress:
        return []
    drawn = bar(progress, unicode=style.unicode)
    told = headline(progress, running=engine["state"] == "active")
    event = (progress.get("details") or {}).get("event")
    return [
        line
        for line in (
            " ".join(part for part in (drawn, told) if part),
            details(progress),
            render.clean(str(event)) if event else "",
        )
        if line
    ]


def loss(engine: Engine) -> float | None:
    """The newest loss; NaN where it is no number; None where there is none."""
    return loss_of((engine["progress"] or {}).get("details") or {})


def loss_of(figures: Mapping[str, Any]) -> float | None:
    """The loss among a step's figures, likewise."""
    found = figures.get("loss")
    if found is None or isinstance(found, bool):
        return None
    try:
        return float(found)
    except ValueError:
        return None


def _detail(key: str, value: Any) -> str:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    match key:
        case "tokens_per_second" if number is not None:
            return f"{number:,.0f} tokens/s"
        case "trained_tokens" if number is not None:
            return f"{number:,.0f} tokens trained"
        case "memory_gb" if number is not None:
            return f"{render.gib(number)} of memory"
    name = render.clean(key.replace("_", " "))
    if isinstance(value, bool):
        return f"{name} {'yes' if value else 'no'}"
    if isinstance(value, float):
        return f"{name} {value:.4g}"
    return f"{name} {render.clean(str(value))}"
