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
    Loading,
    MemoryEstimate,
    Mode,
    Progress,
    Refusal,
)
from sagectl_llm import diagnoses, estimates, owned_flags, transformers_backend, vllm_adapters, vllm_backend
from sagectl_llm.options import BACKENDS, LlmOptions
from sagectl_models import adapters, vllm_diagnoses, vllm_server
from sagectl_models.adapters import Adapter

_FACTS = {"vllm": vllm_backend.facts, "transformers": transformers_backend.facts}
_INTERPRETER = {
    "vllm": vllm_server.interpreter_query,
    "transformers": transformers_backend.interpreter_query,
}
_PLAN = {"vllm": vllm_backend.plan, "transformers": transformers_backend.plan}
_BASED = {"vllm": vllm_backend.based, "transformers": transformers_backend.based}


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
        return tuple(dict.fromkeys((*adapters.queries(request), *_asked(request))))

    def further_facts(self, request: EngineRequest[LlmOptions], facts: Facts) -> Sequence[FactQuery]:
        """Of an adapter: what there is of its base, and the module that loads it."""
        adapter = adapters.read(request, facts)
        if not isinstance(adapter, Adapter):
            return ()
        asked = _asked(adapters.based(request, adapter))
        return tuple(dict.fromkeys((*asked, transformers_backend.peft_query(request))))

    def estimate(self, request: EngineRequest[LlmOptions], facts: Facts) -> MemoryEstimate | Refusal:
        """The GPU memory that the server needs, and how it may be divided among GPUs."""
        backend = self._backend(request, facts)
        found = facts.interpreter(_INTERPRETER[backend](request))
        cpu_build = vllm_server.is_cpu_build(found)
        adapter = adapters.read(request, facts)
        if isinstance(adapter, Refusal):
            return adapter
        if adapter is None:
            return estimates.estimate(request, facts, backend=backend, cpu_build=cpu_build)
        based = _BASED[backend](request, adapter)
        if isinstance(based, Refusal):
            return based
        answer = estimates.estimate(based, facts, backend=backend, cpu_build=cpu_build)
        return answer if isinstance(answer, Refusal) else estimates.with_adapter(answer, adapter, backend)

    def plan(self, request: EngineRequest[LlmOptions], facts: Facts) -> LaunchPlan | Refusal:
        """How to launch the server, or what is missing."""
        options = request.options
        adapter = adapters.read(request, facts)
        if isinstance(adapter, Refusal):
            return adapter
        if options.backend != "auto":
            return _PLAN[options.backend](request, facts, adapter)
        backend = self._backend(request, facts)
        odd = options.misfit(backend)
        if odd is not None:
            key, wrong, remedy = odd
            return Refusal(f"{key}: {wrong}, which is the one that {request.python} has", remedy)
        trouble = owned_flags.trouble(backend, options.extra_args)
        if trouble is not None:
            return Refusal(f"extra_args: {trouble[0]}", trouble[1])
        return _PLAN[backend](request, facts, adapter)

    def loading(
        self, request: EngineRequest[LlmOptions], plan: LaunchPlan, facts: Facts, name: str, edition: int
    ) -> Loading | Refusal:
        """How the server, running by `plan`, takes in the adapter that `request.model` names."""
        adapter = adapters.read(request, facts)
        if isinstance(adapter, Refusal):
            return adapter
        if vllm_server.MODULE not in plan.argv:
            return Refusal("`transformers serve` takes in nothing while it runs", 'set backend = "vllm"')
        if adapter is None:
            reason = f"no adapter is in {request.model}; a whole model needs an engine of its own"
            return Refusal(reason, "leave that engine to the job, or train an adapter")
        return vllm_adapters.loading(request, plan, facts, adapter, name, edition)

    def _backend(self, request: EngineRequest[LlmOptions], facts: Facts) -> str:
        if request.options.backend != "auto":
            return request.options.backend
        found = facts.interpreter(_installed(request)).modules
        # With neither, what the simpler one lacks is said.
        return next((name for name in BACKENDS if found.get(name) is not None), "transformers")

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


def _asked(request: EngineRequest[LlmOptions]) -> tuple[FactQuery, ...]:
    """What the back ends that may be meant need to know of this model."""
    backend = request.options.backend
    model = estimates.queries(request)
    if backend != "auto":
        return (*_FACTS[backend](request), *model)
    asked = [query for name in BACKENDS for query in _FACTS[name](request)]
    return (_installed(request), *asked, *model)
