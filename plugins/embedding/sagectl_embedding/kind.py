"""`EmbeddingKind`: chooses the back end and hands over to it."""

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
from sagectl_embedding import diagnoses, estimates, sentence_transformers_backend, vllm_backend
from sagectl_embedding.options import BACKENDS, EmbeddingOptions
from sagectl_models import vllm_diagnoses

_FACTS = {"sentence-transformers": sentence_transformers_backend.facts, "vllm": vllm_backend.facts}
_PLAN = {"sentence-transformers": sentence_transformers_backend.plan, "vllm": vllm_backend.plan}
_MODULE = {"sentence-transformers": "sentence_transformers", "vllm": "vllm"}


class EmbeddingKind:
    """A model that turns texts into vectors."""

    name = "embedding"
    summary = "texts into vectors behind OpenAI's /v1/embeddings (sentence-transformers, vLLM)"
    mode = Mode.SERVE
    options = EmbeddingOptions
    default_port: int | None = 8090
    default_gpus = 0  # embedding models are small, and GPUs have other work

    def listens(self, options: EmbeddingOptions) -> bool:
        """Always: it is a server."""
        return True

    def facts(self, request: EngineRequest[EmbeddingOptions]) -> Sequence[FactQuery]:
        """The interpreter's modules, and what lies where the model's name points to."""
        backend = request.options.backend
        model = estimates.queries(request)
        if backend != "auto":
            return (*_FACTS[backend](request), *model)
        asked: list[FactQuery] = [_installed(request)]
        asked += [query for name in BACKENDS for query in _FACTS[name](request)]
        return tuple(dict.fromkeys((*asked, *model)))

    def estimate(self, request: EngineRequest[EmbeddingOptions], facts: Facts) -> MemoryEstimate | Refusal:
        """The GPU memory that the server needs."""
        return estimates.estimate(request, facts, backend=self._backend(request, facts))

    def plan(self, request: EngineRequest[EmbeddingOptions], facts: Facts) -> LaunchPlan | Refusal:
        """How to launch the server, or what is missing."""
        options = request.options
        if options.backend != "auto":
            return _PLAN[options.backend](request, facts)
        backend = self._backend(request, facts)
        odd = options.misfit(backend)
        if odd is not None:
            key, wrong, remedy = odd
            return Refusal(f"{key}: {wrong}, which is the one that {request.python} has", remedy)
        trouble = options.owned_flag(backend)
        if trouble is not None:
            return Refusal(f"extra_args: {trouble[0]}", trouble[1])
        return _PLAN[backend](request, facts)

    def _backend(self, request: EngineRequest[EmbeddingOptions], facts: Facts) -> str:
        if request.options.backend != "auto":
            return request.options.backend
        found = facts.interpreter(_installed(request)).modules
        # With neither, what the smaller one lacks is said.
        return next((name for name in BACKENDS if found.get(_MODULE[name]) is not None), BACKENDS[0])

    def explain(self, request: EngineRequest[EmbeddingOptions], failure: FailureReport) -> Diagnosis | None:
        """Recognise the server's own words for what went wrong."""
        backend = request.options.backend
        if backend == "vllm" or (backend == "auto" and vllm_diagnoses.wrote(failure.log)):
            return vllm_diagnoses.explain(diagnoses.WORDS, request, failure, diagnoses.POOLING)
        return diagnoses.explain(request, failure)

    def progress(self, text: str) -> Progress | None:
        """A server has no progress."""
        return None


def _installed(request: EngineRequest[EmbeddingOptions]) -> InterpreterQuery:
    return InterpreterQuery(request.python, tuple(_MODULE.values()))
