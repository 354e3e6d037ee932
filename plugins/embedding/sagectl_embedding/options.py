"""What an embedding engine's table holds beside the keys that every engine has."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Literal

from sagectl.plugin import option
from sagectl_models import flags, vllm_server
from sagectl_models.sizes import size_in_bytes

BACKENDS = ("sentence-transformers", "vllm")
"""In the order in which `auto` looks for them. Ours comes first: it starts in seconds and takes what the
model needs, where vLLM takes most of a minute, 2 GB of memory on the CPU and its share of the card on a GPU.
"""

# sagectl decides these; two values for one flag would make its probes ask the wrong place.
SENTENCE_TRANSFORMERS_FLAGS = {
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
VLLM_FLAGS = vllm_server.OWNED_FLAGS | {
    "--runner": "an embedding engine is always a pooling one",
    "--convert": "an embedding engine always embeds",
    "--max-model-len": "set `max_input_tokens` instead",
    "--max-num-seqs": "set `max_batch_size` instead",
    "--max-num-batched-tokens": "set `max_batch_tokens` instead",
    "--max-num-queued-reqs": "set `max_queue` instead",
    "--pooler-config": "set `normalize` instead",
    "--hf-overrides": "set `matryoshka` instead",
}
OWNED_FLAGS = {"sentence-transformers": SENTENCE_TRANSFORMERS_FLAGS, "vllm": VLLM_FLAGS}

# Options that one back end alone understands; what the other offers instead, if anything.
ONLY_VLLM = {
    "gpu_memory_utilization": "",
    "kv_cache_memory": "",
    "quantization": "",
    "tensor_parallel_size": "`replicas` with a GPU each serve more requests",
    "enforce_eager": "sentence-transformers is eager anyway",
    "shutdown_timeout": "`stop = { drain = … }` waits for requests with every back end",
}
ONLY_SENTENCE_TRANSFORMERS = {
    "device": "`use_gpu` and `gpu_ids` decide where vLLM runs",
    "max_wait": "vLLM batches what is there",
    "truncate": "clients ask vLLM for it with `truncate_prompt_tokens`",
}
_POSITIVE = (
    *("max_batch_size", "max_batch_tokens", "max_queue", "max_input_tokens", "threads"),
    *("kv_cache_memory", "tensor_parallel_size"),
)


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """The options of the kind `embedding`."""

    backend: Literal["auto", "sentence-transformers", "vllm"] = option(
        "the server to run: sentence-transformers (sagectl's own) or vllm (its pooling runner); auto: the "
        "first that `python` has",
        default="auto",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "weights in auto, float32, float16 or bfloat16; auto: as stored (vllm on a GPU: float32 as float16)",
        default="auto",
    )
    max_batch_size: int | None = option(
        "inputs that the model computes at once, across requests; default: 32 (vllm: its own)",
        default=None,
        aliases=("max_num_seqs",),
    )
    max_batch_tokens: int | None = option(
        "tokens that the model computes at once, padding included; default: 16384 (vllm: its own)",
        default=None,
        aliases=("max_num_batched_tokens",),
    )
    max_queue: int | None = option(
        "inputs that may wait; more are answered with 503; default: 4096 (vllm: no limit)", default=None
    )
    max_input_tokens: int | None = option(
        "tokens of one input; longer ones are answered with 400; default: the model's own limit",
        default=None,
        aliases=("max_model_len",),
    )
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

    device: str | None = option(
        "sentence-transformers: where the model runs: cpu, cuda, cuda:0; default: cuda with gpu_ids, else "
        "cpu",
        default=None,
    )
    max_wait: float = option(
        "sentence-transformers: seconds that an input waits for others to join its batch; 0: it waits only "
        "while a batch runs",
        default=0.0,
    )
    truncate: bool = option(
        "sentence-transformers: cut longer inputs to max_input_tokens instead of refusing them", default=False
    )

    gpu_memory_utilization: float | None = option(
        "vllm: share of each GPU's memory to use, such as 0.3", default=None
    )
    kv_cache_memory: int | str | None = option(
        'vllm: size of the KV cache such as "1GiB", for models that have one; on the CPU 2GiB unless said',
        default=None,
    )
    quantization: str | None = option("vllm: fp8, bitsandbytes, …; default: as stored", default=None)
    tensor_parallel_size: int | None = option(
        "vllm: GPUs that share each layer; default: all of `gpu_ids`",
        default=None,
        aliases=("tensor_parallel", "tp_size"),
    )
    enforce_eager: bool = option("vllm: no compilation, no CUDA graphs: slower, starts sooner", default=False)
    shutdown_timeout: int | None = option(
        "vllm: seconds that it waits itself for requests after the stop signal, less than stop.timeout",
        default=None,
    )
    extra_args: tuple[str, ...] = option("further flags for the server, as a list", default=())

    def __post_init__(self) -> None:
        if isinstance(self.kv_cache_memory, str):
            size_in_bytes(self.kv_cache_memory)
        for name in _POSITIVE:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}: {value} is not a positive number")
        if not 0 <= self.max_wait <= 10:
            raise ValueError(f"max_wait: {self.max_wait:g} is not between 0 and 10 seconds")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError("gpu_memory_utilization: is no share; write a number above 0, at most 1")
        if self.shutdown_timeout is not None and self.shutdown_timeout < 0:
            raise ValueError("shutdown_timeout: is negative; write a number of seconds")
        if self.served_model_name == "":
            raise ValueError("served_model_name: is empty")
        for backend in BACKENDS if self.backend == "auto" else (self.backend,):
            trouble = self.owned_flag(backend)
            if trouble is not None and (self.backend != "auto" or self._refused_by_all(trouble)):
                raise ValueError(f"extra_args: {trouble[0]}; {trouble[1]}")
        if self.backend != "auto" and (odd := self.misfit(self.backend)) is not None:
            raise ValueError(f"{odd[0]}: {odd[1]}; {odd[2]}")

    def owned_flag(self, backend: str) -> tuple[str, str] | None:
        """The first of `extra_args` that is sagectl's to set: what is wrong and what to do instead."""
        return flags.trouble(OWNED_FLAGS[backend], self.extra_args)

    def _refused_by_all(self, trouble: tuple[str, str]) -> bool:
        others = (self.owned_flag(backend) for backend in BACKENDS)
        return all(other is not None and other[0] == trouble[0] for other in others)

    def misfit(self, backend: str) -> tuple[str, str, str] | None:
        """The first option that this back end does not have: (key, what is wrong, what to do)."""
        foreign, other = (
            (ONLY_SENTENCE_TRANSFORMERS, "sentence-transformers")
            if backend == "vllm"
            else (ONLY_VLLM, "vllm")
        )
        for field in fields(self):
            assert field.default is not MISSING
            if field.name in foreign and getattr(self, field.name) != field.default:
                hint = foreign[field.name]
                remedy = f'remove it{f": {hint}" if hint else ""}, or set backend = "{other}"'
                return field.name, f"means nothing to the back end {backend}", remedy
        return None
