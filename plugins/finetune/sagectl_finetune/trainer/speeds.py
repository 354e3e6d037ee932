"""How fast jobs were on this machine: noted by those that complete, read by the preflight of others."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer import files
from sagectl_finetune.trainer.settings import Settings

FILE = "speed.json"
"""Beside the checkpoints of a job."""
FEWEST = 5
"""Steps that have to be done without a stop for their speed to count."""
LOOKED_AT = 500
"""Jobs, at most."""
_LIKE = ("batch_size", "max_length", "packing", "gradient_checkpointing", "dtype", "lora_rank", "threads")
"""Settings that a speed depends on too; those of the job that is most like this one count."""


def note(
    settings: Settings, base: str, device: str, *, tokens: int, steps: int, total: int, seconds: float
) -> None:
    """Write what the steps of a session came to.

    Args:
        base: the fingerprint of the base model. device: the GPU's name, or cpu.
        tokens: that were computed in `seconds`, evaluations and saving included.
        total: steps of the whole run.
    """
    if steps < min(FEWEST, total) or seconds <= 0 or tokens <= 0:
        return
    found = {
        **_what(settings, base),
        **_how(settings),
        "device": device,
        "job": settings.job,
        "tokens_per_second": round(tokens / seconds, 2),
        "steps": steps,
    }
    files.replace(settings.directory / FILE, found)


def expected(settings: Settings, base: str, tokens: int) -> dict[str, Any] | None:
    """How long so many tokens take by what was noted; None where no job trained this model this way here.

    `differs` has the settings that were others then.
    """
    what, how = _what(settings, base), _how(settings)
    best: tuple[int, float, Mapping[str, Any]] | None = None
    for noted, at in _noted(settings.directory.parent):
        if any(noted.get(key) != value for key, value in what.items()) or not _on(settings, noted):
            continue
        likeness = sum(noted.get(key) == value for key, value in how.items())
        if best is None or (likeness, at) > best[:2]:
            best = (likeness, at, noted)
    if best is None:
        return None
    noted = best[2]
    return {
        "seconds": round(tokens / noted["tokens_per_second"], 1),
        "tokens_per_second": noted["tokens_per_second"],
        "job": str(noted.get("job")),
        "device": str(noted.get("device")),
        "differs": {key: noted.get(key) for key, value in how.items() if noted.get(key) != value},
    }


def _what(settings: Settings, base: str) -> dict[str, Any]:
    return {
        "machine": platform.node(),
        "base": base,
        "method": settings.method,
        "stored": settings.stored,
        "gpus": settings.gpus,
    }


def _how(settings: Settings) -> dict[str, Any]:
    return {key: getattr(settings, key) for key in _LIKE}


def _on(settings: Settings, noted: Mapping[str, Any]) -> bool:
    """On the device that it is going to have; a dry run does not see which one "auto" comes to."""
    return settings.device == "auto" or (settings.device == "cpu") == (noted.get("device") == "cpu")


def _noted(directory: Path) -> Iterator[tuple[Mapping[str, Any], float]]:
    """What is known of each job, and since when."""
    dated = []
    for path in directory.glob(f"*/{FILE}"):
        try:
            dated.append((path.stat().st_mtime, path))
        except OSError:
            continue  # removed meanwhile
    for at, path in sorted(dated, reverse=True)[:LOOKED_AT]:
        found: Any = files.load(path)
        speed = found.get("tokens_per_second") if isinstance(found, dict) else None
        if isinstance(speed, int | float) and speed > 0:
            yield found, at
