"""What an llm engine's table holds beside the keys that every engine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sagectl.plugin import option

# sagectl decides these; two values for one flag would make its probes ask the wrong place.
OWNED_FLAGS = {
    "--host": "sagectl chooses the address that engines listen on",
    "--port": "set `port` instead",
    "--model": "set `model` instead",
    "--device": "set `device` or `gpu_ids` instead",
    "--dtype": "set `dtype` instead",
    "--trust-remote-code": "set `trust_remote_code` instead",
    "--continuous-batching": "set `continuous_batching` instead",
    "--quantization": "set `quantization` instead",
    "--attn-implementation": "set `attn_implementation` instead",
    "--non-blocking": "sagectl runs the server in the foreground",
}


@dataclass(frozen=True, slots=True)
class LlmOptions:
    """The options of the kind `llm`."""

    backend: Literal["auto", "transformers"] = option(
        "the server to run: transformers (`transformers serve`); auto chooses what is installed",
        default="auto",
    )
    device: str | None = option(
        "where the model runs: auto, cpu, cuda, cuda:0; default: cpu without GPUs, else auto", default=None
    )
    dtype: str = option("weights in auto, float32, bfloat16 or float16; auto: as stored", default="auto")
    max_model_len: int | None = option(
        "longest prompt plus answer, in tokens; `transformers serve` does not enforce it", default=None
    )
    trust_remote_code: bool = option("run Python code that the model's repository brings", default=False)
    continuous_batching: bool = option("serve requests together, with a paged KV cache", default=False)
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = option(
        "load weights as bnb-4bit or bnb-8bit (needs bitsandbytes)", default=None
    )
    attn_implementation: str | None = option(
        "eager, sdpa, flash_attention_2, flash_attention_3, flex_attention or a hub kernel", default=None
    )
    served_model_name: str | None = option(
        "the model name that clients send; transformers: only the last part of a directory's path",
        default=None,
        aliases=("served_name",),
    )
    threads: int | None = option("CPU threads (OMP_NUM_THREADS); default: one a core", default=None)
    extra_args: tuple[str, ...] = option("further flags for the server, as a list", default=())

    def __post_init__(self) -> None:
        for name in ("max_model_len", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not a positive number")
        for argument in self.extra_args:
            flag = argument.partition("=")[0]
            if flag in OWNED_FLAGS:
                raise ValueError(f"extra_args: {flag} belongs to sagectl; {OWNED_FLAGS[flag]}")
