"""The GPU memory of a fine-tuning job."""

from __future__ import annotations

from sagectl.plugin import (
    CheckpointQuery,
    EngineRequest,
    Facts,
    InterpreterQuery,
    MemoryEstimate,
    Refusal,
    Shape,
)
from sagectl_finetune.options import FinetuneOptions
from sagectl_models.trained_model import TrainedModel, model_of
from sagectl_models.training_memory import TrainingSetup, estimate, margin

MODULES = (
    *("torch", "transformers", "peft", "accelerate", "bitsandbytes"),
    *("tensorboard", "wandb", "mlflow", "pyarrow"),
)
"""What training may need of the interpreter."""
NO_GPU = Shape(ranks=())

Request = EngineRequest[FinetuneOptions]


def checkpoint(request: Request) -> CheckpointQuery | None:
    """The query for the base model; None where none is named that can be looked up."""
    model = request.model or ""
    if not model or model.startswith((".", "~")):
        return None
    return CheckpointQuery(model.rstrip("/") or "/", request.models_dir)


def setup(options: FinetuneOptions, model: TrainedModel, gpus: int) -> TrainingSetup:
    """How the trainer is going to train this model."""
    quantised = options.stored != "none" or model.stored is not None
    return TrainingSetup(
        method=options.method,
        lora_rank=options.lora_rank,
        target_modules=options.target_modules,
        lora_dropout=options.lora_dropout > 0,
        batch_size=options.batch_size,
        sequence_length=options.max_length,
        accumulation=options.gradient_accumulation_steps,
        dtype="bfloat16" if options.dtype == "auto" else options.dtype,
        quantisation="none" if model.stored is not None else options.stored,
        upcast=quantised,
        adam_8bit=options.optimizer.endswith("8bit"),
        checkpointing=options.gradient_checkpointing,
        eager_attention=options.attention == "eager",
        fused_loss=True,
        gpus=gpus,
    )


def of(request: Request, facts: Facts) -> MemoryEstimate | Refusal:
    """What the job needs on each GPU, or why that cannot be said."""
    if request.gpu_ids == ():
        return MemoryEstimate((NO_GPU,), notes=("it uses no GPU",))
    query = checkpoint(request)
    if query is None:
        return Refusal("no base model is named", 'add `model = "Qwen/Qwen2.5-0.5B-Instruct"` or a directory')
    found = facts.checkpoint(query)
    model = model_of(found)
    if model is None:
        return _unknown(request, found.error)
    options = request.options
    if options.method == "full" and model.stored is not None:
        return Refusal(
            f'method = "full": the weights of {request.model} are quantised, and cannot be trained',
            'name a base model in 16 bits, or set method = "qlora"',
        )
    gpus = len(request.gpu_ids) if request.gpu_ids else request.gpus or 1
    chosen = setup(options, model, gpus)
    try:
        parts = estimate(model, chosen)
    except ValueError as error:
        return Refusal(f"target_modules: {error}", 'correct `target_modules`, or write "all-linear"')
    rank = (*parts, margin(parts))
    return MemoryEstimate(
        # Each GPU holds the whole model and trains on its own share of the data.
        (Shape((rank,) * gpus),),
        filed_under=_filed(request, chosen),
        exact=bool(found.tensors),
        notes=tuple(_notes(request, facts, model)),
    )


def _unknown(request: Request, error: str | None) -> MemoryEstimate | Refusal:
    why = error or "it has no config.json that says what it is"
    if request.gpu_memory not in (None, "auto"):
        return MemoryEstimate((), exact=False, notes=(f"the memory is not estimated: {why}",))
    return Refusal(
        f"the memory that {request.model} needs cannot be estimated: {why}",
        "download the model, or set `gpu_memory` to what the job may take",
    )


def _notes(request: Request, facts: Facts, model: TrainedModel) -> list[str]:
    options, notes = request.options, []
    if model.stored is not None and options.stored != "none":
        notes.append("the checkpoint is quantised already: it is taken as it is")
    if options.method != "full" and any(one.expert for one in model.linears):
        notes.append(
            "the experts get no adapter" + (", and stay in 16 or 32 bits" if options.stored != "none" else "")
        )
    if options.method == "full" or not options.gradient_checkpointing:
        what = "full fine-tuning" if options.method == "full" else "training without checkpointing"
        notes.append(f"{what} is reckoned; the estimator was measured with adapters and checkpointing")
    if options.optimizer.startswith("paged"):
        notes.append("a paged optimizer is counted as if it stayed on the GPU")
    found = facts.interpreter(InterpreterQuery(request.python, MODULES))
    quantised = model.stored is not None or options.stored != "none" or options.optimizer != "adamw"
    needed = ["torch", "transformers", *(["peft"] if options.method != "full" else [])]
    needed += ["bitsandbytes"] if quantised else []
    missing = [name for name in needed if found.modules.get(name) is None]
    if missing:
        notes.append(f"{request.python} lacks {', '.join(missing)}, which this training needs")
    return notes


def _filed(request: Request, chosen: TrainingSetup) -> str:
    targets = chosen.target_modules
    words = [
        str(request.model),
        f"{chosen.method} {chosen.quantisation} {chosen.dtype}",
        f"batch {chosen.batch_size} × {chosen.sequence_length}",
        request.options.optimizer,
        f"attention {request.options.attention}",
    ]
    if chosen.method != "full":
        names = targets if isinstance(targets, str) else "+".join(targets)
        words.append(f"rank {chosen.lora_rank} on {names}, dropout {request.options.lora_dropout:g}")
    words += ["accumulates"] if chosen.accumulation > 1 else []
    words += [] if chosen.checkpointing else ["no checkpointing"]
    words += ["packed"] if request.options.packing else []
    words += [f"{chosen.gpus} GPUs"] if chosen.gpus > 1 else []
    return ", ".join(words)
