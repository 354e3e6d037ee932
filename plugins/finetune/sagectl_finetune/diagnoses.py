"""Failures of the trainer in the user's words, by its exit code and what it logs.

The texts are the trainer's own, and those of torch 2.13, transformers 5.23 and PEFT 0.21.
"""

from __future__ import annotations

import re

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport
from sagectl_finetune.options import FinetuneOptions
from sagectl_models.checkpoint_rules import CHECKPOINT, HUB
from sagectl_models.memory_rules import reserved
from sagectl_models.rules import Rule, Words, recognise

REFUSED = 65
DIVERGED = 70
OUT_OF_MEMORY = 71
STOPPED = 75

_LESS = 'a smaller `max_length`, `method = "qlora"`, `gradient_checkpointing = true` or a smaller `lora_rank`'
WORDS = Words("finetune", f"Need less: a smaller `batch_size`, {_LESS}.")

RULES: tuple[Rule, ...] = (
    reserved(f"a smaller `batch_size`, {_LESS}"),
    Rule(
        r"CUDA out of memory|CUDA error: out of memory|HIP out of memory",
        "The GPU has too little free memory to train {model}.",
        f"Free memory on the card, or need less: a smaller `batch_size`, {_LESS}.",
        retryable=True,
    ),
    Rule(
        r"DefaultCPUAllocator: |unable to mmap .* Cannot allocate memory|MemoryError",
        "The machine has too little free memory to train {model}.",
        f"Need less: a smaller `batch_size`, {_LESS}.",
        retryable=True,
    ),
    Rule(
        r"Found no NVIDIA driver|NVIDIA driver on your system is too old|No CUDA GPUs are available"
        r"|CUDA error: invalid device ordinal",
        "torch finds no usable GPU.",
        "Check `nvidia-smi` and `gpu_ids`, or set `use_gpu = false` to train on the CPU.",
    ),
    Rule(
        r"FlashAttention\d? has been toggled on, but it cannot be used",
        "`attention` asks for FlashAttention, which {python} lacks.",
        'Set `attention = "sdpa"`, or install the package flash-attn there.',
    ),
    Rule(
        r"wandb\.errors\.[\w.]*(?:UsageError|AuthenticationError): (?P<why>[^\n]*[^\n.])",
        "Weights & Biases does not take the figures: {why}.",
        'Set `WANDB_API_KEY` in `env`, or `WANDB_MODE = "offline"`; or remove "wandb" from `report_to`.',
    ),
    Rule(
        r"No space left on device|Disk quota exceeded|File too large",
        "The disk is full, or a quota on it.",
        "Free some space where `output`, the checkpoints (`finetuned` below the models) or HF_HOME are; then "
        "`sagectl start` goes on from the newest checkpoint.",
    ),
    *HUB,
    *CHECKPOINT,
    Rule(
        r"No module named '(?P<module>[\w.]+)'",
        "{python} lacks the module {module}, which this training needs.",
        "Install the package that has it: {python} -m pip install {module}; or set "
        "`[defaults.finetune] python = …`.",
    ),
)


def explain(request: EngineRequest[FinetuneOptions], failure: FailureReport) -> Diagnosis | None:
    """What happened, by the trainer's own words first; None where nothing is recognised."""
    log = "\n".join(failure.log)
    code = failure.exit.code if failure.exit is not None else None
    if code == REFUSED:
        return _refused(log)
    if code == DIVERGED:
        told = _last(r"^diverged: (.+)$", log) or "the loss is no number"
        return Diagnosis(
            f"{told[0].upper()}{told[1:]}.",
            "Lower `learning_rate`, raise `warmup`, or look for the rows it came from; `start` goes on from "
            'the checkpoint before it, `on_nan = "warn"` would not stop.',
            retryable=False,
        )
    if code == STOPPED:
        return Diagnosis(
            "Something other than sagectl told the training to stop; its checkpoint is saved.",
            "Start it to go on, and see who sends SIGTERM.",
        )
    found = recognise(RULES, WORDS, request, failure, log)
    if code == OUT_OF_MEMORY and "event: out of memory" in log:
        summary = found.summary.rstrip(".") if found else "Memory ran out"
        remedy = found.remedy if found else WORDS.host_memory
        return Diagnosis(f"{summary}; the next start takes a smaller batch.", remedy)
    if code == OUT_OF_MEMORY and found is not None:
        return Diagnosis(found.summary, found.remedy, retryable=False)
    return found


def _refused(log: str) -> Diagnosis | None:
    reason, remedy = _last(r"^refused: (.+)$", log), _last(r"^remedy: (.+)$", log)
    if reason is None:
        return None
    because = tuple(re.findall(r"^because: (.+)$", log, re.MULTILINE))
    remedy = _sentence(remedy or "correct the options")
    return Diagnosis(_sentence(reason), remedy, retryable=False, arithmetic=because)


def _sentence(text: str) -> str:
    # What begins with a key or a path keeps its spelling.
    first = text if re.match(r"[\w_]+:|[/\w.-]*[/_]", text) else text[0].upper() + text[1:]
    return first if first.endswith(".") else f"{first}."


def _last(pattern: str, log: str) -> str | None:
    found: list[str] = re.findall(pattern, log, re.MULTILINE)
    return found[-1] if found else None
