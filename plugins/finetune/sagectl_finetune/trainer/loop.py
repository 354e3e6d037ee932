"""transformers' Trainer, made to stop with a checkpoint and to go on as if it had not been stopped."""

from __future__ import annotations

import contextlib
import math
import random
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from sagectl_finetune.data import Row
from sagectl_finetune.trainer import checkpoints
from sagectl_finetune.trainer.head import chosen
from sagectl_finetune.trainer.meter import Meter, best_of, patience_is_over
from sagectl_finetune.trainer.records import TRAINING, Records, say
from sagectl_finetune.trainer.rows import padded
from sagectl_finetune.trainer.settings import Diverged, Settings
from sagectl_finetune.trainer.stopping import Stop
from sagectl_finetune.trainer.watch import Watch

_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


_TOKENS, _TRAINED = "tokens", "trained"
"""Numbers in a batch, which are not for the model."""


class EndedEarly(Exception):
    """The evaluation that a stop had left out shows that the run is at its end."""


class _Aborted(Exception):
    """An evaluation that a stop ended."""


def arguments(settings: Settings, *, device: str, dtype: str, total: int, evaluates: bool) -> Any:
    """What the Trainer is told."""
    made = TrainingArguments(
        output_dir=settings.checkpoints,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        max_steps=total,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        optim=_OPTIMIZERS[settings.optimizer],
        seed=settings.seed,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16" and device == "cuda",
        use_cpu=device == "cpu",
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=None,  # ours are removed once a newer one has its manifest
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.save_steps if evaluates else None,
        prediction_loss_only=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide what has to be seen
        disable_tqdm=True,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        ignore_data_skip=False,
        ddp_find_unused_parameters=False if settings.gpus > 1 else None,
    )
    # Where more GPUs are visible than processes train, a batch would be split over them in one process.
    made._n_gpu = min(1, made.n_gpu)
    return made


class Collator:
    """Pads rows to the longest of a batch, and counts; a GPU would have to be waited for to count there.

    fused: the model takes the places of what is trained.
    """

    def __init__(self, pad: int, multiple: int, packed: bool, fused: bool) -> None:
        self._pad, self._multiple, self._packed, self._fused = pad, multiple, packed, fused

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        lists = padded(rows, self._pad, self._multiple, self._packed)
        tokens = sum(lists.pop("lengths"))
        batch = {key: torch.tensor(value) for key, value in lists.items()}
        where, targets = chosen(batch["labels"])
        counts = {_TOKENS: tokens, _TRAINED: len(where)}
        return {**batch, **({"where": where, "targets": targets} if self._fused else {}), **counts}


