"""How far a run is, and how fast: arithmetic on what the steps of this session took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

SPEED_OVER = 20
"""Steps that the speed is the mean of."""
JUMP = 5.0
"""A loss this many times the mean of the last ones is an event."""
JUMP_OVER = 20
KNOWN = 3
"""Losses that have to be known before one can jump."""


@dataclass(slots=True)
class Meter:
    """Counts steps, tokens and time.

    first: steps that earlier sessions did. total: steps of the whole run. started: when this session's first
    step began; evaluation and saving count, loading does not.
    """

    total: int
    first: int
    started: float
    trained_tokens: int = 0
    tokens: int = 0
    _marks: list[tuple[float, int]] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)

    def eta(self, step: int, now: float) -> float | None:
        """Seconds until the last step, by the steps of this session; None before the first of them."""
        done = step - self.first
        if done < 1:
            return None
        return max(0.0, (self.total - step) * (now - self.started) / done)

    def count(self, tokens: int, trained: int, now: float) -> None:
        """Note what a step computed and what of it was trained on."""
        self.tokens += tokens
        self.trained_tokens += trained
        self._marks = [*self._marks[-SPEED_OVER:], (now, self.tokens)]

    def speed(self) -> float | None:
        """Tokens a second, prompts included and padding not, over the last steps."""
        if len(self._marks) < 2:
            return None
        (before, less), (now, more) = self._marks[0], self._marks[-1]
        return (more - less) / (now - before) if now > before else None

    def event(self, loss: float) -> str | None:
        """What is wrong with this loss, in words; None where nothing is."""
        if math.isnan(loss):
            return "the loss is NaN"
        if math.isinf(loss):
            return "the loss is infinite"
        known, self._losses = self._losses, [*self._losses[1 - JUMP_OVER :], loss]
        mean = sum(known) / len(known) if known else 0.0
        if len(known) >= KNOWN and mean > 0 and loss > JUMP * mean:
            return f"the loss jumped to {loss:.4g}, its mean was {mean:.4g}"
        return None


def patience_is_over(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` evaluations were no better than the best before them."""
    if len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])


def best_of(losses: Sequence[tuple[int, float]]) -> int | None:
    """The step of the lowest loss, the earliest of equals; NaN never."""
    usable = [(loss, step) for step, loss in losses if not math.isnan(loss)]
    return min(usable)[1] if usable else None


def steps_of(examples: int, batch: int, accumulation: int, epochs: float, most: int | None) -> int:
    """Steps of a run over all processes: `batch` is that of all of them together."""
    batches = math.ceil(examples / batch)
    return most if most is not None else max(1, math.ceil(epochs * max(1, math.ceil(batches / accumulation))))
