"""What the program is told, as one JSON argument, and the values that follow from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

COMPLETED = 0
REFUSED = 65
"""The data or the options are wrong: trying again cannot help."""
DIVERGED = 70
"""The loss is no number, and `on_nan` says stop."""
OUT_OF_MEMORY = 71
"""Memory ran out. Where a smaller batch may help, adjusted.json says so and another start takes it."""
STOPPED = 75
"""Stopped by a signal, with a checkpoint where a step was done."""


class Refused(Exception):
    """Nothing can be trained with what was given: `reason` and `remedy`, a sentence without its end each.

    because: what it rests on, a line each.
    """

    def __init__(self, reason: str, remedy: str, because: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.because = reason, remedy, because


class Diverged(Exception):
    """The loss is no number, and `on_nan` says stop."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One job. Names are those of the options; `None` leaves a choice to the program.

    model: a directory, or NAME[@REVISION] on the hub.
    checkpoints: the directory of `checkpoint-STEP`. state: that of progress.json and history.jsonl.
    stored: how the base is quantised in memory: none, nf4, nf4-double, int8.
    device: cpu, cuda, or auto (a GPU where there is one). gpus: processes, one for each GPU.
    """

    job: str
    model: str
    dataset: str
    output: str
    checkpoints: str
    state: str
    method: str = "lora"
    format: str = "auto"
    skip_bad_rows: bool = False
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | str = "all-linear"
    learning_rate: float = 1e-4
    lr_scheduler: str = "linear"
    warmup: float = 0.0
    weight_decay: float = 0.0
    num_epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    max_length: int = 512
    packing: bool = False
    stored: str = "none"
    dtype: str = "auto"
    gradient_checkpointing: bool = True
    attention: str = "auto"
    optimizer: str = "adamw"
    seed: int = 42
    eval_split: float = 0.0
    early_stopping: int | None = None
    save_steps: int = 100
    keep: int = 2
    resume_from_checkpoint: bool | str = True
    report_to: tuple[str, ...] = ()
    on_nan: str = "warn"
    merge: bool = False
    threads: int | None = None
    trust_remote_code: bool = False
    device: str = "auto"
    gpus: int = 1

    @property
    def progress_file(self) -> Path:
        """Replaced at each step."""
        return Path(self.state, "progress.json")

    @property
    def history_file(self) -> Path:
        """One object for each step, evaluation and event."""
        return Path(self.state, "history.jsonl")

    @property
    def adjusted_file(self) -> Path:
        """The batch that fits where the one that was asked for did not."""
        return Path(self.state, "adjusted.json")

    @property
    def done_file(self) -> Path:
        """Beside the checkpoints: the run that they belong to is complete."""
        return Path(self.checkpoints, "completed.json")

    @property
    def directory(self) -> Path:
        """Of the checkpoints."""
        return Path(self.checkpoints)

    @property
    def base(self) -> tuple[str, str | None]:
        """What transformers loads, and its revision where the hub's name carries one."""
        if self.model.startswith("/") or "@" not in self.model:
            return self.model, None
        name, _, revision = self.model.rpartition("@")
        return name, revision


def parse(text: str) -> Settings:
    """Read the JSON argument. Raises ValueError for what does not belong there."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("the settings are no object")
    known = {field.name for field in fields(Settings)}
    unknown = sorted(set(found) - known)
    if unknown:
        raise ValueError(f"the settings have unknown keys: {', '.join(unknown)}")
    return Settings(**{key: _frozen(value) for key, value in found.items()})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
