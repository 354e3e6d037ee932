"""The loss of a job over its steps, as a line of marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sagectl.cli import render
from sagectl.cli.progress import loss_of, sparkline

KEPT = 1000
"""Losses that a curve remembers; a terminal shows fewer."""
MOST_COLUMNS = 60


class Curve:
    """Losses by step. Steps that are done again after a resume replace what was there."""

    def __init__(self, steps: Iterable[Mapping[str, Any]] = ()) -> None:
        """
        Args:
            steps: of the API's history.
        """
        self._losses: list[tuple[float, float]] = []
        for step in steps:
            loss = loss_of(step)
            if loss is not None:
                self.add(step["step"], loss)

    def add(self, step: float, loss: float) -> None:
        """Note the loss of a step."""
        while self._losses and self._losses[-1][0] >= step:
            self._losses.pop()
        self._losses.append((step, loss))
        if len(self._losses) > KEPT:
            # Every other one: the newest and the oldest stay.
            self._losses = [self._losses[0], *self._losses[2::2]]

    def drawn(self, columns: int, *, unicode: bool) -> str:
        """`2.31 █▆▅▃▂▁ 1.284`, in so many columns at most; "" where there is nothing to compare."""
        if len(self._losses) < 2:
            return ""
        first, last = (f"{self._losses[place][1]:.4g}" for place in (0, -1))
        room = min(MOST_COLUMNS, columns - len(first) - len(last) - 2)
        if room < 2:
            return render.cut(f"{first} to {last}", columns, unicode=unicode)
        return f"{first} {sparkline(self._means(room), unicode=unicode)} {last}"

    def _means(self, columns: int) -> list[float]:
        """The mean loss of each stretch of steps that one column stands for."""
        begin, end = self._losses[0][0], self._losses[-1][0]
        stretches: dict[int, list[float]] = {}
        for step, loss in self._losses:
            place = int((step - begin) * columns / (end - begin))
            stretches.setdefault(min(place, columns - 1), []).append(loss)
        return [sum(losses) / len(losses) for _, losses in sorted(stretches.items())]
