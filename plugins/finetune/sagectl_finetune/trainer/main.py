"""The program: read the settings, choose where to begin, train, write the result.

Exit codes: 0 completed, 65 refused (data or options), 70 the loss is no number and `on_nan` is "stop",
71 out of memory, 75 stopped with what was done saved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer import checkpoints, exhausted, files, notify, ranks, result
from sagectl_finetune.trainer.records import Records, say
from sagectl_finetune.trainer.settings import (
    COMPLETED,
    DIVERGED,
    OUT_OF_MEMORY,
    REFUSED,
    STOPPED,
    Diverged,
    Refused,
    Settings,
    parse,
)
from sagectl_finetune.trainer.stopping import Stop


def main(words: Sequence[str]) -> int:
    """Train until the end or a stop; the exit code."""
    if ranks.is_one():
        ranks.tie()
    options = _options(words)
    settings = parse(options.settings)
    stop = Stop(settings.directory)
    stop.install()
    _environment(settings)
    _spare(settings)
    try:
        code = _dry_run(settings) if options.dry_run else _run(settings, stop)
    except Refused as refused:
        for line in refused.because:
            say(f"because: {line}")
        say(f"refused: {refused.reason}\nremedy: {refused.remedy}")
        if options.dry_run:
            _print({"refused": refused.reason, "remedy": refused.remedy, "because": list(refused.because)})
        code = REFUSED
    sys.stdout.flush()
    sys.stderr.flush()
    # torch's own threads need no orderly end, and after what was just written none may delay it.
    os._exit(code)


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sagectl-trainer", description="Fine-tunes a language model.")
    parser.add_argument("settings", help="a JSON object")
    parser.add_argument("--dry-run", action="store_true", help="read the data and report, train nothing")
    return parser.parse_args(words)


def _environment(settings: Settings) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if settings.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(settings.state, "tensorboard")))


def _spare(settings: Settings) -> None:
    """Have PEFT find no bitsandbytes where nothing is quantised: else each start spends a second on it."""
    config: Any = files.load(Path(settings.model, "config.json"))
    known = isinstance(config, dict) and "quantization_config" not in config
    if known and settings.stored == "none" and settings.optimizer == "adamw":
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


def _dry_run(settings: Settings) -> int:
    from sagectl_finetune.trainer import preflight

    _print(preflight.report(settings))
    return COMPLETED


def _print(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _run(asked: Settings, stop: Stop) -> int:
    if ranks.is_one():
        return _train(exhausted.adjusted(asked), asked, stop, ranks.given())
    if _was_complete(asked):
        return COMPLETED
    settings = _after_a_kill(asked, exhausted.adjusted(asked))
    result.check(settings)
    begin = _begin(settings)
    if settings.gpus > 1:
        return ranks.run(settings.gpus, begin, stop)
    return _train(settings, asked, stop, begin)


def _after_a_kill(asked: Settings, settings: Settings) -> Settings:
    """With half the batch, where the last run was killed for memory."""
    smaller = exhausted.halved(settings) if exhausted.was_killed(settings) else None
    if smaller is None:
        return settings
    say(
        f"event: the last run was killed, out of memory as it seems, with batch_size {settings.batch_size}: "
        f"going on with {smaller.batch_size}, and gradient_accumulation_steps "
        f"{smaller.gradient_accumulation_steps}"
    )
    exhausted.note(asked, smaller)
    return smaller


def _was_complete(settings: Settings) -> bool:
    """Whether nothing is left to do: the stop of the last start came when all was done.

    A run that is complete otherwise makes room for a new one: nobody starts a completed job unasked.
    """
    mark = settings.done_file
    found: Any = files.load(mark)
    if found is None:
        return False
    if found.get("stop_asked") and Path(settings.output, result.CARD).exists():
        say("the run was complete when it was stopped: there is nothing left to do")
        files.replace(mark, {**found, "stop_asked": False}, durable=True)
        return True
    say("the last run is complete: this is a new one")
    for _, path in checkpoints.listed(settings.directory):
        checkpoints.remove(path)
    settings.adjusted_file.unlink(missing_ok=True)
    mark.unlink()  # last: a kill before it leaves a mark, and the rest is removed again
    return False


def _begin(settings: Settings) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from; None for a run from the start.

    Raises Refused for one that is named and not valid.
    """
    settings.directory.mkdir(parents=True, exist_ok=True)
    chosen = settings.resume_from_checkpoint
    if chosen is False:
        for _, path in checkpoints.listed(settings.directory):
            checkpoints.remove(path)
        return None
    own = checkpoints.newest(settings.directory, say)
    if own is not None or chosen is True:
        return own
    found = checkpoints.examine(Path(str(chosen)))
    if isinstance(found, str):
        raise Refused(
            f"resume_from_checkpoint: {chosen} cannot be gone on from: {found}",
            "name the directory of a checkpoint that a job of sagectl wrote",
        )
    return found


def _train(settings: Settings, asked: Settings, stop: Stop, begin: checkpoints.Checkpoint | None) -> int:
    from sagectl_finetune.trainer import job

    records = Records(settings.progress_file, settings.history_file, active=ranks.is_first())
    try:
        return job.train(settings, stop, records, begin)
    except Diverged as diverged:
        say(f"diverged: {diverged}; the checkpoints before it are in {settings.checkpoints}")
        return DIVERGED
    except Refused:
        raise
    except Exception as error:
        # Whatever torch raises for memory that ran out; all else goes on its way.
        if not exhausted.is_memory(error):
            raise
        traceback.print_exc(limit=-4)  # where in the model; the way there is long
        text = str(error).splitlines()[0] if str(error) else "MemoryError"
        trained = job.reached_training()
    return _out_of_memory(settings, asked, stop, text, trained=trained)


def _out_of_memory(settings: Settings, asked: Settings, stop: Stop, text: str, *, trained: bool) -> int:
    """Start over in this process with half the batch, from the newest checkpoint; or give up."""
    smaller = exhausted.halved(settings) if trained else None
    if smaller is None:
        where = "with a batch of one row" if trained else "before the first step"
        say(f"out of memory {where}: {text}")
        return OUT_OF_MEMORY
    told = (
        f"event: out of memory with batch_size {settings.batch_size}: going on with {smaller.batch_size}, "
        f"and gradient_accumulation_steps {smaller.gradient_accumulation_steps}"
    )
    sys.stderr.write(f"{told}\n")  # whichever process it is
    exhausted.note(asked, smaller)
    if stop.requested:
        return STOPPED
    if ranks.is_one():
        return OUT_OF_MEMORY  # all processes of the job have to begin anew
    notify.status("out of memory: going on with a smaller batch")
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)
