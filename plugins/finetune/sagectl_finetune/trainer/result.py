"""The final model: an adapter, full weights or both merged, whole in its place or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer import files, model
from sagectl_finetune.trainer.records import say
from sagectl_finetune.trainer.settings import Refused, Settings

CARD = "sagectl.json"
"""What a result was made from; a directory with one is ours to replace."""
_UNWANTED = ("README.md", "training_args.bin")


def check(settings: Settings) -> None:
    """Raise Refused where the result cannot be written, before anything is trained."""
    output = Path(settings.output)
    if output.exists() and not (output / CARD).exists():
        what = "is not a directory" if not output.is_dir() else None
        if output.is_dir() and any(output.iterdir()):
            what = f"holds files that no job wrote (it has no {CARD})"
        if what is not None:
            raise Refused(f"output: {output} {what}", "name another directory, or empty that one")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"output: {output.parent} cannot be made: {error.strerror}",
            "name a directory that can be written",
        ) from error
    if not os.access(output.parent, os.W_OK):
        raise Refused(f"output: {output.parent} cannot be written", "give the job's user access to it")


def write(settings: Settings, trained: Any, tokenizer: Any, card: Mapping[str, Any]) -> None:
    """Write the model beside its place and put it there."""
    output = Path(settings.output)
    for left in output.parent.glob(f".{output.name}.sagectl-*"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = output.with_name(f".{output.name}.sagectl-{os.getpid()}")
    scratch.mkdir(mode=0o755)
    try:
        _save(settings, trained, scratch)
        tokenizer.save_pretrained(scratch)
        for name in _UNWANTED:
            (scratch / name).unlink(missing_ok=True)
        files.replace(scratch / CARD, {**card, "bytes": files.size_below(scratch)})
        _publish(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save(settings: Settings, trained: Any, place: Path) -> None:
    if settings.method == "full":
        import torch

        # It was trained in 32 bits; it is served in what the base was stored in.
        trained.to(getattr(torch, model.own_dtype(settings)))
        trained.config.use_cache = True
        trained.save_pretrained(place)
        return
    trained.save_pretrained(place)
    if settings.merge:
        _merge(settings, place)


def _merge(settings: Settings, place: Path) -> None:
    """Replace the adapter in `place` by the base with the adapter added to it, in the base's own type."""
    from peft import PeftModel

    say("adding the adapter to the base model")
    # On the CPU and not quantised: what is added to rounded weights would be rounded again.
    base = model.load_base(settings, model.own_dtype(settings), "cpu", stored="none")
    merged = PeftModel.from_pretrained(base, str(place)).merge_and_unload(safe_merge=True)
    for file in place.iterdir():
        file.unlink()
    merged.config.use_cache = True
    merged.save_pretrained(place)


def _publish(scratch: Path, output: Path) -> None:
    for path in (*scratch.rglob("*"), scratch):
        # An engine that runs as another user reads them; safetensors writes 0600.
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
        files.sync(path)
    if not output.exists():
        scratch.rename(output)
    elif not files.exchange(scratch, output):
        # Without an exchange there is a moment without either; the old one is beside it then.
        old = output.with_name(f".{output.name}.sagectl-old")
        output.rename(old)
        scratch.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    files.sync(output.parent)
