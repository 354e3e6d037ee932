"""Flags of the servers that sagectl sets itself, and so refuses in `extra_args`.

Two values for one of them would make its probes ask the wrong place, show a secret to everybody who can
run ps, or let the server act behind sagectl's back.
"""

from __future__ import annotations

from collections.abc import Sequence

from sagectl_models import flags, vllm_server

COMMON = {
    flag: vllm_server.OWNED_FLAGS[flag]
    for flag in ("--host", "--port", "--model", "--trust-remote-code", "--dtype", "--quantization")
} | vllm_server.SECRET_FLAGS
TRANSFORMERS = {
    "--device": "set `device` or `gpu_ids` instead",
    "--continuous-batching": "set `continuous_batching` instead",
    "--attn-implementation": "set `attn_implementation` instead",
    "--non-blocking": "sagectl runs the server in the foreground",
}
VLLM = vllm_server.OWNED_FLAGS | {
    "--pipeline-parallel-size": "set `pipeline_parallel_size` instead",
    "--runner": 'set `kind = "embedding"` for a pooling model',
    "--convert": 'set `kind = "embedding"` for a pooling model',
}


def owned(backend: str) -> dict[str, str]:
    """The flags that are refused, and what to do instead. For `auto`, those that every back end refuses."""
    return COMMON | {"vllm": VLLM, "transformers": TRANSFORMERS}.get(backend, {})


def trouble(backend: str, arguments: Sequence[str]) -> tuple[str, str] | None:
    """The first argument that is sagectl's to set: what is wrong and what to do instead."""
    return flags.trouble(owned(backend), arguments)
