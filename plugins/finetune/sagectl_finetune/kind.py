"""`FinetuneKind`: estimates the memory of fine-tuning. This version has no trainer, and says so."""

from __future__ import annotations

from collections.abc import Sequence

from sagectl.plugin import (
    Diagnosis,
    EngineRequest,
    FactQuery,
    Facts,
    FailureReport,
    InterpreterQuery,
    LaunchPlan,
    MemoryEstimate,
    Mode,
    Progress,
    Refusal,
)
from sagectl_finetune import estimates
from sagectl_finetune.options import FinetuneOptions


class FinetuneKind:
    """A job that adapts a language model to data."""

    name = "finetune"
    summary = "LoRA, QLoRA or full fine-tuning of a language model (this version estimates its memory only)"
    mode = Mode.RUN
    options = FinetuneOptions
    default_port: int | None = None

    def listens(self, options: FinetuneOptions) -> bool:
        """Never: it is a job."""
        return False

    def facts(self, request: EngineRequest[FinetuneOptions]) -> Sequence[FactQuery]:
        """The interpreter's modules, and what the base model's files say."""
        model = estimates.checkpoint(request)
        modules = InterpreterQuery(request.python, estimates.MODULES)
        return (modules,) if model is None else (modules, model)

    def estimate(self, request: EngineRequest[FinetuneOptions], facts: Facts) -> MemoryEstimate | Refusal:
        """What the job needs on each GPU."""
        return estimates.of(request, facts)

    def plan(self, request: EngineRequest[FinetuneOptions], facts: Facts) -> LaunchPlan | Refusal:
        """Refused: there is no trainer in this version."""
        return Refusal(
            "this version of sagectl estimates the memory of fine-tuning, and does not train yet",
            f"see what it would need: `sagectl estimate {request.model or 'MODEL'} "
            f"--method {request.options.method}`",
        )

    def explain(self, request: EngineRequest[FinetuneOptions], failure: FailureReport) -> Diagnosis | None:
        """Nothing runs, so that nothing fails."""
        return None

    def progress(self, text: str) -> Progress | None:
        """Nothing runs."""
        return None
