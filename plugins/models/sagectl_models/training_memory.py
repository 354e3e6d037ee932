"""GPU memory of a fine-tuning run, part by part, at the moment of its step when it is largest.

Pure. What is counted (weights, adapters, gradients, optimizer, saved activations) is arithmetic; `FIT` holds
what had to be measured. tests/tools/fit_training_memory.py finds it, from 33 of the 49 single steps on a
Tesla T4 in tests/data/finetune (fitcheck-llm 0.3.1, MIT); tests/unit/test_training_memory_measured.py prints
what comes of it for those, for the other 16, and for published figures of other trainers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sagectl.plugin import MemoryPart
from sagectl.plugin.memory import OVERHEAD, WEIGHTS
from sagectl_models.trained_model import Linear, TrainedModel

MIB = 1 << 20
GIB = 1 << 30
ALL_LINEAR = "all-linear"
MARGIN = 1.15
"""What is reserved over what is estimated."""

Method = Literal["lora", "qlora", "full"]
Stored = Literal["none", "nf4", "nf4-double", "int8"]


@dataclass(frozen=True, slots=True)
class Fit:
    """Measured constants; sizes in bytes, factors without a unit.

    loss: float32 copies of the logits that the plain loss holds at once; `loss32` where the output matrix
        is float32.
    eager: 16-bit copies of all attention scores of a layer that eager attention holds at once; `eager32`
        where activations between layers, and so the mask, are float32.
    workspace: what cuBLAS and buffers take.
    idle_saved, idle_logits, idle_scores: memory that torch's allocator holds and cannot use, as a share of
        the saved activations, of float32 logits, and as 16-bit copies of eager attention's scores.
    """

    loss: float = 3.54
    loss32: float = 4.03
    eager: float = 7.1
    eager32: float = 8.9
    workspace: int = 16 * MIB
    idle_saved: float = 1.12
    idle_logits: float = 0.125
    idle_scores: float = 4.4


FIT = Fit()

CONTEXT = 600 * MIB
"""What the CUDA context of a process takes on a large card; 141 MiB were measured on a T4."""
FUSED_LOSS = 256 * MIB
"""What our trainer takes for the logits of a tile of tokens (trainer/head.py); TRL's fused loss takes as much
with the 151,936 words of Qwen2.5, by its own measurements."""
_FUSED_LEAST = 128 * 8
"""Bytes for each word that such a tile has at least."""
_QUANTISED = {
    # A scale of 4 bytes per 64 weights; double-quantised, a byte per 64 and 4 bytes per 256 of those.
    "nf4": 0.5 + 4 / 64,
    "nf4-double": 0.5 + 1 / 64 + 4 / (64 * 256),
    "int8": 1.0,
}
_ITEM = {"bfloat16": 2, "float16": 2, "float32": 4}
# Two moments a parameter: float32, or a byte with a float32 scale per 256.
_ADAM = {False: 8.0, True: 2 * (1 + 4 / 256)}


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """How a model is trained.

    target_modules: names of matrices, or `ALL_LINEAR`.
    quantisation: how this run stores the base; "none" for one that is stored quantised already.
    upcast: embeddings, output matrix, norms and the activations between layers are float32, as PEFT's
        `prepare_model_for_kbit_training` makes them.
    pure: full fine-tuning in 16 bits throughout; otherwise parameters are float32 and autocast.
    fused_loss: logits are made chunk by chunk, as by our trainer; otherwise all at once.
    gpus: processes that each train on their own share of the data.
    context: bytes of the CUDA context.
    """

    method: Method = "lora"
    lora_rank: int = 8
    target_modules: tuple[str, ...] | str = ALL_LINEAR
    lora_dropout: bool = False
    batch_size: int = 4
    sequence_length: int = 512
    accumulation: int = 1
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    quantisation: Stored = "none"
    upcast: bool = False
    pure: bool = False
    adam_8bit: bool = False
    checkpointing: bool = True
    eager_attention: bool = False
    fused_loss: bool = False
    gpus: int = 1
    context: int = CONTEXT

    @property
    def tokens(self) -> int:
        """Tokens of one step's batch at most, padding included; packing fills it."""
        return self.batch_size * self.sequence_length


def targets(model: TrainedModel, setup: TrainingSetup) -> tuple[Linear, ...]:
    """The matrices that get an adapter. Raises ValueError for a name that the model has not."""
    wanted = setup.target_modules
    if wanted == ALL_LINEAR:
        return model.dense
    names = (wanted,) if isinstance(wanted, str) else wanted
    known = {one.name for one in model.dense}
    for name in names:
        if name.rpartition(".")[2] not in known:
            raise ValueError(f"the model has no matrix {name}; it has {', '.join(sorted(known))}")
    chosen = {name.rpartition(".")[2] for name in names}
    return tuple(one for one in model.dense if one.name in chosen)


