"""Checkpoints that can be relied on: a manifest of sizes and hashes, written last, makes one valid."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer import files

MANIFEST = "manifest.json"
VERSION = 1
NEEDED = ("optimizer.pt", "scheduler.pt", "trainer_state.json")
"""Without one of them a run would go on, but not as it was."""
_NAME = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = re.compile(r"(?:adapter_model|model)(?:-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A valid checkpoint. made_with: what it belongs to, as given to `seal`."""

    path: Path
    step: int
    made_with: Mapping[str, Any]


def step_of(path: Path) -> int | None:
    """The step in a directory's name; None where it is not a checkpoint's."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def listed(directory: Path) -> list[tuple[int, Path]]:
    """What looks like a checkpoint, the newest first."""
    try:
        found = [(step_of(path), path) for path in directory.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(((step, path) for step, path in found if step is not None), reverse=True)


def seal(path: Path, step: int, made_with: Mapping[str, Any]) -> None:
    """Bring all files of a checkpoint to the disk and write its manifest.

    Raises OSError where the disk refuses it: then it has no manifest and counts as absent.
    """
    (path / MANIFEST).unlink(missing_ok=True)
    held = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            held[str(file.relative_to(path))] = {
                "size": file.stat().st_size,
                "sha256": files.digest(file, durable=True),
            }
    for folder in sorted({file.parent for file in path.rglob("*")} | {path}):
        files.sync(folder)
    manifest = {"version": VERSION, "step": step, "made_with": dict(made_with), "files": held}
    files.replace(path / MANIFEST, manifest, durable=True)
    files.sync(path.parent)


def examine(path: Path) -> Checkpoint | str:
    """The checkpoint, or why it cannot be used."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        held, step, made_with = manifest["files"], manifest["step"], manifest["made_with"]
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in held.items()}
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    if step != step_of(path) or not isinstance(made_with, dict):
        return f"its {MANIFEST} is of another checkpoint"
    missing = [name for name in NEEDED if name not in entries]
    if not any(_WEIGHTS.fullmatch(name) for name in entries):
        missing.append("model.safetensors")
    if not any(name.startswith("rng_state") for name in entries):
        missing.append("rng_state.pth")
    if missing:
        return f"it has no {' and no '.join(missing)}"
    for name, (size, sha256) in entries.items():
        trouble = _differs(path / name, size, sha256)
        if trouble is not None:
            return f"its {name} {trouble}"
    return Checkpoint(path, int(step), made_with)


def _differs(path: Path, size: int, sha256: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found:,} bytes, not {size:,}"
        return None if files.digest(path) == sha256 else "is damaged"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def newest(directory: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint; what is passed over is told to `say`."""
    for _, path in listed(directory):
        found = examine(path)
        if isinstance(found, Checkpoint):
            return found
        say(f"{path} is passed over: {found}")
    return None


def prune(directory: Path, keep: int, newest: int, best: int | None = None) -> list[Path]:
    """Remove what is neither among the `keep` newest complete ones up to step `newest`, nor the best.

    What has no manifest, or is of a later step than the one just written, can no longer be of use. Returns
    what is left.
    """
    complete = [(step, path) for step, path in listed(directory) if (path / MANIFEST).exists()]
    kept = [path for step, path in complete if step <= newest][:keep]
    kept += [path for step, path in complete if step == best and path not in kept]
    for _, path in listed(directory):
        if path not in kept:
            remove(path)
    return kept


def remove(path: Path) -> None:
    """Remove a checkpoint, its manifest first, so that what a kill leaves is known to be incomplete."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
