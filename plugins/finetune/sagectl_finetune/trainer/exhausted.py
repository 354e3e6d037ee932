"""What to do where memory runs out: the same rows a step, in smaller batches."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sagectl_finetune.trainer import files
from sagectl_finetune.trainer.records import KILLS, TRAINING, kills_for_memory
from sagectl_finetune.trainer.settings import Settings

_WORDS = re.compile(
    r"out of memory|DefaultCPUAllocator: (?:can't|not enough)|Cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED"
)


def is_memory(error: BaseException) -> bool:
    """Whether this is memory that ran out, on the GPU or on the machine."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            return True
        if isinstance(seen, RuntimeError) and _WORDS.search(str(seen)):
            return True
        seen = seen.__cause__
    return False


def halved(settings: Settings) -> Settings | None:
    """Half the batch and twice the accumulation; None where the batch is one row already.

    An odd batch is divided by its smallest factor, so that a step's rows stay the same.
    """
    batch = settings.batch_size
    factor = next((n for n in range(2, batch + 1) if batch % n == 0), None)
    if factor is None:
        return None
    return replace(
        settings,
        batch_size=batch // factor,
        gradient_accumulation_steps=settings.gradient_accumulation_steps * factor,
    )


def note(asked: Settings, settings: Settings) -> None:
    """Write adjusted.json, which the next start of this job goes by.

    asked: as the options say. settings: as it will be tried next.
    """
    files.replace(settings.adjusted_file, {"asked": _batch(asked), "used": _batch(settings)}, durable=True)


def was_killed(settings: Settings) -> bool:
    """Whether the kernel ended the last run of this job for memory, as it seems.

    It was training, it did not say how it ended, and since its last step the kernel killed somebody. A
    smaller batch takes less of the machine's memory only where that is what is trained in.
    """
    found: Any = files.load(settings.progress_file)
    details = found.get("details") if isinstance(found, dict) else None
    if settings.device == "cuda" or not isinstance(details, dict) or details.get("phase") != TRAINING:
        return False
    before, now = found.get(KILLS), kills_for_memory()
    return isinstance(before, int) and now is not None and now > before


def adjusted(settings: Settings) -> Settings:
    """The settings with the batch that was found to fit, where it was found for these options."""
    found: Any = files.load(settings.adjusted_file)
    if not isinstance(found, dict) or found.get("asked") != _batch(settings):
        return settings
    used = found.get("used")
    if not isinstance(used, dict) or not all(isinstance(v, int) and v > 0 for v in used.values()):
        return settings
    rows = settings.batch_size * settings.gradient_accumulation_steps
    smaller = {key: used[key] for key in _batch(settings) if key in used}
    if len(smaller) != 2 or smaller["batch_size"] * smaller["gradient_accumulation_steps"] != rows:
        return settings
    return replace(settings, **smaller)


def _batch(settings: Settings) -> dict[str, int]:
    return {
        "batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
    }
