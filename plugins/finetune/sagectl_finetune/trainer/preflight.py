"""What can be said of a run without the model's weights: the data, the steps, the sizes, the time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer import job, model, result, rows, speeds
from sagectl_finetune.trainer.settings import Settings

MOST_RANK = 512
"""Of an adapter that vLLM serves; others have to be merged."""


def report(settings: Settings) -> dict[str, Any]:
    """As JSON's values; sizes in bytes. Raises Refused."""
    job.quiet()
    prepared = rows.prepare(settings, model.tokenizer_of(settings))
    result.check(settings)
    total = job.steps(settings, prepared)
    trained, whole = model.parameters(settings)
    computed = _computed(settings, prepared, total)
    return {
        **prepared.report,
        "train_rows": len(prepared.train),
        "eval_rows": len(prepared.evaluation),
        "steps": total,
        "rows_per_step": settings.batch_size * settings.gradient_accumulation_steps * settings.gpus,
        "tokens_computed": computed,
        "parameters": whole,
        "parameters_trained": trained,
        **_sizes(settings, total, trained, whole),
        **_served(settings),
        "time": speeds.expected(settings, model.fingerprint(settings), computed),
    }


def _computed(settings: Settings, prepared: rows.Prepared, total: int) -> int:
    """Tokens of all steps together, by the mean length of a row."""
    count = len(prepared.train) + len(prepared.evaluation)
    epoch = job.steps(settings, prepared, one_epoch=True)
    mean = int(prepared.report["tokens"]) / count
    return round(mean * len(prepared.train) * total / epoch)


def _sizes(settings: Settings, total: int, trained: int, whole: int) -> dict[str, Any]:
    weights = trained * (4 if settings.method != "full" or settings.dtype == "float32" else 2)
    each = trained * 4 + trained * (2 if settings.optimizer.endswith("8bit") else 8)
    made = -(-total // settings.save_steps)
    final = whole * 2 if settings.merge else weights
    return {
        "checkpoint_bytes": each,
        "checkpoints": min(settings.keep, made),
        "result_bytes": final,
        # An older checkpoint is removed once the new one is whole.
        "disk_bytes": each * min(settings.keep + 1, made) + final,
        "disk_free_bytes": min(_free(settings.directory), _free(Path(settings.output))),
    }


def _free(path: Path) -> int:
    there = next(one for one in (path, *path.parents) if one.exists())
    return shutil.disk_usage(there).free


def _served(settings: Settings) -> dict[str, str]:
    """How vLLM takes the result, and why."""
    if settings.method == "full":
        return {"served_as": "model", "served_why": "all parameters are trained"}
    if settings.merge:
        return {"served_as": "model", "served_why": "the adapter is added to the base model (merge)"}
    rank = settings.lora_rank
    if rank > MOST_RANK:
        why = f"vLLM takes no adapter of a rank above {MOST_RANK}, and this one has {rank}: set merge = true"
        return {"served_as": "merged", "served_why": why}
    return {"served_as": "adapter", "served_why": f"of rank {rank}, which vLLM loads beside the base model"}
