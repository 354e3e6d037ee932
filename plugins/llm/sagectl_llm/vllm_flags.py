"""From the options of an llm engine to vLLM's flags and environment."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sagectl_llm.options import LlmOptions
from sagectl_models import vllm_server
from sagectl_models.flags import given
from sagectl_models.sizes import size_in_bytes

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
}
_SWITCHES = {
    "trust_remote_code": "--trust-remote-code",
    "enforce_eager": "--enforce-eager",
    "enable_sleep_mode": "--enable-sleep-mode",
    "enable_lora": "--enable-lora",
    "enable_auto_tool_choice": "--enable-auto-tool-choice",
}


def flags(
    options: LlmOptions, *, tensor: int, pipeline: int | None, on_cpu: bool, memory: Sequence[str] = ()
) -> tuple[str, ...]:
    """The command line after model, name and address.

    Args:
        tensor, pipeline: as the engine is laid out; None leaves the pipeline to vLLM.
        memory: flags that keep it within its share of the GPUs.
    """
    found = ["--dtype", options.dtype, *memory]
    for name, flag in _VALUES.items():
        value = getattr(options, name)
        if value is not None:
            found += [flag, str(value)]
    if pipeline is not None:
        found += ["--pipeline-parallel-size", str(pipeline)]
    found += [flag for name, flag in _SWITCHES.items() if getattr(options, name)]
    if options.enable_prefix_caching is not None:
        found.append(f"--{'' if options.enable_prefix_caching else 'no-'}enable-prefix-caching")
    if options.speculative_config is not None:
        found += ["--speculative-config", json.dumps(dict(options.speculative_config))]
    if options.kv_cache_memory is not None:
        found += ["--kv-cache-memory-bytes", str(size_in_bytes(options.kv_cache_memory))]
    elif on_cpu and options.max_model_len is None and not given("--max-model-len", options.extra_args):
        # The cache is our choice, so a model whose longest request does not fit in it must still start.
        found += ["--max-model-len", "auto"]
    if tensor != 1:
        found += ["--tensor-parallel-size", str(tensor)]
    if not given("--disable-access-log-for-endpoints", options.extra_args):
        found += ["--disable-access-log-for-endpoints", "/health,/metrics"]
    return (*found, *options.extra_args)


def environment(options: LlmOptions, *, may_be_cpu: bool) -> dict[str, str]:
    """The variables. What concerns the CPU build alone is harmless elsewhere.

    Args:
        may_be_cpu: no GPU is known to be given.
    """
    kv_cache = options.kv_cache_memory is None and not given("--kv-cache-memory-bytes", options.extra_args)
    return dict(vllm_server.environment(threads=options.threads, may_be_cpu=may_be_cpu, kv_cache=kv_cache))