def adapter_parameters(model: TrainedModel, setup: TrainingSetup) -> int:
    """r · Σ(in + out) over the adapted matrices. Raises as `targets`."""
    return setup.lora_rank * sum((one.inputs + one.outputs) * one.count for one in targets(model, setup))


def estimate(model: TrainedModel, setup: TrainingSetup, fit: Fit = FIT) -> tuple[MemoryPart, ...]:
    """The parts at the peak of a step, as the driver sees the process; without the margin.

    Raises ValueError as `targets`.
    """
    trained = _trained(model, setup)
    saved = _saved(model, setup)
    phases = _phases(model, setup, fit, saved)
    gradients = _gradients(trained, setup)
    every = setup.accumulation > 1  # gradients of the steps before are there from the beginning
    of_phase = {
        "loss": gradients.size if every else 0,
        "backward": gradients.size if every or setup.checkpointing else 0,
        "update": gradients.size,
    }
    moment = max(phases, key=lambda one: sum(p.size for p in phases[one]) + of_phase[one])
    parts = [_weights(model, setup), *trained.kept]
    if of_phase[moment]:
        parts.append(gradients)
    parts += phases[moment]
    parts.append(_overhead(model, setup, fit, saved))
    return tuple(part for part in parts if part.size)


def total(parts: Sequence[MemoryPart]) -> int:
    """Bytes of all parts."""
    return sum(part.size for part in parts)


def margin(parts: Sequence[MemoryPart]) -> MemoryPart:
    """What is reserved beyond the parts."""
    share = round(100 * (MARGIN - 1))
    return MemoryPart("margin", round(total(parts) * (MARGIN - 1)), f"{share}% of the parts above")


# --- what stays from step to step ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Trained:
    """What is trained. parameters: how many; item: bytes of each; kept: adapter and optimizer."""

    parameters: int
    item: int
    kept: tuple[MemoryPart, ...]


def _weights(model: TrainedModel, setup: TrainingSetup) -> MemoryPart:
    if model.stored is not None:
        wider = 2 * (model.embedding + model.other) if setup.upcast else 0
        how = "as stored, quantised" + (", embeddings and norms made float32" if wider else "")
        return MemoryPart(WEIGHTS, model.stored + wider, how)
    if setup.method == "full":
        item = _ITEM[setup.dtype] if setup.pure else 4
        kind = setup.dtype if setup.pure else "float32"
        how = f"{model.parameters:,} parameters in {kind}"
        if not setup.pure and setup.dtype != "float32":
            how += ", and a copy of each matrix in 16 bits while a step uses it"
            return MemoryPart(WEIGHTS, model.parameters * item + 2 * model.linear, how)
        return MemoryPart(WEIGHTS, model.parameters * item, how)
    dense = sum(one.parameters for one in model.dense)
    rest = model.parameters - dense
    item = 4 if setup.upcast else _ITEM[setup.dtype]
    if setup.quantisation == "none":
        how = f"{model.parameters:,} parameters in {setup.dtype}"
        return MemoryPart(WEIGHTS, model.parameters * _ITEM[setup.dtype], how)
    each = _QUANTISED[setup.quantisation]
    how = f"{dense:,} × {each:.4g} B ({setup.quantisation}) + {rest:,} × {item} B (not quantised)"
    return MemoryPart(WEIGHTS, round(dense * each) + rest * item, how)


def _trained(model: TrainedModel, setup: TrainingSetup) -> _Trained:
    full = setup.method == "full"
    count = model.parameters if full else adapter_parameters(model, setup)
    item = _ITEM[setup.dtype] if full and setup.pure else 4
    moments = _ADAM[True] if setup.adam_8bit else 2.0 * item
    what = "8-bit Adam" if setup.adam_8bit else f"Adam, two moments of {item} B"
    optimizer = MemoryPart(
        "optimizer", round(count * moments), f"{count:,} parameters × {moments:.4g} B ({what})"
    )
    if full:
        return _Trained(count, item, (optimizer,))
    adapted = len({one.name for one in targets(model, setup)})
    how = f"rank {setup.lora_rank} on {adapted} kinds of matrices: {count:,} parameters in float32"
    return _Trained(count, item, (MemoryPart("adapter", count * item, how), optimizer))


def _gradients(trained: _Trained, setup: TrainingSetup) -> MemoryPart:
    # Data parallelism sums gradients in buckets that are as large as they are.
    copies = 2 if setup.gpus > 1 else 1
    how = f"{trained.parameters:,} parameters × {trained.item} B"
    if copies > 1:
        how += ", twice: the processes exchange them"
    return MemoryPart("gradients", trained.parameters * trained.item * copies, how)


