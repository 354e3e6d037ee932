"""The trainer's parts that need no torch: checkpoints, figures, records, agreement, batches, a stop."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl_finetune.data import Row
from sagectl_finetune.trainer import (
    agreement,
    checkpoints,
    exhausted,
    files,
    main,
    notify,
    ranks,
    result,
    speeds,
)
from sagectl_finetune.trainer.meter import Meter, best_of, patience_is_over, steps_of
from sagectl_finetune.trainer.records import Records
from sagectl_finetune.trainer.rows import padded
from sagectl_finetune.trainer.settings import Refused, Settings, parse
from sagectl_finetune.trainer.stopping import Stop
from sagectl_finetune.trainer.watch import Watch

FILES = {
    **{"adapter_model.safetensors": b"weights", "optimizer.pt": b"optimizer", "scheduler.pt": b"scheduler"},
    **{"rng_state.pth": b"random", "trainer_state.json": b"{}", "deeper/file": b"x"},
}


def a_checkpoint(directory: Path, step: int, *, seal: bool = True, **made_with: Any) -> Path:
    path = directory / f"checkpoint-{step}"
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    if seal:
        checkpoints.seal(path, step, made_with)
    return path


def a_job(tmp_path: Path, **changes: Any) -> Settings:
    places = {name: str(tmp_path / name) for name in ("dataset", "output", "checkpoints", "state")}
    (tmp_path / "state").mkdir(exist_ok=True)
    return Settings(**({"job": "tune", "model": "/base"} | places | changes))


# --- checkpoints -----------------------------------------------------------------------------------


def test_a_sealed_checkpoint_is_valid_and_says_what_it_belongs_to(tmp_path: Path) -> None:
    path = a_checkpoint(tmp_path, 7, seed=1)
    assert checkpoints.examine(path) == checkpoints.Checkpoint(path, 7, {"seed": 1})


@pytest.mark.parametrize("name", [*FILES, checkpoints.MANIFEST])
def test_a_missing_cut_or_changed_file_makes_it_invalid(tmp_path: Path, name: str) -> None:
    for number, harm in enumerate(
        (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-2]), _flip)
    ):
        path = a_checkpoint(tmp_path / str(number), 7)
        harm(path / name)
        found = checkpoints.examine(path)
        assert isinstance(found, str), found
        assert name in found or "not written to its end" in found


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"]
)
def test_a_checkpoint_sealed_without_what_a_resumption_needs_is_invalid(tmp_path: Path, name: str) -> None:
    path = a_checkpoint(tmp_path, 7, seal=False)
    (path / name).unlink()
    checkpoints.seal(path, 7, {})
    found = checkpoints.examine(path)
    assert isinstance(found, str)
    assert found.startswith("it has no ")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": [], "step": 7, "made_with": {}}', "\0", "null"])
def test_a_manifest_that_makes_no_sense_makes_it_invalid(tmp_path: Path, text: str) -> None:
    path = a_checkpoint(tmp_path, 7)
    (path / checkpoints.MANIFEST).write_text(text)
    assert isinstance(checkpoints.examine(path), str)


def test_a_renamed_checkpoint_is_invalid(tmp_path: Path) -> None:
    path = a_checkpoint(tmp_path, 7).rename(tmp_path / "checkpoint-9")
    assert "another checkpoint" in str(checkpoints.examine(path))


def test_the_newest_valid_one_is_chosen_by_number_and_others_are_said(tmp_path: Path) -> None:
    for step in (9, 10, 100, 101):
        a_checkpoint(tmp_path, step, seal=step != 101)
    (tmp_path / "checkpoint-100" / "optimizer.pt").write_bytes(b"OPTIMIZER")
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-200").write_text("a file")
    said: list[str] = []
    found = checkpoints.newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 10
    assert [line.split("/")[-1] for line in said] == [
        "checkpoint-101 is passed over: it was not written to its end",
        "checkpoint-100 is passed over: its optimizer.pt is damaged",
    ]
    assert checkpoints.newest(tmp_path / "nowhere", said.append) is None


def test_older_ones_are_removed_but_the_best_and_the_unfinished_and_later_ones_go(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 9, 20):
        a_checkpoint(tmp_path, step, seal=step != 9)
    kept = checkpoints.prune(tmp_path, 2, newest=8, best=2)
    assert sorted(checkpoints.step_of(path) or 0 for path in kept) == [2, 6, 8]
    assert sorted(step for step, _ in checkpoints.listed(tmp_path)) == [2, 6, 8]


# --- figures ---------------------------------------------------------------------------------------


def test_the_time_left_is_by_the_steps_of_this_session() -> None:
    meter = Meter(total=100, first=80, started=1000.0)
    assert meter.eta(80, 1000.0) is None
    assert meter.eta(85, 1010.0) == 30.0  # not 1010 / 85 for each
    assert meter.eta(100, 1040.0) == 0.0


def test_the_speed_is_that_of_the_last_steps() -> None:
    meter = Meter(total=100, first=0, started=0.0)
    assert meter.speed() is None
    for step in range(30):
        meter.count(100 if step < 5 else 200, 10, float(step))
    assert meter.speed() == 200.0
    assert meter.trained_tokens == 300


def test_a_loss_that_is_no_number_or_jumps_is_an_event() -> None:
    meter = Meter(total=100, first=0, started=0.0)
    assert [meter.event(loss) for loss in (2.0, 2.0, 2.0, 2.5)] == [None] * 4
    assert meter.event(30.0) == "the loss jumped to 30, its mean was 2.125"
    assert meter.event(math.nan) == "the loss is NaN"
    assert meter.event(math.inf) == "the loss is infinite"


def test_patience_and_the_best() -> None:
    assert not patience_is_over([3, 2, 1], 2)
    assert not patience_is_over([3, 2], 2)
    assert patience_is_over([3, 2, 2, 2], 2)
    assert best_of([(1, 3.0), (2, 1.0), (3, math.nan), (4, 1.0)]) == 2
    assert best_of([]) is None


@given(
    st.integers(1, 500),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(1, 8),
    st.floats(0.1, 5, allow_nan=False),
)
def test_half_the_batch_and_twice_the_accumulation_are_as_many_steps(
    rows: int, batch: int, accumulation: int, epochs: float
) -> None:
    whole = steps_of(rows, batch, accumulation, epochs, None)
    assert whole >= 1
    if batch > 1:
        assert steps_of(rows, batch // 2, accumulation * 2, epochs, None) == whole
    assert steps_of(rows, batch, accumulation, epochs, 7) == 7


# --- records ---------------------------------------------------------------------------------------


def test_progress_is_whole_json_whatever_the_figures(tmp_path: Path) -> None:
    records = Records(tmp_path / "progress.json", tmp_path / "history.jsonl")
    records.progress(1, 10, 2.345, loss=math.nan, phase="training")
    records.progress(2, 10, None, phase="stopped")
    found = json.loads((tmp_path / "progress.json").read_text())
    assert (found["done"], found["total"], found["eta_seconds"]) == (2, 10, None)
    assert found["details"] == {"loss": "nan", "phase": "stopped"}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_the_history_loses_what_is_done_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "progress.json", tmp_path / "history.jsonl")
    assert records.reset(0) == {}
    for step in range(1, 6):
        records.history(step, loss=1 / step, trained_tokens=10 * step)
    records.history(3, eval_loss=0.5)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert records.reset(3)["trained_tokens"] == 30
    found = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(entry["step"], "loss" in entry) for entry in found] == [
        (1, True),
        (2, True),
        (3, True),
        (3, False),
    ]
    assert records.reset(0) == {}
    assert (tmp_path / "history.jsonl").read_text() == ""


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    records = Records(tmp_path / "progress.json", tmp_path / "history.jsonl", active=False)
    records.reset(0)
    records.progress(1, 2, None)
    records.history(1, loss=1.0)
    assert list(tmp_path.iterdir()) == []


# --- what belongs together -------------------------------------------------------------------------


def made_with(settings: Settings, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "data": {"tokens": "t", "data": "d", "tokenizer": "k", "settings": "s"},
        **{"base": "b", "total": 10, "versions": {"torch": "2.13.0"}},
    }
    return agreement.made_with(settings, **(values | changes))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"batch_size": 8}, "rows_per_step"),
        ({"lora_rank": 4}, "lora_rank"),
        ({"target_modules": ("q_proj",)}, "target_modules"),
        ({"gpus": 2}, "gpus"),
        ({"eval_split": 0.5}, "eval_split"),
    ],
)
def test_another_option_is_named(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    settings = a_job(tmp_path)
    before = json.loads(json.dumps(made_with(settings)))
    assert agreement.difference(before, made_with(settings)) is None
    found = agreement.difference(before, made_with(replace(settings, **change)))
    assert found is not None
    assert found[0] == what


def test_other_data_is_named_and_the_same_tokens_of_another_file_are_the_same(tmp_path: Path) -> None:
    settings = a_job(tmp_path)
    before = made_with(settings)
    spaces = {"tokens": "t", "data": "D", "tokenizer": "k", "settings": "s"}
    assert agreement.difference(before, made_with(settings, data=spaces)) is None
    found = agreement.difference(before, made_with(settings, data={**spaces, "tokens": "T"}))
    assert found == ("the data", "the data is not what it was made with")
    assert agreement.difference(before, made_with(settings, base="B")) is not None


def test_what_may_differ(tmp_path: Path) -> None:
    """Half the batch with twice the accumulation, other checkpoints, other reports."""
    settings = a_job(tmp_path)
    other = replace(settings, batch_size=2, gradient_accumulation_steps=2, save_steps=1, report_to=("wandb",))
    now = made_with(other, versions={"torch": "2.14.0"})
    assert agreement.difference(made_with(settings), now) is None
    assert agreement.other_versions(made_with(settings), now) == ["torch 2.13.0 → 2.14.0"]


def test_settings_are_read_strictly(tmp_path: Path) -> None:
    told = {
        "job": "t",
        "model": "org/name@v1",
        "dataset": "d",
        "output": "o",
        "checkpoints": "c",
        "state": "s",
    }
    settings = parse(json.dumps({**told, "target_modules": ["q_proj"]}))
    assert settings.target_modules == ("q_proj",)
    assert settings.base == ("org/name", "v1")
    assert parse(json.dumps({**told, "model": "/a/b@c"})).base == ("/a/b@c", None)
    with pytest.raises(ValueError, match="unknown keys: batchsize"):
        parse(json.dumps({**told, "batchsize": 3}))


# --- memory that ran out ---------------------------------------------------------------------------


def test_the_batch_is_halved_down_to_one_row_and_the_rows_of_a_step_stay(tmp_path: Path) -> None:
    seen = []
    settings: Settings | None = a_job(tmp_path, batch_size=12)
    while settings is not None:
        seen.append((settings.batch_size, settings.gradient_accumulation_steps))
        settings = exhausted.halved(settings)
    assert seen == [(12, 1), (6, 2), (3, 4), (1, 12)]


def test_what_was_found_to_fit_is_used_for_these_options_only(tmp_path: Path) -> None:
    asked = a_job(tmp_path, batch_size=8)
    assert exhausted.adjusted(asked) == asked
    smaller = exhausted.halved(asked)
    assert smaller is not None
    exhausted.note(asked, smaller)
    assert exhausted.adjusted(asked) == smaller
    other = replace(asked, batch_size=4)
    assert exhausted.adjusted(other) == other


@pytest.mark.parametrize("text", ["", "[]", '{"asked": {"batch_size": 4, "gradient_accumulation_steps": 1}}'])
def test_a_note_that_makes_no_sense_is_not_used(tmp_path: Path, text: str) -> None:
    asked = a_job(tmp_path)
    asked.adjusted_file.write_text(text)
    assert exhausted.adjusted(asked) == asked


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


def test_memory_is_told_from_other_errors() -> None:
    host = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you …"
    )
    wrapped = RuntimeError("evaluation failed")
    wrapped.__cause__ = MemoryError()
    for error in (MemoryError(), OutOfMemoryError("CUDA out of memory"), host, wrapped):
        assert exhausted.is_memory(error)
    for other in (RuntimeError("shapes do not match"), ValueError("out of memory"), OSError(12, "x")):
        assert not exhausted.is_memory(other)


# --- rows ------------------------------------------------------------------------------------------


def test_rows_are_padded_after_their_tokens_and_without_a_mask() -> None:
    rows = [
        Row(input_ids=[5, 6, 7], labels=[-100, 6, 7], position_ids=[0, 1, 2], seq_lengths=[3]),
        Row(input_ids=[8, 9], labels=[8, 9], position_ids=[0, 1], seq_lengths=[2]),
    ]
    assert padded(rows, 0, 4, packed=False) == {
        "input_ids": [[5, 6, 7, 0], [8, 9, 0, 0]],
        "labels": [[-100, 6, 7, -100], [-100, 9, -100, -100]],
        "lengths": [3, 2],
    }


def test_packed_sequences_do_not_foretell_each_other() -> None:
    row = Row(input_ids=[1, 2, 3, 4], labels=[1, 2, 3, 4], position_ids=[0, 1, 0, 1], seq_lengths=[2, 2])
    found = padded([row], 0, 3, packed=True)
    assert found["labels"] == [[-100, 2, -100, 4, -100, -100]]
    assert found["position_ids"] == [[0, 1, 0, 1, 2, 3]]


# --- files, a stop, several processes --------------------------------------------------------------


def test_two_directories_change_places_at_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
        (path / path.name).touch()
    assert files.exchange(one, other)
    assert [path.name for path in other.iterdir()] == ["one"]
    assert not files.exchange(one, tmp_path / "nowhere")


STOP = """
import sys, time
from pathlib import Path
from sagectl_finetune.trainer.stopping import Stop
from sagectl_finetune.trainer.watch import Watch
stop = Stop(Path(sys.argv[1]))
stop.install()
stop.enter(sys.argv[2])
print("ready", flush=True)
while not stop.requested:
    time.sleep(0.01)
