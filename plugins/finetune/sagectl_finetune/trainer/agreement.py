"""Whether a checkpoint belongs to this run: the same data, options and machine size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagectl_finetune.data import changed
from sagectl_finetune.trainer.settings import Settings

_OPTIONS = (
    *(
        "model",
        "method",
        "stored",
        "dtype",
        "seed",
        "learning_rate",
        "lr_scheduler",
        "warmup",
        "weight_decay",
    ),
    *("optimizer", "max_length", "packing", "format", "eval_split"),
)
_ADAPTER = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules")
VERSIONS = "versions"
"""What changes bits but not meaning: said, not refused."""


def made_with(
    settings: Settings, *, data: Mapping[str, str], base: str, total: int, versions: Mapping[str, str]
) -> dict[str, Any]:
    """What a checkpoint of this run belongs to, as JSON.

    Args:
        data: hashes, as of `data.sha256`. base: hash of the base model's files.
        total: steps of the whole run.
    """
    names = (*_OPTIONS, *(_ADAPTER if settings.method != "full" else ()))
    found: dict[str, Any] = {name: _plain(getattr(settings, name)) for name in names}
    found["gpus"] = settings.gpus
    # Memory may run out, and the batch be halved: the rows of a step stay the same.
    found["rows_per_step"] = settings.batch_size * settings.gradient_accumulation_steps * settings.gpus
    return found | {"steps": total, "base_files": base, "data": dict(data), VERSIONS: dict(versions)}


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """What differs, and the two values in words; None where the run can go on."""
    for name, value in now.items():
        if name == VERSIONS or then.get(name) == value:
            continue
        if name == "data":
            before = then.get(name) or {}
            if before.get("tokens") == value["tokens"]:
                continue  # spaces between rows, say
            return "the data", f"{', '.join(changed(value, before))} is not what it was made with"
        if name == "base_files":
            return "the base model", "its files are not those that it was made with"
        return name, f"it was made with {then.get(name)}, the job now says {value}"
    return None


def other_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Packages whose version is another one, in words."""
    before, after = then.get(VERSIONS, {}), now.get(VERSIONS, {})
    return [
        f"{name} {before.get(name)} → {version}"
        for name, version in after.items()
        if before.get(name) != version
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
