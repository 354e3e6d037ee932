"""What an llm engine's table holds beside the keys that every engine has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from sagectl.plugin import option
from sagectl_llm import owned_flags
from sagectl_models.sizes import size_in_bytes

BACKENDS = ("vllm", "transformers")
"""In the order in which `auto` looks for them."""

# Options that one back end alone understands; what the other offers instead, if anything.
ONLY_VLLM = {
    "tensor_parallel_size": "`transformers serve` spreads a model over its GPUs by itself",
    "pipeline_parallel_size": "`transformers serve` spreads a model over its GPUs by itself",
    "enforce_eager": "`transformers serve` is eager anyway",
    "max_num_seqs": "",
    "max_num_batched_tokens": "",
    "kv_cache_dtype": "",
    "kv_cache_memory": "",
    "gpu_memory_utilization": "",
    "enable_prefix_caching": "",
    "enable_sleep_mode": "",
    "enable_lora": "",
    "max_loras": "",
    "max_lora_rank": "",
    "chat_template": "put chat_template.jinja beside the weights",
    "enable_auto_tool_choice": "",
    "tool_call_parser": "",
    "reasoning_parser": "",
    "seed": "",
    "revision": "write it after an @ in `model`",
    "tokenizer": "",
    "load_format": "",
    "shutdown_timeout": "`stop = { drain = … }` waits for requests with every back end",
    "speculative_config": "",
}
ONLY_TRANSFORMERS = {
    "device": "`use_gpu` and `gpu_ids` decide where vLLM runs",
    "continuous_batching": "vLLM always batches requests",
    "attn_implementation": "`extra_args` takes vLLM's --attention-backend",
}
_POSITIVE = (
    *("max_model_len", "threads", "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs"),
    *("max_num_batched_tokens", "kv_cache_memory", "max_loras", "max_lora_rank"),
)


@dataclass(frozen=True, slots=True)
class LlmOptions:
    """The options of the kind `llm`."""

    backend: Literal["auto", "vllm", "transformers"] = option(
        "the server to run: vllm or transformers (`transformers serve`); auto: the first that `python` has",
        default="auto",
    )
    dtype: str = option("weights in auto, float32, bfloat16 or float16; auto: as stored", default="auto")
    max_model_len: int | Literal["auto"] | None = option(
        "longest prompt plus answer, in tokens; default: what the model allows; auto: what fits (vllm)",
        default=None,
    )
    trust_remote_code: bool = option("run Python code that the model's repository brings", default=False)
    quantization: str | None = option(
        "vllm: awq, gptq, fp8, bitsandbytes, …; transformers: bnb-4bit or bnb-8bit; default: as stored",
        default=None,
    )
    served_model_name: str | None = option(
        "the model name that clients send; transformers: only for directories",
        default=None,
        aliases=("served_name",),
    )
    threads: int | None = option("CPU threads (OMP_NUM_THREADS); default: one a core", default=None)

    tensor_parallel_size: int | Literal["auto"] | None = option(
        "vllm: GPUs that share each layer; default: all of `gpu_ids`; auto: the fewest that hold the model",
        default=None,
        aliases=("tensor_parallel", "tp_size"),
    )
    pipeline_parallel_size: int | None = option(
        "vllm: groups of GPUs that share the layers", default=None, aliases=("pipeline_parallel", "pp_size")
    )
    gpu_memory_utilization: float | None = option(
        "vllm: share of each GPU's memory to use, such as 0.7", default=None
    )
    kv_cache_memory: int | str | None = option(
        'vllm: size of the KV cache such as "4GiB", on each GPU; on the CPU 2GiB unless said', default=None
    )
    kv_cache_dtype: str | None = option("vllm: auto, fp8, …: the type of the KV cache", default=None)
    max_num_seqs: int | None = option(
        "vllm: requests that are worked on at once", default=None, aliases=("max_concurrent_requests",)
    )
    max_num_batched_tokens: int | None = option("vllm: tokens in one step", default=None)
    enforce_eager: bool = option("vllm: no compilation, no CUDA graphs: slower, starts sooner", default=False)
    enable_prefix_caching: bool | None = option("vllm: keep the KV cache of common beginnings", default=None)
    enable_sleep_mode: bool = option("vllm: allow it to give its GPU memory back (CUDA only)", default=False)
    enable_lora: bool = option("vllm: serve LoRA adapters", default=False)
    max_loras: int | None = option("vllm: adapters in one batch", default=None)
    max_lora_rank: int | None = option("vllm: the highest rank of an adapter", default=None)
    chat_template: str | None = option(
        "vllm: path of a Jinja file, or the template itself, in place of the model's", default=None
    )
    enable_auto_tool_choice: bool = option(
        "vllm: let the model choose tools; needs tool_call_parser", default=False
    )
    tool_call_parser: str | None = option("vllm: how this model writes tool calls: hermes, …", default=None)
    reasoning_parser: str | None = option("vllm: how this model marks its reasoning: qwen3, …", default=None)
    speculative_config: Mapping[str, Any] | None = option(
        'vllm: speculative decoding, such as { method = "ngram", num_speculative_tokens = 4 }', default=None
    )
    seed: int | None = option("vllm: seed of the sampler", default=None)
    revision: str | None = option("vllm: branch, tag or commit of the model on the hub", default=None)
    tokenizer: str | None = option("vllm: a tokenizer other than the model's own", default=None)
    load_format: str | None = option("vllm: auto, safetensors, dummy, runai_streamer, …", default=None)
    shutdown_timeout: int | None = option(
        "vllm: seconds that it waits itself for requests after the stop signal, less than stop.timeout",
        default=None,
    )

    device: str | None = option(
        "transformers: auto, cpu, cuda, cuda:0; default: cpu without GPUs, else auto", default=None
    )
    continuous_batching: bool = option(
        "transformers: serve requests together, with a paged KV cache", default=False
    )
    attn_implementation: str | None = option(
        "transformers: eager, sdpa, flash_attention_2, flash_attention_3, flex_attention or a hub kernel",
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
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError("gpu_memory_utilization: is no share; write a number above 0, at most 1")
        if self.shutdown_timeout is not None and self.shutdown_timeout < 0:
            raise ValueError("shutdown_timeout: is negative; write a number of seconds")
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            raise ValueError(
                'enable_auto_tool_choice: needs tool_call_parser; add tool_call_parser = "hermes" or another'
            )
        trouble = owned_flags.trouble(self.backend, self.extra_args)
        if trouble is not None:
            raise ValueError(f"extra_args: {trouble[0]}; {trouble[1]}")
        if self.backend != "auto" and (odd := self.misfit(self.backend)) is not None:
            raise ValueError(f"{odd[0]}: {odd[1]}; {odd[2]}")

    def misfit(self, backend: str) -> tuple[str, str, str] | None:
        """The first option that this back end does not have: (key, what is wrong, what to do)."""
        foreign, other = (ONLY_TRANSFORMERS, "transformers") if backend == "vllm" else (ONLY_VLLM, "vllm")
        for field in fields(self):
            assert field.default is not MISSING
            if field.name in foreign and getattr(self, field.name) != field.default:
                hint = foreign[field.name]
                remedy = f'remove it{f": {hint}" if hint else ""}, or set backend = "{other}"'
                return field.name, f"means nothing to the back end {backend}", remedy
        if backend == "transformers":
            if self.max_model_len == "auto":
                return "max_model_len", '"auto" means nothing to the back end transformers', "write a number"
            if self.quantization not in (None, "bnb-4bit", "bnb-8bit"):
                wrong = f'"{self.quantization}" is not known to the back end transformers'
                return "quantization", wrong, 'write bnb-4bit or bnb-8bit, or set backend = "vllm"'
        elif self.quantization in ("bnb-4bit", "bnb-8bit"):
            wrong = f'"{self.quantization}" is the name of the back end transformers for it'
            return "quantization", wrong, 'write "bitsandbytes"'
        return None
