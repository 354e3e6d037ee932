"""One run in this process: from the data and the base model to the final model."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sagectl_finetune.trainer import agreement, checkpoints, files, model, notify, result, rows, speeds
from sagectl_finetune.trainer.meter import Meter, best_of, patience_is_over, steps_of
from sagectl_finetune.trainer.records import TRAINING, Records, say
from sagectl_finetune.trainer.settings import COMPLETED, STOPPED, Refused, Settings
from sagectl_finetune.trainer.stopping import Stop

REPORTS = 30.0
"""Seconds that a service gets to take the last figures."""
_reached = False


def reached_training() -> bool:
    """Whether the first step began: a smaller batch does not help before."""
    return _reached


def steps(settings: Settings, prepared: rows.Prepared, *, one_epoch: bool = False) -> int:
    """How many there are, or would be in one time through the data."""
    return steps_of(
        len(prepared.train),
        settings.batch_size * settings.gpus,
        settings.gradient_accumulation_steps,
        1.0 if one_epoch else settings.num_epochs,
        None if one_epoch else settings.max_steps,
    )


def train(settings: Settings, stop: Stop, records: Records, begin: checkpoints.Checkpoint | None) -> int:
    """Train from `begin`, or from the start; the exit code. Raises Refused and Diverged."""
    quiet()
    step = begin.step if begin else 0
    _phase(records, step, "reading the data")
    device = model.device_of(settings)
    model.cap_memory()
    tokenizer = model.tokenizer_of(settings)
    prepared = rows.prepare(settings, tokenizer)
    total = steps(settings, prepared)
    made_with = agreement.made_with(
        settings,
        data=prepared.hashes,
        base=model.fingerprint(settings),
        total=total,
        versions=model.versions(),
    )
    if begin is not None:
        _agree(settings, begin, made_with)
    last = records.reset(step)
    figures = {key: value for key, value in last.items() if key not in ("step", "at")}
    _phase(records, step, "loading the model", total, **figures)
    dtype = model.compute_dtype(settings, device)
    say(
        f"{settings.method} of {settings.model}: {len(prepared.train)} rows, {total} steps, "
        f"{dtype} on {device}" + (f", going on after step {step}" if begin else "")
    )
    run = _Run(settings, stop, records, begin, made_with, total, int(last.get("trained_tokens", 0)))
    return run.go(tokenizer, prepared, device=device, dtype=dtype)


def _phase(records: Records, step: int, text: str, total: int | None = None, **figures: Any) -> None:
    notify.status(text)
    records.progress(step, total, None, phase=text, **figures)


def _agree(settings: Settings, begin: checkpoints.Checkpoint, made_with: Mapping[str, Any]) -> None:
    found = agreement.difference(begin.made_with, made_with)
    if found is not None:
        what, why = found
        raise Refused(
            f"{begin.path} cannot be gone on from: {what} differs: {why}",
            f"restore it, or remove {settings.checkpoints} to begin anew",
        )
    other = agreement.other_versions(begin.made_with, made_with)
    if other:
        say(f"{begin.path} was made with other versions, so the bits may differ: {', '.join(other)}")


def quiet() -> None:
    """Keep bars and advice to programmers out of the log."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")  # at each matrix of each step
    for name in ("transformers.trainer", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _end_reports() -> None:
    """Let Weights & Biases finish, which may wait for a network: the process ends too soon for it."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        ending = threading.Thread(target=wandb.finish, daemon=True)
        ending.start()
        ending.join(REPORTS)


class _Run:
    """Loads, trains and writes the result."""

    def __init__(
        self,
        settings: Settings,
        stop: Stop,
        records: Records,
        begin: checkpoints.Checkpoint | None,
        made_with: Mapping[str, Any],
        total: int,
        trained_tokens: int,
    ) -> None:
        self._settings, self._stop, self._records = settings, stop, records
        self._begin, self._made_with, self._total = begin, made_with, total
        self._trained_tokens = trained_tokens

    def go(self, tokenizer: Any, prepared: rows.Prepared, *, device: str, dtype: str) -> int:
        """The exit code."""
        from transformers import set_seed

        from sagectl_finetune.trainer import head
        from sagectl_finetune.trainer import loop as loops

        settings = self._settings
        set_seed(settings.seed)  # the adapter begins with random numbers
        base = model.load_base(settings, dtype, device)
        fused = head.fuse(base)
        if not fused:
            say(f"{type(base).__name__} does not let the loss be computed in parts: it takes more memory")
        trained = model.with_adapter(settings, base)
        if settings.packing and not loops.keeps_apart(trained, str(trained.device), settings.stored):
            raise Refused(
                f"packing: {settings.model} does not keep packed rows apart",
                "remove packing, or set it to false",
            )
        loop = loops.Loop(
            model=trained,
            args=loops.arguments(
                settings, device=device, dtype=dtype, total=self._total, evaluates=bool(prepared.evaluation)
            ),
            train_dataset=prepared.train,
            eval_dataset=prepared.evaluation or None,
            data_collator=loops.Collator(
                tokenizer.pad_token_id, 8 if device == "cuda" else 1, settings.packing, fused
            ),
            processing_class=tokenizer,
        )
        loops.quiet(loop)
        if not self._train(loops, loop):
            _end_reports()
            return STOPPED
        seconds = time.monotonic() - loop.meter.started
        # All steps are in a checkpoint: from here on a stop costs nothing.
        self._stop.enter("idle")
        self._finish(loop, tokenizer, prepared)
        if loop.is_world_process_zero():
            self._note_speed(loop, seconds)
        _end_reports()
        return COMPLETED

    def _note_speed(self, loop: Any, seconds: float) -> None:
        try:
            speeds.note(
                self._settings,
                model.fingerprint(self._settings),
                model.device_name(),
                tokens=loop.meter.tokens,
                steps=loop.state.global_step - loop.meter.first,
                total=self._total,
                seconds=seconds,
            )
        except OSError as error:
            say(f"the speed is not noted for later jobs: {error.strerror}")

    def _train(self, loops: Any, loop: Any) -> bool:
        """Whether all steps are done."""
        global _reached
        begin = self._begin
        loop.stop = self._stop
        loop.meter = Meter(
            self._total, begin.step if begin else 0, time.monotonic(), trained_tokens=self._trained_tokens
        )
        conduct = loops.Conduct(loop, self._settings, self._records, self._made_with)
        loop.add_callback(conduct)
        if begin is not None and (begin.step >= self._total or self._ended_early(begin)):
            loop.go_to(begin.path)
            conduct.make_up(loop.args, loop.state)
            return True
        self._stop.enter("training")
        self._records.progress(
            loop.meter.first,
            self._total,
            None,
            phase=TRAINING,
            batch_size=self._settings.batch_size,
            gradient_accumulation_steps=self._settings.gradient_accumulation_steps,
        )
        _reached = True
        notify.status("")
        try:
            loop.train(resume_from_checkpoint=str(begin.path) if begin else None)
        except loops.EndedEarly:
            return True
        finally:
            conduct.watch.end()
        step = loop.state.global_step
        if step >= self._total or conduct.ended:
            return True
        say(f"stopped after step {step} of {self._total}, with a checkpoint")
        self._records.progress(step, self._total, None, phase="stopped")
        return False

    def _ended_early(self, begin: checkpoints.Checkpoint) -> bool:
        patience = self._settings.early_stopping
        state: Any = files.load(begin.path / "trainer_state.json") or {}
        losses = [loss for _, loss in _evaluations(state.get("log_history", []))]
        return patience is not None and patience_is_over(losses, patience)

    def _finish(self, loop: Any, tokenizer: Any, prepared: rows.Prepared) -> None:
        settings = self._settings
        own = checkpoints.listed(settings.directory)
        # None where it began at the end of another job's run: there was nothing left to train.
        newest = own[0][0] if own or self._begin is None else self._begin.step
        step = self._load_best(loop, newest) if settings.early_stopping is not None else newest
        _phase(self._records, newest, "writing the result", self._total)
        if not loop.is_world_process_zero():
            return
        card = {
            "base_model": settings.model,
            "method": settings.method,
            "merged": settings.merge or settings.method == "full",
            "lora_rank": None if settings.method == "full" else settings.lora_rank,
            "steps": step,
            "data": prepared.hashes["all"],
            "job": settings.job,
            "made_with": dict(self._made_with),
        }
        result.write(settings, loop.accelerator.unwrap_model(loop.model), tokenizer, card)
        say(f"completed: {settings.output}")
        self._records.progress(newest, self._total, 0.0, phase="completed")
        self._stop.enter("done")
        files.replace(
            settings.done_file, {"output": settings.output, "stop_asked": self._stop.requested}, durable=True
        )

    def _load_best(self, loop: Any, newest: int) -> int:
        """Load what the evaluations found best; its step."""
        directory = self._settings.directory
        best = best_of(_evaluations(loop.state.log_history))
        if best is None or best == newest:
            return newest
        usable = checkpoints.examine(directory / f"checkpoint-{best}")
        if isinstance(usable, str):
            say(f"the best checkpoint, of step {best}, is not used: {usable}")
            return newest
        say(f"the result is that of step {best}, which the evaluations found best")
        loop._load_from_checkpoint(str(usable.path))
        return best


def _evaluations(log: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    return [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]
