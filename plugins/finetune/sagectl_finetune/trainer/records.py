"""What is told while training: progress.json, history.jsonl, and lines for the log."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer import files

LINE_EVERY = 5.0
"""Seconds between lines of the log that only say how far it is."""


KILLS = "oom_kills"
"""In progress.json: how often the kernel had killed for memory by then, whomever."""
TRAINING = "training"
"""The phase in which steps are done."""


def kills_for_memory() -> int | None:
    """How often the kernel killed for memory since the machine started; None where it does not tell."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def say(text: str) -> None:
    """A line for the log. Of several processes only the first says what all of them would."""
    if os.environ.get("RANK", "0") != "0":
        return
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def scalar(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class Records:
    """Writes the two files. Only one process of a job does."""

    def __init__(self, progress: Path, history: Path, *, active: bool = True) -> None:
        self._progress, self._history, self._active = progress, history, active
        self._details: dict[str, Any] = {}
        self._last_line = 0.0

    def reset(self, step: int) -> dict[str, Any]:
        """Take out of the history what happened after `step`, which is done again.

        Returns the newest object of a step that stays; empty where there is none.
        """
        kept: list[str] = []
        last: dict[str, Any] = {}
        for line in _lines(self._history):
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by a kill
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= step:
                kept.append(line)
                last = entry if "loss" in entry else last
        if self._active:
            scratch = self._history.with_name(f".{self._history.name}.{os.getpid()}")
            scratch.write_text("".join(f"{line}\n" for line in kept if step), encoding="utf-8")
            os.replace(scratch, self._history)
        return last if step else {}

    def progress(self, done: int, total: int | None, eta: float | None, **details: Any) -> None:
        """Replace progress.json; details stay until they are given anew."""
        if not self._active:
            return
        self._details |= {key: scalar(value) for key, value in details.items()}
        files.replace(
            self._progress,
            {
                "done": done,
                "total": total,
                "unit": "steps",
                "eta_seconds": None if eta is None else round(eta, 1),
                "updated": round(time.time(), 3),
                KILLS: kills_for_memory(),
                "details": self._details,
            },
        )

    def history(self, step: int, **values: Any) -> None:
        """Append one object. A disk that is full costs the history, not the training."""
        if not self._active:
            return
        entry = {"step": step, "at": round(time.time(), 3), **{k: scalar(v) for k, v in values.items()}}
        try:
            with self._history.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, allow_nan=False) + "\n")
        except OSError as error:
            say(f"{self._history} cannot be written: {error.strerror}")

    def line(self, text: str, *, now: bool = False) -> None:
        """A line for the log, at most one in LINE_EVERY seconds unless `now`."""
        if not self._active or (not now and time.monotonic() - self._last_line < LINE_EVERY):
            return
        self._last_line = time.monotonic()
        say(text)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
