"""Failures of `transformers serve` in the user's words, recognised by what it logs."""

from __future__ import annotations

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport
from sagectl_llm.options import LlmOptions


def explain(request: EngineRequest[LlmOptions], failure: FailureReport) -> Diagnosis | None:
    """The first recognised cause, or None."""
    log = "\n".join(failure.log)
    if "address already in use" in log:
        return Diagnosis(
            f"Port {request.port} is in use by another process",
            "Stop that process (`ss -ltnp` names it) or choose another `port`.",
        )
    return None
