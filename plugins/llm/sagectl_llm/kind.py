"""`LlmKind`: chooses the back end and hands over to it."""

from __future__ import annotations

from collections.abc import Sequence

from sagectl.plugin import (
    Diagnosis,
    EngineRequest,
    FactQuery,
    Facts,
    FailureReport,
    LaunchPlan,
    Mode,
    Progress,
    Refusal,
)
from sagectl_llm import diagnoses, transformers_backend
from sagectl_llm.options import LlmOptions


class LlmKind:
    """A language model behind an OpenAI-compatible server."""

    name = "llm"
    summary = "a language model behind an OpenAI-compatible server (transformers serve)"
    mode = Mode.SERVE
    options = LlmOptions
    default_port: int | None = 8001

    def listens(self, options: LlmOptions) -> bool:
        """Always: it is a server."""
        return True

    def facts(self, request: EngineRequest[LlmOptions]) -> Sequence[FactQuery]:
        """The interpreter's modules, and what lies where the model's name points to."""
        return transformers_backend.facts(request)

    def plan(self, request: EngineRequest[LlmOptions], facts: Facts) -> LaunchPlan | Refusal:
        """How to launch the server, or what is missing."""
        return transformers_backend.plan(request, facts)

    def explain(self, request: EngineRequest[LlmOptions], failure: FailureReport) -> Diagnosis | None:
        """Recognise the server's own words for what went wrong."""
        return diagnoses.explain(request, failure)

    def progress(self, text: str) -> Progress | None:
        """A server has no progress."""
        return None
