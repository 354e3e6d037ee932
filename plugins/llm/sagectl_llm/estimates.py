"""The GPU memory of an llm engine, with either back end, and how it may be laid out."""

from __future__ import annotations

from dataclasses import replace

from sagectl.plugin import (
    KV_CACHE,
    CheckpointFacts,
    CheckpointQuery,
    EngineRequest,
    Facts,
    MemoryEstimate,
    MemoryPart,
    Refusal,
    Shape,
)
from sagectl_llm.options import LlmOptions
from sagectl_models import (
    architecture,
    checkpoint,
    flags,
    parallel,
    serving_memory,
    torch_memory,
    vllm_grant,
)
from sagectl_models.adapters import Adapter
from sagectl_models.architecture import ITEM_SIZES, Architecture
from sagectl_models.checkpoint import Known
from sagectl_models.serving_memory import GIB, SPARE, Serving
from sagectl_models.sizes import size_in_bytes

LEAST = 2 * GIB
"""A smaller reservation is no use to a language model, whatever its weights."""
UNKNOWN_OVERHEAD = 3 * GIB
ASSUMED_CONTEXT = 8192
"""Tokens, where the length of a sequence is for sagectl to choose."""
NO_GPU = Shape(ranks=())
_ON_LOAD = {"bitsandbytes": 0.5625, "bnb-4bit": 0.5625, "bnb-8bit": 1.03, "fp8": 1.01, "experts_int8": 1.01}
"""Bytes of a linear layer's parameter that is quantised when it is loaded. NF4: half a byte, and a float32 of
scale for 64."""

Request = EngineRequest[LlmOptions]


def on_gpu(request: Request) -> bool:
    """Whether GPUs may be reserved for the engine."""
    if request.options.device == "cpu":
        return False
    return bool(request.gpu_ids) if request.gpu_ids is not None else request.gpus != 0


def queries(request: Request) -> tuple[CheckpointQuery, ...]:
    """The model's files, where the engine may use a GPU."""
    if not on_gpu(request):
        return ()
    found = checkpoint.query(request, request.options.revision)
    return () if found is None else (found,)


def estimate(request: Request, facts: Facts, *, backend: str, cpu_build: bool) -> MemoryEstimate | Refusal:
    """What the engine needs.

    Args:
        backend: `vllm` or `transformers`.
        cpu_build: the interpreter can use no GPU.
    """
    asked = queries(request)
    if not on_gpu(request):
        return MemoryEstimate((NO_GPU,), notes=("it uses no GPU",))
    if cpu_build and request.gpu_ids is None:
        return MemoryEstimate((NO_GPU,), notes=(f"{request.python} has a build for the CPU",))
    found = facts.checkpoint(asked[0]) if asked else CheckpointFacts(error="no model is named")
    a = architecture.read(found)
    if backend == "vllm":
        model = checkpoint.known(
            request.model or "", found, "auto" if a is None else served_dtype(request, a)
        )
    else:
        model = checkpoint.known(request.model or "", found, request.options.dtype)
    if model is None or a is None:
        return _unknown(request, model, backend, found.error)
    return (_vllm if backend == "vllm" else _transformers)(request, model, a)


def served_dtype(request: Request, a: Architecture) -> str:
    """The type in which vLLM computes: 16 bits for what is stored in 32, unless it is told otherwise."""
    if request.options.dtype in ITEM_SIZES:
        return request.options.dtype
    return a.dtype if ITEM_SIZES[a.dtype] <= 2 else "bfloat16"


def serving(request: Request, a: Architecture) -> Serving:
    """How vLLM will serve this model: by the options, by `extra_args`, else by what sagectl assumes."""
    options, extra = request.options, request.options.extra_args
    stated = flags.number("--max-model-len", extra) or options.max_model_len
    own = a.max_positions or 2048
    context = stated if isinstance(stated, int) else min(own, ASSUMED_CONTEXT) if stated == "auto" else own
    cache = options.kv_cache_memory or flags.number("--kv-cache-memory-bytes", extra)
    step = options.max_num_batched_tokens or flags.number("--max-num-batched-tokens", extra)
    default = serving_memory.MEDIA_STEP_TOKENS if a.vision else serving_memory.STEP_TOKENS
    sequences = options.max_num_seqs or flags.number("--max-num-seqs", extra)
    return Serving(
        context=context,
        dtype=served_dtype(request, a),
        cache_dtype=options.kv_cache_dtype or flags.value("--kv-cache-dtype", extra) or "auto",
        cache=None if cache is None else size_in_bytes(cache),
        quantise=_ON_LOAD.get(options.quantization or ""),
        step_tokens=step or default,
        sequences=sequences or serving_memory.SEQUENCES,
        eager=options.enforce_eager or flags.given("--enforce-eager", extra),
        lora=(options.max_loras or 1) * (options.max_lora_rank or 16) if options.enable_lora else 0,
    )


