"""`EmbeddingKind`: chooses the back end and hands over to it."""

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
from sagectl_embedding import diagnoses, sentence_transformers_backend
from sagectl_embedding.options import EmbeddingOptions


class EmbeddingKind:
    """A model that turns texts into vectors."""

    name = "embedding"
    summary = "texts into vectors behind OpenAI's /v1/embeddings (sentence-transformers)"
    mode = Mode.SERVE
    options = EmbeddingOptions
    default_port: int | None = 8090

    def listens(self, options: EmbeddingOptions) -> bool:
        """Always: it is a server."""
        return True

    def facts(self, request: EngineRequest[EmbeddingOptions]) -> Sequence[FactQuery]:
        """The interpreter's modules, and what lies where the model's name points to."""
        return sentence_transformers_backend.facts(request)

    def plan(self, request: EngineRequest[EmbeddingOptions], facts: Facts) -> LaunchPlan | Refusal:
        """How to launch the server, or what is missing."""
        return sentence_transformers_backend.plan(request, facts)

    def explain(self, request: EngineRequest[EmbeddingOptions], failure: FailureReport) -> Diagnosis | None:
        """Recognise the server's own words for what went wrong."""
        return diagnoses.explain(request, failure)

    def progress(self, text: str) -> Progress | None:
        """A server has no progress."""
        return None
