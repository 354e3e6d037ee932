"""`FinetuneKind`: what fine-tuning needs, how its trainer is launched, how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from sagectl.plugin import (
    Diagnosis,
    EngineRequest,
    FactQuery,
    Facts,
    FailureReport,
    LaunchPlan,
    MemoryEstimate,
    Mode,
    Point,
    Progress,
    Refusal,
)
from sagectl_finetune import diagnoses, estimates, figures, planning
from sagectl_finetune.options import FinetuneOptions


class FinetuneKind:
    """A job that adapts a language model to data."""

    name = "finetune"
    summary = "LoRA, QLoRA or full fine-tuning of a language model"
    mode = Mode.RUN
    options = FinetuneOptions
    default_port: int | None = None

    def listens(self, options: FinetuneOptions) -> bool:
        """Never: it is a job."""
        return False

    def facts(self, request: EngineRequest[FinetuneOptions]) -> Sequence[FactQuery]:
        """The interpreter's modules, what the base model's files say, and what lies at the paths."""
        model = estimates.checkpoint(request)
        asked = planning.facts(request)
        return asked if model is None else (*asked, model)

    def estimate(self, request: EngineRequest[FinetuneOptions], facts: Facts) -> MemoryEstimate | Refusal:
        """What the job needs on each GPU."""
        return estimates.of(request, facts)

    def plan(self, request: EngineRequest[FinetuneOptions], facts: Facts) -> LaunchPlan | Refusal:
        """How to launch the trainer, or what is missing."""
        return planning.plan(request, facts)

    def explain(self, request: EngineRequest[FinetuneOptions], failure: FailureReport) -> Diagnosis | None:
        """Recognise the trainer's exit codes, and its own and torch's words for what went wrong."""
        return diagnoses.explain(request, failure)

    def progress(self, text: str) -> Progress | None:
        """Read what the trainer says of its steps."""
        return figures.progress(text)

    def history(self, text: str) -> Sequence[Point]:
        """Read what the trainer said of each step."""
        return figures.history(text)
