"""What an embedding engine's table holds beside the keys that every engine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sagectl.plugin import option

# sagectl decides these; two values for one flag would make its probes ask the wrong place.
OWNED_FLAGS = {
    "--host": "sagectl chooses the address that engines listen on",
    "--port": "set `port` instead",
    "--model": "set `model` instead",
    "--name": "set `served_model_name` instead",
    "--device": "set `device` or `gpu_ids` instead",
    "--dtype": "set `dtype` instead",
    "--threads": "set `threads` instead",
    "--max-batch-size": "set `max_batch_size` instead",
    "--max-batch-tokens": "set `max_batch_tokens` instead",
    "--max-wait": "set `max_wait` instead",
    "--max-queue": "set `max_queue` instead",
    "--max-input-tokens": "set `max_input_tokens` instead",
    "--truncate": "set `truncate` instead",
    "--normalize": "set `normalize` instead",
    "--matryoshka": "set `matryoshka` instead",
    "--trust-remote-code": "set `trust_remote_code` instead",
}


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """The options of the kind `embedding`."""

    backend: Literal["auto", "sentence-transformers"] = option(
        "the server to run: sentence-transformers (sagectl's own); auto chooses what is installed",
        default="auto",
    )
    device: str | None = option(
        "where the model runs: cpu, cuda, cuda:0; default: cuda with gpu_ids, else cpu", default=None
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "weights in auto, float32, float16 or bfloat16; auto: as stored", default="auto"
    )
    max_batch_size: int = option("inputs that the model computes at once, across requests", default=32)
    max_batch_tokens: int = option("tokens that the model computes at once, padding included", default=16384)
    max_wait: float = option(
        "seconds that an input waits for others to join its batch; 0: it waits only while a batch runs",
        default=0.0,
    )
    max_queue: int = option("inputs that may wait; more are answered with 503 and Retry-After", default=4096)
    max_input_tokens: int | None = option(
        "tokens of one input; longer ones are answered with 400; default: the model's own limit", default=None
    )
    truncate: bool = option("cut longer inputs to max_input_tokens instead of refusing them", default=False)
    normalize: bool = option("make all embeddings unit vectors; default: as the model has it", default=False)
    matryoshka: bool = option(
        "let requests ask for fewer `dimensions`; default: where the model's config.json says it may be",
        default=False,
    )
    trust_remote_code: bool = option("run Python code that the model's repository brings", default=False)
    served_model_name: str | None = option(
        "the model name that clients send; default: as in `model`", default=None, aliases=("served_name",)
    )
    threads: int | None = option("CPU threads; default: one a core", default=None)
    extra_args: tuple[str, ...] = option("further flags for the server, as a list", default=())

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_batch_tokens", "max_queue", "max_input_tokens", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not a positive number")
        if not 0 <= self.max_wait <= 10:
            raise ValueError(f"max_wait: {self.max_wait:g} is not between 0 and 10 seconds")
        if self.served_model_name == "":
            raise ValueError("served_model_name: is empty")
        for argument in self.extra_args:
            flag = argument.partition("=")[0]
            if flag in OWNED_FLAGS:
                raise ValueError(f"extra_args: {flag} belongs to sagectl; {OWNED_FLAGS[flag]}")