def assumed(request: Request, facts: Facts) -> tuple[tuple[str, int], ...]:
    """The flags of vLLM on which its activations depend and of which the user says nothing."""
    asked = queries(request)
    a = architecture.read(facts.checkpoint(asked[0])) if asked else None
    if a is None:
        return ()
    options, how = request.options, serving(request, a)
    found = []
    if options.max_num_seqs is None and not flags.given("--max-num-seqs", options.extra_args):
        found.append(("--max-num-seqs", how.sequences))
    step = options.max_num_batched_tokens or flags.number("--max-num-batched-tokens", options.extra_args)
    # For images vLLM chooses a step that its largest image fits in.
    if step is None and not a.vision:
        found.append(("--max-num-batched-tokens", how.step_tokens))
    return tuple(found)


# --- vLLM ----------------------------------------------------------------------------------------


def _vllm(request: Request, model: Known, a: Architecture) -> MemoryEstimate | Refusal:
    options = request.options
    layouts = _layouts(request, a)
    if isinstance(layouts, Refusal):
        return layouts
    how = serving(request, a)
    shapes = [serving_memory.shape(a, model.weights, how, t, p) for t, p, _ in layouts]
    notes = [*model.notes, *_vllm_notes(request, a, how)]
    if options.tensor_parallel_size == "auto":
        notes.append("tensor_parallel_size: the fewest GPUs that hold it, tensor before pipeline")
        common = [one for one in layouts if one[1] > 1 and one[0] * one[1] in parallel.WIDTHS]
        notes += [f"{t * p} GPUs: {why}" for t, p, why in common if why]
    tensor, pipeline, _ = layouts[0]
    return MemoryEstimate(
        tuple(at_least(shape, KV_CACHE) for shape in shapes),
        filed_under=_filed(request, "vllm", how.context, how.cache_dtype, how.dtype),
        elastic=True,
        exact=model.weights.exact,
        notes=tuple(notes),
        context=how.context,
        kv_per_token=serving_memory.token_bytes(a, how, tensor, pipeline),
        share=vllm_grant.share_told(options.gpu_memory_utilization, options.extra_args),
    )


def _vllm_notes(request: Request, a: Architecture, how: Serving) -> list[str]:
    options = request.options
    notes = []
    if options.max_model_len is None and not flags.given("--max-model-len", options.extra_args):
        notes.append(f"max_model_len: {how.context:,}, the model's own; a smaller one needs less cache")
    elif options.max_model_len == "auto":
        notes.append(f'max_model_len = "auto": a cache for {how.context:,} tokens, or more if there is room')
    if options.speculative_config is not None and "model" in options.speculative_config:
        notes.append("the draft model of speculative_config is not counted: set gpu_memory")
    if 0 in a.windows and not a.state:
        notes.append("the cache of some layers is not known: it is not counted")
    return notes


