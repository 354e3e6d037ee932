"""From the options of an llm engine to vLLM's flags and environment."""

from __future__ import annotations

import json

from sagectl_llm.options import LlmOptions, size_in_bytes

CPU_KV_CACHE_GIB = 2
"""vLLM's own choice on the CPU is 92% of the memory node, all of it resident from the start."""

_VALUES = {
    "max_model_len": "--max-model-len",
    "quantization": "--quantization",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_loras": "--max-loras",
    "max_lora_rank": "--max-lora-rank",
    "chat_template": "--chat-template",
    "tool_call_parser": "--tool-call-parser",
    "reasoning_parser": "--reasoning-parser",
    "seed": "--seed",
    "revision": "--revision",
    "tokenizer": "--tokenizer",
    "load_format": "--load-format",
    "shutdown_timeout": "--shutdown-timeout",
    "pipeline_parallel_size": "--pipeline-parallel-size",
}
_SWITCHES = {
    "trust_remote_code": "--trust-remote-code",
    "enforce_eager": "--enforce-eager",
    "enable_sleep_mode": "--enable-sleep-mode",
    "enable_lora": "--enable-lora",
    "enable_auto_tool_choice": "--enable-auto-tool-choice",
}


def flags(
    options: LlmOptions, *, gpus: int, on_cpu: bool, gpu_memory: str | int | None = None
) -> tuple[str, ...]:
    """The command line after model, name and address.

    Args:
        gpus: how many the engine is given; 0 where that is not known.
        gpu_memory: as the user wrote it; only a share of the card can be passed on.
    """
    found = ["--dtype", options.dtype]
    share = gpu_memory if isinstance(gpu_memory, str) and gpu_memory.endswith("%") else None
    if share is not None and options.gpu_memory_utilization is None and not on_cpu:
        found += ["--gpu-memory-utilization", f"{float(share[:-1]) / 100:g}"]
    for name, flag in _VALUES.items():
        value = getattr(options, name)
        if value is not None:
            found += [flag, str(value)]
    found += [flag for name, flag in _SWITCHES.items() if getattr(options, name)]
    if options.enable_prefix_caching is not None:
        found.append(f"--{'' if options.enable_prefix_caching else 'no-'}enable-prefix-caching")
    if options.speculative_config is not None:
        found += ["--speculative-config", json.dumps(dict(options.speculative_config))]
    if options.kv_cache_memory is not None:
        found += ["--kv-cache-memory-bytes", str(size_in_bytes(options.kv_cache_memory))]
    elif on_cpu and options.max_model_len is None and not _given(options, "--max-model-len"):
        # The cache is our choice, so a model whose longest request does not fit in it must still start.
        found += ["--max-model-len", "auto"]
    tensor = options.tensor_parallel_size or max(1, gpus // (options.pipeline_parallel_size or 1))
    if tensor != 1:
        found += ["--tensor-parallel-size", str(tensor)]
    if not _given(options, "--disable-access-log-for-endpoints"):
        found += ["--disable-access-log-for-endpoints", "/health,/metrics"]
    return (*found, *options.extra_args)


def environment(options: LlmOptions, *, may_be_cpu: bool) -> dict[str, str]:
    """The variables. What concerns the CPU build alone is harmless elsewhere.

    Args:
        may_be_cpu: no GPU is known to be given.
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
        if options.kv_cache_memory is None and not _given(options, "--kv-cache-memory-bytes"):
            env["VLLM_CPU_KVCACHE_SPACE"] = str(CPU_KV_CACHE_GIB)
    if options.threads is not None:
        env["OMP_NUM_THREADS"] = str(options.threads)
    return env


def _given(options: LlmOptions, flag: str) -> bool:
    return any(argument.partition("=")[0].replace("_", "-") == flag for argument in options.extra_args)
