"""Flags of the servers that sagectl sets itself, and so refuses in `extra_args`.

Two values for one of them would make its probes ask the wrong place, show a secret to everybody who can
run ps, or let the server act behind sagectl's back.
"""

from __future__ import annotations

from collections.abc import Sequence

COMMON = {
    "--host": "sagectl chooses the address that engines listen on",
    "--port": "set `port` instead",
    "--model": "set `model` instead",
    "--trust-remote-code": "set `trust_remote_code` instead",
    "--dtype": "set `dtype` instead",
    "--quantization": "set `quantization` instead",
    "--api-key": "arguments can be read by everybody: put VLLM_API_KEY=… in a file and name it in `env_file`",
    "--hf-token": "arguments can be read by everybody: put HF_TOKEN=… in a file and name it in `env_file`",
}
TRANSFORMERS = {
    "--device": "set `device` or `gpu_ids` instead",
    "--continuous-batching": "set `continuous_batching` instead",
    "--attn-implementation": "set `attn_implementation` instead",
    "--non-blocking": "sagectl runs the server in the foreground",
}
_TLS = "engines listen on loopback without TLS; put it in front of the gateway"
VLLM = {
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
    "--pipeline-parallel-size": "set `pipeline_parallel_size` instead",
    "--runner": 'set `kind = "embedding"` for a pooling model',
    "--convert": 'set `kind = "embedding"` for a pooling model',
}
_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-q": "--quantization",
    "-m": "--model",
}


def owned(backend: str) -> dict[str, str]:
    """The flags that are refused, and what to do instead. For `auto`, those that every back end refuses."""
    return COMMON | {"vllm": VLLM, "transformers": TRANSFORMERS}.get(backend, {})


def trouble(backend: str, arguments: Sequence[str]) -> tuple[str, str] | None:
    """The first argument that is sagectl's to set: what is wrong and what to do instead.

    The servers take `--x y` and `--x=y`, underscores for dashes, `--no-x`, and any beginning of a
    flag that is unique; all of that is meant too.
    """
    flags = owned(backend)
    for argument in arguments:
        written = argument.partition("=")[0]
        if not written.startswith("-") or len(written) < 2:
            continue
        flag = _meant(written, flags)
        if flag is not None:
            return f"{written} belongs to sagectl", flags[flag]
    return None


def _meant(written: str, flags: dict[str, str]) -> str | None:
    if not written.startswith("--"):
        # argparse takes `-tp2` and `-q awq` alike
        shorts = [long for short, long in _SHORT.items() if written.rstrip("0123456789") == short]
        return shorts[0] if shorts and shorts[0] in flags else None
    name = "--" + written[2:].replace("_", "-")
    for form in (name, name.replace("--no-", "--", 1)):
        if form in flags:
            return form
    return next((flag for flag in flags if flag.startswith(name) and len(name) > 2), None)
