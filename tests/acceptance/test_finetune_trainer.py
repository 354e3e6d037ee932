"""The trainer alone: every method, exact resumption, kills, memory that runs out, a loss that is NaN."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagectl_finetune.planning import TRAINER
from sagectl_finetune.trainer import checkpoints
from tests.acceptance.finetuning import PATIENCE, Run, write_chats
from tests.cgroups import MemoryGroup, memory_group

__all__ = ["memory_group"]

pytestmark = pytest.mark.heavy

NewRun = Callable[..., Run]


@pytest.fixture
def new_run(transformers_python: str, starter_model: Path, tmp_path: Path) -> Iterator[NewRun]:
    """Makes runs on the starter model and a small file of chats."""
    made: list[Run] = []
    chats = write_chats(tmp_path / "chats.jsonl")

    def make(name: str = "run", **options: Any) -> Run:
        options = {"model": starter_model, "dataset": chats} | options
        made.append(Run(transformers_python, tmp_path / name, **options))
        return made[-1]

    yield make
    for run in made:
        run.end()


def in_engine(python: str, code: str, *words: str) -> Any:
    """What a piece of code prints as JSON, in the engine's interpreter."""
    found = subprocess.run([python, "-c", code, *words], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


LOGITS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
base, *results = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(base)("What is 3 + 1?", return_tensors="pt").input_ids
before = AutoModelForCausalLM.from_pretrained(base)(ids).logits
found = []
for result in results:
    template = AutoTokenizer.from_pretrained(result).chat_template is not None
    after = AutoModelForCausalLM.from_pretrained(result)(ids).logits
    found.append([(after - before).abs().max().item(), template])
print(json.dumps(found))
"""
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"method": "lora"}, "adapter_model.safetensors"),
    "int8": ({"method": "qlora", "stored": "int8", "optimizer": "adamw_8bit"}, "adapter_model.safetensors"),
    "merged": ({"method": "qlora", "stored": "nf4-double", "merge": True}, "model.safetensors"),
    "full": ({"method": "full", "lora_dropout": 0.0}, "model.safetensors"),
}


def test_every_method_trains_and_its_result_loads(
    new_run: NewRun, transformers_python: str, starter_model: Path
) -> None:
    runs = []
    for name, (options, weights) in METHODS.items():
        run = new_run(name, **options, max_steps=8, learning_rate=1e-3)
        run.complete()
        held = {path.name for path in run.output.iterdir()}
        assert {weights, "tokenizer.json", "chat_template.jinja", "sagectl.json"} <= held, name
        assert "README.md" not in held
        losses = [loss for _, loss, _ in run.losses if loss is not None]
        assert len(losses) == 8, name
        assert losses[-1] < losses[0], name
        card = json.loads((run.output / "sagectl.json").read_text())
        assert (card["base_model"], card["method"]) == (str(starter_model), options["method"])
        if weights.startswith("adapter"):
            config = json.loads((run.output / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == str(starter_model)
        runs.append(run)
    results = [str(run.output) for run in runs]
    loaded = in_engine(transformers_python, LOGITS, str(starter_model), *results)
    for name, (moved, template) in zip(METHODS, loaded, strict=True):
        assert moved > 1e-3, name
        assert template, name


def test_interrupted_at_random_steps_it_is_bit_identical(new_run: NewRun) -> None:
    """Five stops, with dropout, evaluations and an epoch's end among the steps; two threads."""
    options = {"eval_split": 0.2, "save_steps": 6, "threads": 2}
    whole, broken = new_run("whole", **options), new_run("broken", **options)
    whole.complete()
    total = whole.steps
    # The last step too: what it evaluates is made up for as well.
    chosen = [*sorted(random.sample(range(1, total - 1), 4)), total]
    for step in chosen:
        before = broken.steps
        broken.start()
        broken.await_step(min(total, max(step, before + 1)))
        assert broken.stop() in (75, 0), (chosen, broken.log)
    broken.complete()
    assert broken.losses == whole.losses, chosen
    assert broken.weights == whole.weights, chosen
    assert broken.progress["details"]["trained_tokens"] == whole.progress["details"]["trained_tokens"]


def test_killed_at_random_moments_it_loses_at_most_save_steps(new_run: NewRun) -> None:
    """SIGKILL at random steps, and while a checkpoint is written; at last the newest checkpoint is damaged.

    Result: nothing has to be repaired, the damaged one is passed over and said.
    """
    whole, broken = new_run("whole"), new_run("broken", save_steps=3)
    whole.complete(save_steps=3)
    for number in range(5):
        broken.start()
        before = broken.steps
        if number % 2:
            broken.await_step(before + random.randrange(1, 6))
        else:
            half_written = random.choice(("optimizer.pt", "adapter_model.safetensors", "trainer_state.json"))
            broken.until(lambda name=half_written: _half_written(broken.checkpoints, name))
        reached = broken.steps
        broken.end()
        newest = checkpoints.newest(broken.checkpoints, lambda text: None)
        saved = newest.step if newest else 0
        assert reached - saved <= 3, (number, reached, saved)
    assert newest is not None
    with (newest.path / "optimizer.pt").open("r+b") as file:
        file.seek(200)
        file.write(b"\0\0\0\0damaged")
    broken.complete()
    assert f"{newest.path} is passed over: its optimizer.pt is damaged" in broken.log
    assert broken.weights == whole.weights
    assert broken.losses == whole.losses


def _half_written(directory: Path, name: str) -> bool:
    for _, path in checkpoints.listed(directory):
        if (path / name).exists() and not (path / checkpoints.MANIFEST).exists():
            return True
    return False


def test_other_data_is_refused_and_other_batches_are_not(new_run: NewRun, tmp_path: Path) -> None:
    """A stop while it loads, one while it trains; other data; then as many rows a step in other batches."""
    run = new_run()
    run.start()
    run.until((run.state / "progress.json").exists)
    assert run.stop() == 75
    assert "nothing to save" in run.log
    run.start()
    run.await_step(3)
    assert run.stop() == 75
    reached = run.steps
    run.start(dataset=str(write_chats(tmp_path / "other.jsonl", padding=1)))
    assert run.wait() == 65
    assert "the data differs" in run.log
    run.complete(batch_size=2, gradient_accumulation_steps=2)
    assert f"going on after step {reached}" in run.log
    assert [step for step, loss, _ in run.losses if loss is not None] == list(range(1, 31))


def test_memory_that_runs_out_halves_the_batch(new_run: NewRun, tmp_path: Path) -> None:
    """Eager attention of long rows does not fit; a fourth of the batch does. All rows of a step stay."""
    limit = 1100 << 20
    run = new_run(
        dataset=write_chats(tmp_path / "long.jsonl", rows=16, padding=1450),
        **{"batch_size": 8, "max_length": 1536, "attention": "eager", "gradient_checkpointing": False},
        max_steps=1,
    )
    run.start(prepare=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    assert run.wait() == 0, run.log
    assert "event: out of memory with batch_size 8: going on with 4" in run.log
    details = run.progress["details"]
    assert details["batch_size"] * details["gradient_accumulation_steps"] == 8
    assert details["batch_size"] < 8
    assert json.loads((run.state / "adjusted.json").read_text())["asked"]["batch_size"] == 8


def test_killed_by_the_kernel_for_memory_it_goes_on_with_half_the_batch(
    new_run: NewRun, tmp_path: Path, memory_group: MemoryGroup
) -> None:
    """The process gets a memory limit while it loads, which its batch exceeds; the next start has none."""
    run = new_run(
        dataset=write_chats(tmp_path / "long.jsonl", rows=16, padding=1450),
        **{"batch_size": 8, "max_length": 1536, "attention": "eager", "gradient_checkpointing": False},
        max_steps=1,
    )
    memory_group.limit(600 << 20)
    process = run.start()
    run.until(lambda: run.phase == "loading the model")
    memory_group.add(process.pid)
    assert run.wait() == -9, run.log
    assert run.phase == "training"
    run.complete()
    assert "out of memory as it seems, with batch_size 8: going on with 4" in run.log
    details = run.progress["details"]
    assert (details["batch_size"], details["gradient_accumulation_steps"]) == (4, 2)


def test_a_loss_that_is_no_number_is_an_event(new_run: NewRun, starter_model: Path, tmp_path: Path) -> None:
    """It ends the job, or is only told."""
    model = tmp_path / "model"
    shutil.copytree(starter_model, model)
    spoil(model / "model.safetensors", "lm_head.weight")
    run = new_run(model=model, max_steps=2)
    for on_nan, code in (("stop", 70), ("warn", 0)):
        run.start(on_nan=on_nan)
        assert run.wait() == code, run.log
        assert run.progress["details"]["event"].startswith("the loss is NaN")
        assert run.history[0]["loss"] == "nan"
        assert run.history[1] == {**run.history[1], "step": 1, "event": "the loss is NaN"}
    assert run.log.count("event: the loss is NaN at step 1") == 2


def spoil(file: Path, name: str) -> None:
    """Make the first numbers of a tensor NaN. The file begins with the length of its JSON header."""
    content = bytearray(file.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:begin])[name]
    assert entry["dtype"] == "F32"
    at = begin + entry["data_offsets"][0]
    content[at : at + 64] = struct.pack("<16f", *[math.nan] * 16)
    file.write_bytes(content)


def test_early_stopping_keeps_and_writes_the_best(new_run: NewRun) -> None:
    """A learning rate that makes it worse: the first evaluation is the best."""
    run = new_run(
        **{"method": "full", "lora_dropout": 0.0, "learning_rate": 0.5, "lr_scheduler": "constant"},
        **{"early_stopping": 3, "eval_split": 0.2, "save_steps": 1, "max_steps": 20},
    )
    run.complete()
    evaluations = [(loss, step) for step, _, loss in run.losses if loss is not None]
    best = min(evaluations)[1]
    assert len(evaluations) < 20
    assert json.loads((run.output / "sagectl.json").read_text())["steps"] == best
    assert f"that of step {best}, which the evaluations found best" in run.log
    kept = checkpoints.examine(run.checkpoints / f"checkpoint-{best}")
    assert isinstance(kept, checkpoints.Checkpoint)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def await_ends(pids: list[int]) -> None:
    """Return when none of them is there. They may be nobody's children here."""
    end = time.monotonic() + PATIENCE
    while left := [pid for pid in pids if b"run_trainer" in command_line(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def command_line(pid: int) -> bytes:
    """Empty for a zombie, and for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_two_processes_train_as_one_does(new_run: NewRun) -> None:
    """As on two GPUs, on the CPU: one of them is killed; later the first process alone is told to stop.

    Result: they end together, with one checkpoint of both; the losses are those of one process that
    accumulates twice as often.
    """
    options = {"lora_dropout": 0.0, "batch_size": 2, "max_steps": 30, "save_steps": 5, "learning_rate": 1e-3}
    one = new_run("one", **options, gradient_accumulation_steps=2)
    one.complete()
    two = new_run("two", **options, gpus=2)
    launcher = two.start()
    two.await_step(6)
    trainers = children(launcher.pid)
    assert len(trainers) == 2
    os.kill(trainers[1], signal.SIGKILL)
    assert two.wait() == 137, two.log
    await_ends(trainers)
    two.start()
    two.await_step(12)
    assert two.stop() == 75, two.log
    reached = two.steps
    assert reached < 30
    held = checkpoints.examine(two.checkpoints / f"checkpoint-{reached}")
    assert isinstance(held, checkpoints.Checkpoint)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in held.path.iterdir()}
    two.complete()
    losses = [loss for _, loss, _ in one.losses]
    assert [loss for _, loss, _ in two.losses] == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < 0.98 * losses[0]  # steps that change little would hide much


def test_a_dry_run_reports_and_leaves_nothing(
    new_run: NewRun, transformers_python: str, tmp_path: Path
) -> None:
    """With two bad rows, left out and then not."""
    data = tmp_path / "bad.jsonl"
    data.write_text((tmp_path / "chats.jsonl").read_text() + '{"messages": [{"role": "user"}]}\nnot JSON\n')
    run = new_run(dataset=str(data))
    done = []
    for skip in (True, False):
        told = json.dumps(run.settings | {"skip_bad_rows": skip})
        command = [transformers_python, TRAINER, "--dry-run", told]
        done.append(subprocess.run(command, capture_output=True, text=True, check=False))
    good, bad = done
    assert good.returncode == 0, good.stderr
    report = json.loads(good.stdout)
    assert (report["rows"], report["bad"], report["steps"], report["served_as"]) == (42, 2, 30, "adapter")
    assert 0 < report["tokens_trained"] < report["tokens"]
    assert report["checkpoint_bytes"] > report["result_bytes"] > 0
    assert "left out: bad.jsonl:41" in good.stderr
    assert not run.checkpoints.exists()
    assert bad.returncode == 65
    refused = json.loads(bad.stdout)
    assert "bad.jsonl:42" in "".join(refused["because"]), refused


EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1])
found.Reload()
print(json.dumps([[one.step, one.value] for name in sys.argv[2:] for one in found.Scalars(name)]))
"""


def test_tensorboard_gets_the_figures(new_run: NewRun, transformers_python: str) -> None:
    found = (
        "import importlib.util, json; print(json.dumps(importlib.util.find_spec('tensorboard') is not None))"
    )
    pythons = [transformers_python, os.environ.get("SAGECTL_TRL_PYTHON")]
    python = next((each for each in pythons if each and in_engine(each, found)), None)
    if python is None:
        pytest.skip("no interpreter has tensorboard; that of SAGECTL_TRL_PYTHON is looked at too")
    run = new_run(report_to=["tensorboard"], max_steps=4, save_steps=2, eval_split=0.2)
    run.python = python
    run.complete()
    told = in_engine(python, EVENTS, str(run.state / "tensorboard"), "train/loss", "eval/loss")
    losses = [[step, loss] for step, loss, _ in run.losses if loss is not None]
    evaluations = [[step, loss] for step, _, loss in run.losses if loss is not None]
    for (step, value), (wanted, loss) in zip(told, losses + evaluations, strict=True):
        assert step == wanted
        assert value == pytest.approx(loss, rel=1e-4)


def test_packed_rows_train_as_they_do_alone(new_run: NewRun) -> None:
    """All rows in one step, packed and not: the same loss, for packed sequences do not see each other."""
    options = {"batch_size": 40, "max_steps": 1, "lora_dropout": 0.0}
    alone = new_run("alone", **options)
    alone.complete()
    packed = new_run("packed", **options, packing=True, max_length=256)
    packed.complete()
    [(_, one, _)], [(_, other, _)] = alone.losses, packed.losses
    assert one == pytest.approx(other, rel=1e-5)


def test_ended_while_it_writes_the_result_it_writes_it_again(new_run: NewRun) -> None:
    """A new run of a completed job; all its steps are done; the earlier result is served meanwhile.

    Result: that one stays as it is until the new one takes its place; nothing is left beside it.
    """
    run = new_run(merge=True, max_steps=4)
    run.complete()
    earlier = run.weights
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        left = set(run.home.glob(".out.sagectl-*"))
        process = run.start(learning_rate=1e-3, max_steps=5)
        run.until(lambda left=left: bool(set(run.home.glob(".out.sagectl-*")) - left))
        process.send_signal(number)
        assert run.wait() == code
        assert run.weights == earlier
    run.complete(learning_rate=1e-3, max_steps=5)
    assert "this is a new one" in run.log
    assert run.weights != earlier
    assert run.steps == 5
    assert not list(run.home.glob(".out*"))
