"""`LlmKind`: chooses the back end and hands over to it."""

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
    Mode,
    Progress,
    Refusal,
)
from sagectl_llm import diagnoses, owned_flags, transformers_backend, vllm_backend
from sagectl_llm.options import BACKENDS, LlmOptions
from sagectl_models import vllm_diagnoses

_FACTS = {"vllm": vllm_backend.facts, "transformers": transformers_backend.facts}
_PLAN = {"vllm": vllm_backend.plan, "transformers": transformers_backend.plan}


class LlmKind:
    """A language model behind an OpenAI-compatible server."""

    name = "llm"
    summary = "a language model behind an OpenAI-compatible server (vLLM, transformers serve)"
    mode = Mode.SERVE
    options = LlmOptions
    default_port: int | None = 8001

    def listens(self, options: LlmOptions) -> bool:
        """Always: it is a server."""
        return True

    def facts(self, request: EngineRequest[LlmOptions]) -> Sequence[FactQuery]:
        """The interpreter's modules, and what lies where the model's name points to."""
        backend = request.options.backend
        if backend != "auto":
            return _FACTS[backend](request)
        asked: list[FactQuery] = [_installed(request)]
        asked += [query for name in BACKENDS for query in _FACTS[name](request)]
        return tuple(dict.fromkeys(asked))

    def plan(self, request: EngineRequest[LlmOptions], facts: Facts) -> LaunchPlan | Refusal:
        """How to launch the server, or what is missing."""
        options = request.options
        if options.backend != "auto":
            return _PLAN[options.backend](request, facts)
        found = facts.interpreter(_installed(request)).modules
        # With neither, what the simpler one lacks is said.
        backend = next((name for name in BACKENDS if found.get(name) is not None), "transformers")
        odd = options.misfit(backend)
        if odd is not None:
            key, wrong, remedy = odd
            return Refusal(f"{key}: {wrong}, which is the one that {request.python} has", remedy)
        trouble = owned_flags.trouble(backend, options.extra_args)
        if trouble is not None:
            return Refusal(f"extra_args: {trouble[0]}", trouble[1])
        return _PLAN[backend](request, facts)

    def explain(self, request: EngineRequest[LlmOptions], failure: FailureReport) -> Diagnosis | None:
        """Recognise the server's own words for what went wrong."""
        backend = request.options.backend
        if backend == "vllm" or (backend == "auto" and vllm_diagnoses.wrote(failure.log)):
            return vllm_diagnoses.explain(diagnoses.WORDS, request, failure)
        return diagnoses.explain(request, failure)

    def progress(self, text: str) -> Progress | None:
        """A server has no progress."""
        return None


def _installed(request: EngineRequest[LlmOptions]) -> InterpreterQuery:
    return InterpreterQuery(request.python, BACKENDS)
