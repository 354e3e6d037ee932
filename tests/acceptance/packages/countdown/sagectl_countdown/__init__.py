"""The engine kind `countdown`: a job that counts to a number, goes on where it was stopped, and completes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagectl.plugin import (
    Diagnosis,
    EngineKind,
    EngineRequest,
    FactQuery,
    Facts,
    FailureReport,
    InterpreterQuery,
    LaunchPlan,
    Mode,
    Progress,
    Refusal,
    hookimpl,
    option,
)

PROGRAM = Path(__file__).with_name("count.py")


@dataclass(frozen=True, slots=True)
class CountdownOptions:
    steps: int = option("how far to count", default=3)
    hold: str | None = option("wait before the last step until this file exists", default=None)
    fail_at: int | None = option("fail at this step", default=None, aliases=("break_at",))

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps: there is nothing to count; write 1 or more")


class CountdownKind:
    name = "countdown"
    summary = "counts to a number"
    mode = Mode.RUN
    options = CountdownOptions
    default_port: int | None = None

    def listens(self, options: CountdownOptions) -> bool:
        return False

    def facts(self, request: EngineRequest[CountdownOptions]) -> Sequence[FactQuery]:
        return (InterpreterQuery(request.python, ("json",)),)

    def plan(self, request: EngineRequest[CountdownOptions], facts: Facts) -> LaunchPlan | Refusal:
        error = facts.interpreter(InterpreterQuery(request.python, ("json",))).error
        if error is not None:
            return Refusal(f"{request.python} cannot be run: {error}", "correct `python`")
        file = f"{request.state_dir}/progress.json"
        options = request.options
        words = [request.python, "-I", "-S", str(PROGRAM), file, str(options.steps)]
        words += [options.hold or "", str(options.fail_at or 0)]
        return LaunchPlan(argv=tuple(words), progress_file=file)

    def explain(self, request: EngineRequest[CountdownOptions], failure: FailureReport) -> Diagnosis | None:
        if any("miscounted" in line for line in failure.log):
            return Diagnosis("It miscounted", "Take `fail_at` out.", retryable=False)
        return None

    def progress(self, text: str) -> Progress | None:
        found = json.loads(text)
        return Progress(found["done"], found["total"], "numbers", details={"newest": found["done"]})


@hookimpl
def sagectl_engine_kinds() -> Sequence[EngineKind[Any]]:
    return (CountdownKind(),)
