"""Fit the constants of `sagectl_models.training_memory.Fit` to the measured runs, and print what they are.

Run it from the repository's root with sagectl installed: `python -m tests.tools.fit_training_memory`. It
takes ten seconds. Two steps, each a search along the axes for the least mean error: first what torch
allocated, then what the driver saw, where an estimate that is too small by more than `TOLERATED` costs
`BLAME` times as much as one that is too large: running out of memory is worse than reserving too much.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean

from sagectl_models.training_memory import MIB, Fit
from tests.tools.finetune_evidence import Run, measured

TOLERATED = 0.02
BLAME = 6.0

ALLOCATED: Mapping[str, float] = {
    "loss": 3.0,
    "loss32": 3.0,
    "eager": 8.0,
    "eager32": 8.0,
    "workspace": 16.0 * MIB,
}
HELD: Mapping[str, float] = {"idle_saved": 0.5, "idle_logits": 0.5, "idle_scores": 2.0}
"""Where the search begins."""


def cost_allocated(runs: list[Run], fit: Fit) -> float:
    """Mean error of what torch allocates."""
    return mean(abs(run.allocated_error(fit)) for run in runs)


def cost_held(runs: list[Run], fit: Fit) -> float:
    """Mean error of what the driver sees, too little weighing more."""
    errors = [run.error(fit) for run in runs]
    return mean(abs(error) + BLAME * max(0.0, -error - TOLERATED) for error in errors)


def search(start: Mapping[str, float], cost: Callable[[Mapping[str, float]], float]) -> dict[str, float]:
    """The point of least cost that steps along the axes, halved again and again, lead to."""
    point, steps = dict(start), {name: value / 2 for name, value in start.items()}
    best = cost(point)
    while max(steps[name] / start[name] for name in start) > 0.002:
        moved = False
        for name, step in steps.items():
            for change in (step, -step):
                tried = {**point, name: max(0.0, point[name] + change)}
                if (found := cost(tried)) < best - 1e-9:
                    point, best, moved = tried, found, True
        if not moved:
            steps = {name: step / 2 for name, step in steps.items()}
    return point


def with_constants(fit: Fit, constants: Mapping[str, float]) -> Fit:
    """`fit` with these constants."""
    whole = {name: round(value) if name == "workspace" else value for name, value in constants.items()}
    return replace(fit, **whole)  # type: ignore[arg-type]


def fitted(runs: list[Run]) -> Fit:
    """The constants that suit these runs best."""
    fit = with_constants(Fit(), search(ALLOCATED, lambda c: cost_allocated(runs, with_constants(Fit(), c))))
    return with_constants(fit, search(HELD, lambda c: cost_held(runs, with_constants(fit, c))))


def summary(name: str, errors: list[float]) -> str:
    """One line: how many, the mean error, the worst on each side."""
    return (
        f"{name:<28}{len(errors):>3} runs  mean {mean(map(abs, errors)):6.1%}  "
        f"worst under {min(0.0, *errors):6.1%}  over {max(0.0, *errors):6.1%}"
    )


def main() -> None:
    """Print the constants and how well they do."""
    runs = measured()
    fit = fitted([run for run in runs if run.fitted])
    print(replace(fit, workspace=round(fit.workspace / MIB)), "(workspace in MiB)")
    for name, current in (("these", fit), ("those in the product", Fit())):
        for part in (True, False):
            errors = [run.error(current) for run in runs if run.fitted is part]
            print(summary(f"{name}, {'fitted' if part else 'held out'}", errors))
    for left_out in sorted({run.model_name for run in runs}):
        other = fitted([run for run in runs if run.model_name != left_out])
        print(summary(f"without {left_out[:20]}", [r.error(other) for r in runs if r.model_name == left_out]))


if __name__ == "__main__":
    sys.exit(main())