stop.enter("idle")
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("phase", "words"), [("idle", "nothing to save"), ("training", "saving a checkpoint")]
)
def test_a_signal_ends_what_is_idle_and_is_a_flag_for_what_trains(
    tmp_path: Path, phase: str, words: str
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, "-c", STOP, str(tmp_path), phase],
            env={**os.environ, "NOTIFY_SOCKET": str(address), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 75
        assert words in said
        if phase == "training":
            assert listener.recv(1000) == b"EXTEND_TIMEOUT_USEC=60000000"


def test_a_step_that_does_not_end_is_told_once() -> None:
    told: list[float] = []
    came = threading.Event()

    def stalled(seconds: float) -> None:
        told.append(seconds)
        came.set()

    watch = Watch(stalled, least=0.05)
    watch.start()
    assert came.wait(20)
    watch.sign()
    watch.end()
    assert len(told) == 1
    assert told[0] > 0.05


# --- where a start begins --------------------------------------------------------------------------


def test_a_start_goes_on_from_its_own_checkpoint_before_the_one_that_is_named(tmp_path: Path) -> None:
    other = a_checkpoint(tmp_path / "other", 50)
    settings = a_job(tmp_path, resume_from_checkpoint=str(other))
    begin = main._begin(settings)
    assert begin is not None
    assert begin.step == 50
    a_checkpoint(settings.directory, 3)
    begin = main._begin(settings)
    assert begin is not None
    assert begin.step == 3
    assert main._begin(replace(settings, resume_from_checkpoint=False)) is None
    assert checkpoints.listed(settings.directory) == []
    assert main._begin(replace(settings, resume_from_checkpoint=True)) is None
    (other / "optimizer.pt").unlink()
    with pytest.raises(Refused, match=r"its optimizer\.pt is missing"):
        main._begin(settings)


def test_a_complete_run_makes_room_unless_a_stop_came_at_its_end(tmp_path: Path) -> None:
    settings = a_job(tmp_path)
    assert not main._was_complete(settings)
    a_checkpoint(settings.directory, 3)
    Path(settings.output).mkdir()
    (Path(settings.output) / "sagectl.json").write_text("{}")
    settings.done_file.write_text('{"stop_asked": true}')
    assert main._was_complete(settings)
    assert len(checkpoints.listed(settings.directory)) == 1
    assert not main._was_complete(settings)  # started again, it begins anew
    assert checkpoints.listed(settings.directory) == []
    assert not settings.done_file.exists()


def test_a_place_for_the_result_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    settings = a_job(tmp_path)
    result.check(settings)
    output = Path(settings.output)
    output.mkdir()
    result.check(settings)
    (output / "precious").touch()
    with pytest.raises(Refused, match="no job wrote"):
        result.check(settings)
    (output / "sagectl.json").touch()
    result.check(settings)
    with pytest.raises(Refused, match="cannot be made"):
        result.check(replace(settings, output="/proc/1/here/there"))


def test_a_place_where_the_result_could_not_be_put_is_refused_before_the_training(tmp_path: Path) -> None:
    settings = a_job(tmp_path)
    with pytest.raises(Refused, match=r"nothing can be made beside .*File name too long"):
        result.check(replace(settings, output=str(tmp_path / ("n" * 250))))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(Refused, match="is a link to itself"):
        result.check(replace(settings, output=str(tmp_path / "loop")))
    with pytest.raises(Refused, match="is a mount point"):
        result.check(replace(settings, output="/proc"))


@pytest.mark.parametrize("name", ["model", "dataset", "checkpoints"])
def test_a_result_that_would_replace_what_the_job_reads_is_refused(tmp_path: Path, name: str) -> None:
    """An earlier result lies in `place`, so that it is a job's to replace; a link leads there, too."""
    place = tmp_path / "place"
    (place / "deeper").mkdir(parents=True)
    (place / "sagectl.json").touch()
    (tmp_path / "link").symlink_to(place)
    for below in ("place", "place/deeper", "link/deeper"):
        with pytest.raises(Refused, match="is where the"):
            result.check(a_job(tmp_path, output=str(place), **{name: str(tmp_path / below)}))


def test_a_result_among_the_data_is_refused(tmp_path: Path) -> None:
    """The next run would read its files as data."""
    settings = a_job(tmp_path)
    Path(settings.dataset).mkdir()
    with pytest.raises(Refused, match="all files there are the data"):
        result.check(replace(settings, output=f"{settings.dataset}/out"))


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_the_result_is_put_where_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    class Tokenizer:
        def save_pretrained(self, place: Path) -> None:
            (place / "tokenizer.json").touch()

    disk = tmp_path / "disk"
    disk.mkdir()
    other = disk / ".other.sagectl-1"  # another job's, of which `*` must not remove anything
    other.mkdir()
    target = disk / "*"
    if there:
        target.mkdir()
    link = tmp_path / "output"
    link.symlink_to(target)
    settings = a_job(tmp_path, output=str(link))
    result.check(settings)
    monkeypatch.setattr(result, "_save", lambda settings, trained, place: (place / "model").touch())
    result.write(settings, None, Tokenizer(), {})
    assert link.is_symlink()
    assert sorted(os.listdir(target)) == ["model", "sagectl.json", "tokenizer.json"]
    assert sorted(os.listdir(disk)) == ["*", ".other.sagectl-1"]


def test_nobody_who_listens_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nowhere"))
    notify.status("training")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.extend(1)


def test_a_stop_before_a_phase_ends_it_there(tmp_path: Path) -> None:
    left: list[int] = []
    stop = Stop(tmp_path, leave=left.append)
    stop.requested = True
    stop.enter("training")
    assert left == []
    stop.enter("idle")
    assert left == [75]


def test_each_process_is_told_its_rank_and_where_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = checkpoints.Checkpoint(tmp_path, 7, {"seed": 1})
    found = ranks.variables(1, 2, 4000, begin)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == ("1", "1", "2")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("127.0.0.1", "4000")
    assert not ranks.is_one()
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_one()
    assert not ranks.is_first()
    assert ranks.given() == begin


# --- speeds ----------------------------------------------------------------------------------------


def noted(tmp_path: Path, job: str, tokens: int = 1000, device: str = "cpu", **settings: Any) -> Settings:
    """A job that completed in ten seconds, and what it was."""
    one = a_job(tmp_path, job=job, checkpoints=str(tmp_path / "finetuned" / job), **settings)
    one.directory.mkdir(parents=True, exist_ok=True)
    speeds.note(one, "base", device, tokens=tokens, steps=9, total=9, seconds=10.0)
    return one


def test_time_is_told_by_the_job_that_is_most_like_it(tmp_path: Path) -> None:
    like = noted(tmp_path, "like", 2000, batch_size=8)
    noted(tmp_path, "newer", 500, batch_size=2, max_length=64)
    asked = replace(like, job="new", checkpoints=str(tmp_path / "finetuned" / "new"), packing=True)
    found = speeds.expected(asked, "base", 6000)
    assert found is not None
    assert (found["job"], found["seconds"], found["tokens_per_second"]) == ("like", 30.0, 200.0)
    assert found["differs"] == {"packing": False}


def test_what_says_nothing_of_a_job_is_not_taken(tmp_path: Path) -> None:
    one = noted(tmp_path, "one")
    assert speeds.expected(one, "base", 1) is not None
    for other in (
        {"method": "full"},
        {"stored": "nf4"},
        {"gpus": 2},
        {"device": "cuda"},
        {"checkpoints": str(tmp_path / "elsewhere" / "one")},
    ):
        assert speeds.expected(replace(one, **other), "base", 1) is None
    assert speeds.expected(one, "another base", 1) is None
    found = json.loads((one.directory / speeds.FILE).read_text())
    for broken in ("", "[]", "{", json.dumps(found | {"tokens_per_second": 0, "machine": "m"}), "null"):
        (one.directory / speeds.FILE).write_text(broken)
        assert speeds.expected(one, "base", 1) is None


def test_the_speed_of_a_gpu_is_none_of_the_cpus(tmp_path: Path) -> None:
    one = noted(tmp_path, "one", device="NVIDIA H200")
    assert speeds.expected(replace(one, device="cpu"), "base", 1) is None
    assert speeds.expected(replace(one, device="cuda"), "base", 1) is not None


def test_a_session_that_did_too_little_leaves_no_speed(tmp_path: Path) -> None:
    one = a_job(tmp_path)
    one.directory.mkdir()
    for steps, total, tokens in ((4, 9, 10), (0, 3, 10), (9, 9, 0)):
        speeds.note(one, "base", "cpu", tokens=tokens, steps=steps, total=total, seconds=1.0)
    assert not (one.directory / speeds.FILE).exists()
    speeds.note(one, "base", "cpu", tokens=10, steps=3, total=3, seconds=1.0)
    assert (one.directory / speeds.FILE).exists()


RANKS = """
import os, signal, sys, time
from pathlib import Path
from sagectl_finetune.trainer import ranks
from sagectl_finetune.trainer.stopping import Stop
if ranks.is_one():
    ranks.tie()
    code = int(sys.argv[1])
    if not ranks.is_first():
        signal.pause()  # waits for the other
    os._exit(code)
ranks.LEAVE = 1
sys.exit(ranks.run(2, None, Stop(Path("/nowhere"))))
"""


@pytest.mark.parametrize("code", [75, 1])
def test_the_processes_end_when_one_of_them_does(tmp_path: Path, code: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, str(program), str(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert done.returncode == code


def test_they_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    waits = "print(os.getpid(), flush=True); signal.pause()"
    program.write_text(RANKS.replace("code = int(sys.argv[1])", waits))
    launcher = subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    assert launcher.stdout is not None
    pids = [int(launcher.stdout.readline()) for _ in range(2)]
    launcher.kill()
    assert launcher.wait(20) == -signal.SIGKILL
    assert launcher.stdout.read() == b""  # its end: whoever could still write there is gone
    assert len(set(pids)) == 2