# --- what a step adds ------------------------------------------------------------------------------


def _residual(setup: TrainingSetup) -> int:
    """Bytes of a number of the activations between layers."""
    wide = setup.upcast or setup.dtype == "float32" or (setup.method == "full" and not setup.pure)
    return 4 if wide else 2


def _layer(model: TrainedModel, setup: TrainingSetup) -> int:
    """Bytes that one layer saves for its backward pass, eager attention's scores left out."""
    widths = 12 * model.hidden + 3 * model.query + model.kv + 3 * model.intermediate
    size = _ITEM[setup.dtype] * setup.tokens * widths
    if setup.lora_dropout and setup.method != "full":
        # What drops out leaves a float32 copy of each adapted matrix's input.
        inputs = sum(one.inputs * one.count for one in targets(model, setup))
        size += 4 * setup.tokens * inputs // max(1, model.layers)
    return size


def _scores(model: TrainedModel, setup: TrainingSetup) -> int:
    """Bytes of one 16-bit copy of a layer's attention scores."""
    return 2 * setup.batch_size * model.heads * setup.sequence_length**2


def _attention(model: TrainedModel, setup: TrainingSetup, fit: Fit) -> MemoryPart:
    if not setup.eager_attention:
        return MemoryPart("attention", 0)
    copies = fit.eager32 if _residual(setup) == 4 else fit.eager
    scores = _scores(model, setup)
    how = f"eager: {copies:.3g} × 2 B × {setup.batch_size} × {model.heads} heads × {setup.sequence_length}²"
    return MemoryPart("attention", round(copies * scores), how)


def _saved(model: TrainedModel, setup: TrainingSetup) -> MemoryPart:
    item = _residual(setup)
    tokens = f"{setup.batch_size} × {setup.sequence_length} tokens"
    if setup.checkpointing:
        size = item * setup.tokens * model.hidden * (model.layers + 1)
        how = f"checkpoints: {tokens} × {model.hidden} × {item} B × ({model.layers} layers + 1)"
        return MemoryPart("activations", size, how)
    layer = _layer(model, setup)
    scores = _scores(model, setup) * 2 if setup.eager_attention else 0
    how = f"{tokens}, {model.layers} layers, none computed again"
    return MemoryPart("activations", model.layers * (layer + scores), how)


def _logits(model: TrainedModel, setup: TrainingSetup, fit: Fit) -> MemoryPart:
    plain = 4 * setup.tokens * model.vocab
    copies = fit.loss32 if setup.upcast or setup.dtype == "float32" else fit.loss
    if setup.fused_loss:
        size = max(FUSED_LOSS, _FUSED_LEAST * model.vocab)
        how = "the fused loss makes them chunk by chunk"
        if setup.method == "full":
            # Gradients of the output matrix, of one chunk and of all so far, come with the loss.
            size += 2 * 4 * model.vocab * model.hidden
            how += ", and the output matrix's gradients with them"
        if size < copies * plain:
            return MemoryPart("logits", size, how)
    how = f"{copies:.3g} × 4 B × {setup.batch_size} × {setup.sequence_length} tokens × {model.vocab:,} words"
    return MemoryPart("logits", round(copies * plain), how)


def _phases(
    model: TrainedModel, setup: TrainingSetup, fit: Fit, saved: MemoryPart
) -> dict[str, tuple[MemoryPart, ...]]:
    """What is there only then, when the loss is computed, in a layer's backward pass, and in the update."""
    scratch = 0
    if setup.quantisation != "none" or model.stored is not None:
        scratch = 2 * max((one.inputs * one.outputs for one in model.dense), default=0)
    layer = MemoryPart("layer", _layer(model, setup) + scratch, "one layer, computed again for its gradients")
    last = MemoryPart("layer", layer.size, "the last layer whose gradients are computed")
    attention = _attention(model, setup, fit)
    return {
        "loss": (saved, _logits(model, setup, fit)),
        "backward": (saved, layer, attention),
        "update": (last, attention),
    }


def _overhead(model: TrainedModel, setup: TrainingSetup, fit: Fit, saved: MemoryPart) -> MemoryPart:
    idle = fit.idle_saved * (_residual(setup) * setup.tokens * model.hidden * model.layers)
    idle += fit.idle_logits * min(4 * setup.tokens * model.vocab, _logits(model, setup, fit).size)
    if setup.eager_attention:
        idle += fit.idle_scores * _scores(model, setup)
    how = (
        f"CUDA context {setup.context / MIB:.0f} MiB, workspaces {fit.workspace / MIB:.0f} MiB, "
        f"{idle / MIB:.0f} MiB that torch's allocator holds and cannot use"
    )
    return MemoryPart(OVERHEAD, setup.context + fit.workspace + round(idle), how)