class Loop(Trainer):  # type: ignore[misc]
    """A Trainer whose evaluation leaves the random numbers alone and ends when a stop is asked for."""

    stop: Stop
    meter: Meter

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Count the tokens of a step."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        tokens, trained = (sum(batch[key] for batch in batches) for key in (_TOKENS, _TRAINED))
        world = self.args.world_size
        self.meter.count(tokens * world, trained * world, time.monotonic())
        return batches, items

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Any:
        return super()._prepare_inputs({key: inputs[key] for key in inputs if key not in (_TOKENS, _TRAINED)})

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As of old, but the steps after it are those that they were without it."""
        try:
            with _random_numbers_kept():
                found: dict[str, float] = super().evaluate(*args, **kwargs)
                return found
        except _Aborted:
            say("the evaluation is left out: a stop was asked for")
            self.control.should_evaluate = False
            self.control.should_save = True
            self.control.should_training_stop = True
            return {"eval_loss": math.nan}

    def go_to(self, checkpoint: Path) -> None:
        """Be where a run was at its end: its weights, its steps and its evaluations."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def agreed(self) -> bool:
        """Whether any process was asked to stop: all have to do it at the same step."""
        if self.args.world_size == 1:
            return self.stop.requested
        flag = torch.tensor(int(self.stop.requested), device=self.args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    # A data loader draws from torch's generator when it starts.
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


class Conduct(TrainerCallback):  # type: ignore[misc]
    """Stops, seals checkpoints, and tells how far it is."""

    def __init__(
        self, loop: Loop, settings: Settings, records: Records, made_with: Mapping[str, Any]
    ) -> None:
        self._loop, self._settings, self._records = loop, settings, records
        self._made_with = made_with
        self._step_began = time.monotonic()
        self.watch = Watch(self._stalled)
        """Has to be ended by whoever made this."""
        self.ended = False
        """The evaluations ended the run."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look for stalls, and evaluate what a stop kept from being evaluated. Raises EndedEarly."""
        self._step_began = time.monotonic()
        self.watch.start()
        self.make_up(args, state)
        control.should_save = False
        if self.ended:
            raise EndedEarly

    def make_up(self, args: Any, state: Any) -> None:
        """Do the evaluation of the step that is reached, where it is due and a stop left it out."""
        step = state.global_step
        due = (
            args.eval_steps and step and (step % int(args.eval_steps) == 0 or step >= self._loop.meter.total)
        )
        if due and all(entry["step"] != step for entry in _evaluations(state)):
            self._loop.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The place where a stop is heard."""
        self.watch.sign()
        now = time.monotonic()
        self._loop.stop.step_seconds = max(self._loop.stop.step_seconds, now - self._step_began)
        self._step_began = now
        if self._loop.agreed():
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation is not waited for."""
        self.watch.sign()
        if self._loop.agreed():
            raise _Aborted

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the last step asked for is done."""
        if control.should_training_stop:
            control.should_save = control.should_evaluate = control.should_log = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the checkpoint a valid one, then remove older ones."""
        if args.world_size > 1:
            torch.distributed.barrier()  # the others write their random states
        if args.should_save:
            step = state.global_step
            directory = self._settings.directory
            checkpoints.seal(directory / f"checkpoint-{step}", step, self._made_with)
            best = best_of([(entry["step"], entry["eval_loss"]) for entry in _evaluations(state)])
            checkpoints.prune(directory, self._settings.keep, step, best)
            self._records.line(f"checkpoint at step {step}", now=True)
        self.watch.sign()
        if args.world_size > 1:
            torch.distributed.barrier()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the loss, and stop where it gets no better."""
        losses = [entry["eval_loss"] for entry in _evaluations(state)]
        self._records.history(state.global_step, eval_loss=losses[-1])
        self._records.line(f"step {state.global_step}: evaluation loss {losses[-1]:.4f}", now=True)
        self._tell(state, eval_loss=losses[-1])
        patience = self._settings.early_stopping
        if patience is not None and patience_is_over(losses, patience):
            self._records.line(f"no better in {patience} evaluations: ending", now=True)
            control.should_training_stop = control.should_save = self.ended = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """A step's figures. Raises Diverged."""
        if not logs or "loss" not in logs:
            return
        # transformers keeps every step in each checkpoint; ours are in history.jsonl.
        state.log_history[:] = _evaluations(state)
        loss, step, meter = float(logs["loss"]), state.global_step, self._loop.meter
        speed = meter.speed()
        values = {
            "epoch": round(float(state.epoch or 0), 4),
            "loss": loss,
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": None if speed is None else round(speed, 1),
            "trained_tokens": meter.trained_tokens,
            "memory_gb": _memory_gb(),
        }
        self._records.history(step, **values)
        event = meter.event(loss)
        if event is not None:
            self._records.history(step, event=event)
            self._records.line(f"event: {event} at step {step}", now=True)
            values["event"] = f"{event} at step {step}"
        self._tell(state, **values)
        eta = meter.eta(step, time.monotonic())
        left = "" if eta is None else f", {eta:.0f} s left"
        self._records.line(
            f"step {step}/{state.max_steps}: loss {loss:.4f}, learning rate {values['learning_rate']:.3g}"
            f"{'' if speed is None else f', {speed:.0f} tokens/s'}{left}",
            now=step == state.max_steps,
        )
        if not math.isfinite(loss) and self._settings.on_nan == "stop":
            raise Diverged(f"{event} at step {step}")

    def _stalled(self, seconds: float) -> None:
        step = self._loop.state.global_step
        event = f"no step for {seconds:.0f} s"
        self._records.history(step, event=event)
        self._records.line(f"event: {event}, after step {step}", now=True)
        self._tell(self._loop.state, event=f"{event}, after step {step}")

    def _tell(self, state: Any, **details: Any) -> None:
        eta = self._loop.meter.eta(state.global_step, time.monotonic())
        self._records.progress(state.global_step, state.max_steps, eta, phase=TRAINING, **details)


def _evaluations(state: Any) -> list[dict[str, Any]]:
    return [entry for entry in state.log_history if "eval_loss" in entry]


def _memory_gb() -> float:
    """The most that was held so far: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(int(torch.cuda.max_memory_reserved()) / 2**30, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30, 3)


def quiet(loop: Loop) -> None:
    """Leave the printing to us."""
    loop.remove_callback(PrinterCallback)


def keeps_apart(model: Any, device: str, stored: str) -> bool:
    """Whether packed sequences do not see each other: what came before must not change the second one.

    Not all architectures tell sequences apart by their positions; those would be trained on noise.
    """
    length = 12
    words = min(int(model.config.get_text_config().vocab_size), 200)
    second = torch.arange(length) % words
    rows = torch.stack([torch.cat([torch.full((length,), first), second]) for first in (1, words - 1)])
    positions = torch.arange(length).repeat(2).expand(2, -1)
    training = model.training
    model.eval()
    with torch.no_grad():
        found = [
            model(input_ids=row[None].to(device), position_ids=positions[:1].to(device)).logits[0, length:]
            for row in rows
        ]
    model.train(training)
    one, other = (logits.float() for logits in found)
    # Eight bits round by what else is in the matrix.
    allowed = (0.1 if stored == "int8" else 0.01) * float(one.std())
    return float((one - other).abs().max()) <= allowed
