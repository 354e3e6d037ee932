"""Run by vLLM's interpreter: what its own code says of caches and stages, as JSON from stdin to stdout."""

import json
import sys
from types import SimpleNamespace

import torch
from vllm.distributed.utils import get_pp_indices
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec
from vllm.v1.kv_cache_layout import KVCacheLayout

STEP = 2048


def spec(question, window):
    shape = {"block_size": question["block"], "num_kv_heads": question["heads"], "dtype": torch.bfloat16}
    if question["latent"]:
        return MLAAttentionSpec(**shape | {"num_kv_heads": 1}, head_size=question["latent"])
    shape["head_size"] = question["width"]
    return FullAttentionSpec(**shape) if window is None else SlidingWindowSpec(sliding_window=window, **shape)


def cache(question):
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=question["context"]),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False, max_num_batched_tokens=STEP),
        max_in_flight_tokens=2 * STEP,
        speculative_config=None,
        kv_transfer_config=None,
        attention_config=SimpleNamespace(hisparse_config=None),
        cache_config=SimpleNamespace(
            num_gpu_blocks_override=None,
            block_size=question["block"],
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
        ),
    )
    layers = {str(number): spec(question, window) for number, window in enumerate(question["windows"])}
    groups = kv_cache_utils.get_kv_cache_groups(config, layers)
    return kv_cache_utils._max_memory_usage_bytes_from_groups(config, groups)


asked = json.load(sys.stdin)
answers = {
    "caches": [cache(question) for question in asked["caches"]],
    "stages": [
        [get_pp_indices(layers, rank, count) for rank in range(count)] for layers, count in asked["stages"]
    ],
}
sys.stdout.write("\n" + json.dumps(answers) + "\n")