def _layouts(request: Request, a: Architecture) -> list[tuple[int, int, str]] | Refusal:
    """(tensor, pipeline, why), the best first."""
    options = request.options
    gpus = len(request.gpu_ids) if request.gpu_ids else request.gpus
    pipeline = options.pipeline_parallel_size
    tensor = options.tensor_parallel_size
    if tensor == "auto":
        found = [one for one in parallel.choices(a, gpus) if pipeline in (None, one[1])]
        return found or _indivisible(a, gpus, pipeline)
    if tensor is None:
        tensor = max(1, (gpus or 1) // (pipeline or 1))
    wrong = parallel.trouble(a, tensor, pipeline or 1)
    if wrong is not None:
        return Refusal(
            f"the model cannot be divided among {tensor * (pipeline or 1)} GPUs: {wrong}",
            'set tensor_parallel_size = "auto", or a number that divides the heads',
        )
    return [(tensor, pipeline or 1, "as declared")]


def _indivisible(a: Architecture, gpus: int | None, pipeline: int | None) -> Refusal:
    stages = f" in {pipeline} stages" if pipeline else ""
    return Refusal(
        f"the model cannot be divided among {gpus or 'any number of'} GPUs{stages}: it has {a.heads} "
        f"attention heads, {a.kv_heads} of keys and values and {a.layers} layers",
        "name another number of `gpus`, or take `pipeline_parallel_size` out",
    )


# --- transformers --------------------------------------------------------------------------------


def _transformers(request: Request, model: Known, a: Architecture) -> MemoryEstimate:
    options = request.options
    gpus = len(request.gpu_ids) if request.gpu_ids else (request.gpus or 1)
    gpus = min(gpus, a.layers)
    dtype = options.dtype if options.dtype in ITEM_SIZES else a.dtype
    own = a.max_positions or 2048
    stated = options.max_model_len
    context = stated if isinstance(stated, int) else min(own, ASSUMED_CONTEXT)
    quantise = _ON_LOAD.get(options.quantization or "")
    notes = [
        *model.notes,
        f"`transformers serve` has no limit but the model's: {context:,} tokens are assumed",
    ]
    if quantise is not None and a.experts is not None:
        quantise = None
        notes.append("bitsandbytes does not quantise experts: their weights are counted as stored")
    if options.continuous_batching:
        notes.append("continuous_batching takes what is left of the card for its cache: set gpu_memory")
    shape = torch_memory.language_shape(
        a,
        model.weights,
        dtype=dtype,
        context=context,
        gpus=gpus,
        quantise=quantise,
        eager=options.attn_implementation == "eager",
    )
    return MemoryEstimate(
        (at_least(shape, SPARE),),
        filed_under=_filed(request, "transformers", context, "auto", dtype),
        exact=model.weights.exact,
        notes=tuple(notes),
        context=context,
        kv_per_token=torch_memory.token_bytes(a, dtype),
    )


def with_adapter(found: MemoryEstimate, adapter: Adapter, backend: str) -> MemoryEstimate:
    """The estimate of the base with an adapter. vLLM's buffers for adapters are part of it already."""
    note = f"the base {adapter.base} and the adapter {adapter.directory}"
    if backend == "vllm" or not found.shapes or not found.shapes[0].ranks:
        return replace(found, notes=(note, *found.notes))
    part = MemoryPart(
        "adapter", adapter.size, f"rank {adapter.rank}, {adapter.size / 2**20:.0f} MiB of files"
    )
    shapes = tuple(
        replace(shape, ranks=tuple((*parts, part) for parts in shape.ranks)) for shape in found.shapes
    )
    filed = f"{found.filed_under}, adapter of rank {adapter.rank}"
    return replace(found, shapes=shapes, filed_under=filed, notes=(note, *found.notes))


# --- either --------------------------------------------------------------------------------------


def at_least(shape: Shape, name: str) -> Shape:
    """No rank below `LEAST`: what is missing is added to the part of this name."""
    ranks = []
    for parts, size in zip(shape.ranks, shape.sizes, strict=True):
        lack = LEAST - size
        if lack > 0:
            how = "an llm engine reserves 2.0 GiB at least"
            parts = tuple(
                replace(part, size=part.size + lack, how=f"{part.how}; {how}") if part.name == name else part
                for part in parts
            )
            if all(part.name != name for part in parts):
                parts = (*parts, MemoryPart(name, lack, how))
        ranks.append(parts)
    return replace(shape, ranks=tuple(ranks))


def _unknown(request: Request, model: Known | None, backend: str, error: str | None) -> MemoryEstimate:
    """Nothing but a size, or not even that."""
    options = request.options
    gpus = len(request.gpu_ids) if request.gpu_ids else request.gpus
    pipeline = options.pipeline_parallel_size or 1
    tensor = options.tensor_parallel_size
    if not isinstance(tensor, int):
        tensor = max(1, (gpus or 1) // pipeline)
    if backend == "transformers":
        tensor, pipeline = 1, gpus or 1
    size = 0 if model is None else model.weights.size
    why = error or "there is no config.json"
    notes = model.notes if model else (f"{why}: its size is not known; set gpu_memory",)
    how = "guessed" if model is not None else "not known"
    shape = torch_memory.unknown_shape(size, tensor, pipeline, UNKNOWN_OVERHEAD, how=how)
    return MemoryEstimate(
        (shape,),
        filed_under=_filed(request, backend, options.max_model_len, options.kv_cache_dtype, options.dtype),
        elastic=backend == "vllm",
        exact=False,
        notes=notes,
        share=None
        if backend != "vllm"
        else vllm_grant.share_told(options.gpu_memory_utilization, options.extra_args),
    )


def _filed(request: Request, backend: str, context: object, cache: str | None, dtype: str) -> str:
    options = request.options
    words = [
        f"{request.model}{f'@{options.revision}' if options.revision else ''}",
        *(backend, f"context {context}", f"quantization {options.quantization or 'as stored'}"),
        *(f"dtype {dtype}", f"cache {cache or 'auto'}"),
    ]
    words += ["eager"] if options.enforce_eager else []
    words += [f"batch {options.max_num_batched_tokens}"] if options.max_num_batched_tokens else []
    words += [f"sequences {options.max_num_seqs}"] if options.max_num_seqs else []
    words += [f"lora {options.max_loras or 1} × {options.max_lora_rank or 16}"] if options.enable_lora else []
    return ", ".join(words)
