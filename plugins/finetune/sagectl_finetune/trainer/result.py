"""The final model: an adapter, full weights or both merged, whole in its place or not there."""

from __future__ import annotations

import glob
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
    output = _place(settings)
    what = _apart(settings, output) or _not_ours(output)
    if what is not None:
        raise Refused(f"output: {output} {what[0]}", what[1])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"output: {output.parent} cannot be made: {error.strerror}",
            "name a directory that can be written",
        ) from error
    try:
        scratch = _scratch(output)
        scratch.mkdir()
        scratch.rmdir()
    except OSError as error:
        raise Refused(
            f"output: nothing can be made beside {output}, where it is put together: {error.strerror}",
            f"give the job's user access to {output.parent}, or name another directory",
        ) from error


def _apart(settings: Settings, output: Path) -> tuple[str, str] | None:
    """The result takes the place of all that is in its directory: what would go with it, and the remedy."""
    read = {
        "the model": settings.model,
        "the data": settings.dataset,
        "the checkpoints": settings.checkpoints,
    }
    for what, path in read.items():
        if os.path.isabs(path) and Path(os.path.realpath(path)).is_relative_to(output):
            return (
                f"is where {what} of the job {'is' if what == 'the model' else 'are'}",
                "name another directory",
            )
    data = Path(os.path.realpath(settings.dataset))
    if data.is_dir() and output.is_relative_to(data):
        return f"is in {data}, and all files there are the data", "name a directory elsewhere"
    return None


def _not_ours(output: Path) -> tuple[str, str] | None:
    """Why what is there cannot be replaced, and the remedy."""
    if output.is_symlink():
        return "is a link to itself", "remove it, or name another directory"
    if not output.exists():
        return None
    if os.path.ismount(output):
        return "is a mount point, which cannot be replaced", "name a directory below it"
    if not output.is_dir():
        return "is not a directory", "name another directory"
    if not (output / CARD).exists() and any(output.iterdir()):
        return (
            f"holds files that no job wrote (it has no {CARD})",
            "name another directory, or empty that one",
        )
    return None


def _place(settings: Settings) -> Path:
    """Where links lead: what they lead to is replaced, not they."""
    return Path(os.path.realpath(settings.output))


def _scratch(output: Path) -> Path:
    return output.with_name(f".{output.name}.sagectl-{os.getpid():07d}")


def write(settings: Settings, trained: Any, tokenizer: Any, card: Mapping[str, Any]) -> None:
    """Write the model beside its place and put it there."""
    output = _place(settings)
    for left in output.parent.glob(f".{glob.escape(output.name)}.sagectl-*"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = _scratch(output)
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
