"""The GPU memory of an embedding engine, with either back end."""

from __future__ import annotations

from sagectl.plugin import (
    CheckpointFacts,
    CheckpointQuery,
    EngineRequest,
    Facts,
    MemoryEstimate,
    Refusal,
    Shape,
)
from sagectl_embedding.options import EmbeddingOptions
from sagectl_models import architecture, checkpoint, parallel, serving_memory, torch_memory, vllm_grant
from sagectl_models.architecture import ITEM_SIZES, Architecture
from sagectl_models.checkpoint import Known
from sagectl_models.serving_memory import GIB, Serving
from sagectl_models.sizes import size_in_bytes

BATCH_TOKENS = 16384
"""Our server's default, padding included."""
STEP_TOKENS = 8192
UNKNOWN = 2 * GIB
"""Overhead and activations of a model of which nothing is known."""
NO_GPU = Shape(ranks=())
_ON_LOAD = {"bitsandbytes": 0.5625, "fp8": 1.01}

Request = EngineRequest[EmbeddingOptions]


def on_gpu(request: Request) -> bool:
    """Whether the engine uses a GPU: where it is given or asks for one."""
    if request.options.device == "cpu":
        return False
    return bool(request.gpu_ids) if request.gpu_ids is not None else request.gpus != 0


def queries(request: Request) -> tuple[CheckpointQuery, ...]:
    """The model's files, where the engine uses a GPU."""
    found = checkpoint.query(request) if on_gpu(request) else None
    return () if found is None else (found,)


def estimate(request: Request, facts: Facts, *, backend: str) -> MemoryEstimate | Refusal:
    """What the engine needs. backend: `sentence-transformers` or `vllm`."""
    if not on_gpu(request):
        return MemoryEstimate((NO_GPU,), notes=("it runs on the CPU; use_gpu = true gives it a GPU",))
    asked = queries(request)
    found = facts.checkpoint(asked[0]) if asked else CheckpointFacts(error="no model is named")
    a = architecture.read(found)
    stored = checkpoint.known(request.model or "", found)
    if stored is None:
        why = found.error or "there are no weights"
        notes = (f"{why}: its size is not known; set gpu_memory",)
        shape = torch_memory.unknown_shape(0, 1, 1, UNKNOWN, how="not known")
        return MemoryEstimate((shape,), _filed(request, backend, None, "auto"), exact=False, notes=notes)
    if backend == "vllm" and a is not None:
        return _vllm(request, found, a)
    return _own(request, found, stored, a, backend)


def _own(
    request: Request, found: CheckpointFacts, stored: Known, a: Architecture | None, backend: str
) -> MemoryEstimate:
    options = request.options
    dtype = options.dtype if options.dtype != "auto" else a.dtype if a is not None else "float32"
    converted = checkpoint.known(request.model or "", found, options.dtype) or stored
    own = (a.max_positions if a is not None else None) or 512
    longest = options.max_input_tokens or own
    tokens = max(options.max_batch_tokens or BATCH_TOKENS, longest)
    shape = torch_memory.embedding_shape(a, stored.weights, converted.weights, dtype=dtype, tokens=tokens)
    return MemoryEstimate(
        (shape,),
        filed_under=_filed(request, backend, tokens, dtype),
        exact=stored.weights.exact,
        notes=stored.notes,
    )


def _vllm(request: Request, found: CheckpointFacts, a: Architecture) -> MemoryEstimate | Refusal:
    options = request.options
    dtype = options.dtype if options.dtype != "auto" else a.dtype if ITEM_SIZES[a.dtype] <= 2 else "float16"
    model = checkpoint.known(request.model or "", found, dtype)
    assert model is not None  # it was known with another dtype
    context = options.max_input_tokens or a.max_positions or 512
    # Models that read a text at once need a step that holds all of it.
    step = options.max_batch_tokens or max(STEP_TOKENS, context if a.encoder else 0)
    cache = options.kv_cache_memory
    how = Serving(
        context=context,
        dtype=dtype,
        cache=None if cache is None or a.encoder else size_in_bytes(cache),
        quantise=_ON_LOAD.get(options.quantization or ""),
        step_tokens=step,
        sequences=0,
        eager=options.enforce_eager,
    )
    gpus = len(request.gpu_ids) if request.gpu_ids else (request.gpus or 1)
    tensor = options.tensor_parallel_size or gpus
    wrong = parallel.trouble(a, tensor)
    if wrong is not None:
        return Refusal(
            f"the model cannot be divided among {tensor} GPUs: {wrong}",
            "set `tensor_parallel_size` to a number that divides the heads",
        )
    return MemoryEstimate(
        (serving_memory.shape(a, model.weights, how, tensor),),
        filed_under=_filed(request, "vllm", (context, step), dtype),
        elastic=not a.encoder,
        exact=model.weights.exact,
        notes=model.notes,
        context=None if a.encoder else context,
        kv_per_token=serving_memory.token_bytes(a, how, tensor),
        share=vllm_grant.share_told(options.gpu_memory_utilization, options.extra_args),
    )


def _filed(request: Request, backend: str, tokens: object, dtype: str) -> str:
    quantisation = request.options.quantization or "as stored"
    return f"{request.model}, {backend}, tokens {tokens}, quantization {quantisation}, dtype {dtype}"
