"""Training runs without a daemon, and what their files say. For tests marked `heavy`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sagectl_finetune import planning

PATIENCE = 180.0
"""Seconds; a start alone takes ten on a busy machine."""


def write_chats(path: Path, rows: int = 40, padding: int = 0) -> Path:
    """Chats of different lengths, as JSONL."""
    lines = []
    for number in range(rows):
        asked = f"What is {number} + 1? {'x' * (number % 7 + padding)}"
        messages = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": f"It is {number + 1}, of course."},
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")
    return path


class Run:
    """One job's directories, and the trainers that run on them one after the other."""

    def __init__(self, python: str, home: Path, model: Path, dataset: Path, **options: Any) -> None:
        self.python, self.home = python, home
        self.output, self.checkpoints, self.state = home / "out", home / "checkpoints", home / "state"
        self.state.mkdir(parents=True)
        self.settings: dict[str, Any] = {
            **{"job": "tune", "model": str(model), "dataset": str(dataset), "output": str(self.output)},
            **{"checkpoints": str(self.checkpoints), "state": str(self.state), "device": "cpu"},
            **{"threads": 1, "max_length": 64, "lora_dropout": 0.1, "save_steps": 7, "num_epochs": 3},
            **options,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, *words: str, prepare: Callable[[], None] | None = None, **settings: Any
    ) -> subprocess.Popen[bytes]:
        """Start a trainer."""
        told = json.dumps(self.settings | settings)
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "NOTIFY_SOCKET")}
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, planning.TRAINER, told, *words],
                env={**env, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=prepare,
            )
        return self.process

    def wait(self) -> int:
        """Its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.end()

    def complete(self, **settings: Any) -> None:
        """Run to the end."""
        self.start(**settings)
        assert self.wait() == 0, self.log

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def await_step(self, step: int) -> None:
        """Return when this step was logged."""
        self.until(lambda: self.steps >= step)

    def until(self, wanted: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Look until it is so; nothing tells of it."""
        assert self.process is not None
        end = time.monotonic() + patience
        while not wanted():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.002)

    @property
    def log(self) -> str:
        """What the trainers wrote."""
        return (self.home / "log").read_text()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The objects of history.jsonl; a last line that is being written is left out."""
        return history(self.state)

    @property
    def steps(self) -> int:
        """The last step that was logged."""
        return max((entry["step"] for entry in self.history if "loss" in entry), default=0)

    @property
    def losses(self) -> list[tuple[int, float | None, float | None]]:
        """Step, loss and evaluation loss, as they were computed."""
        return [
            (entry["step"], entry.get("loss"), entry.get("eval_loss"))
            for entry in self.history
            if "event" not in entry
        ]

    @property
    def progress(self) -> dict[str, Any]:
        """progress.json."""
        found: dict[str, Any] = json.loads((self.state / "progress.json").read_text())
        return found

    @property
    def phase(self) -> str | None:
        """What the trainer said last that it does."""
        try:
            return str(self.progress["details"]["phase"])
        except FileNotFoundError:
            return None

    @property
    def weights(self) -> str:
        """A hash of the result's weights."""
        names = [
            name
            for name in ("adapter_model.safetensors", "model.safetensors")
            if (self.output / name).exists()
        ]
        assert len(names) == 1, names
        return hashlib.sha256((self.output / names[0]).read_bytes()).hexdigest()


def history(state: Path) -> list[dict[str, Any]]:
    """The objects of a job's history.jsonl."""
    try:
        text = (state / "history.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def toml(name: str, keys: Mapping[str, Any]) -> str:
    """An engine of the kind `finetune`."""
    lines = [f"[engines.{name}]", 'kind = "finetune"']
    for key, value in keys.items():
        inline = isinstance(value, str) and value.startswith("{ ")
        lines.append(f"{key} = {value if inline else json.dumps(value)}")
    return "\n".join(lines) + "\n"
