"""fine-tune: what it sends, how it follows a job, and the dry run; and a job in status and list."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagectl.cli import job, main
from tests.integration.cli_daemon import FAILED, STOPPED, FakeDaemon, engine
from tests.integration.test_cli_terminal import ESCAPE, on_a_terminal

ROOT = Path(__file__).parents[2]
RUNNING = {
    **{"state": "active", "substate": "running", "desired": "running", "reason": "", "pid": 4242},
    **{"started_at": "2026-01-05T12:00:01Z", "uptime_seconds": 75.0},
}
COMPLETED = {**STOPPED, "substate": "completed", "mode": "run"}
Cli = Callable[..., int]
Out = pytest.CaptureFixture[str]


def progress(done: int, loss: float | str = 1.5) -> dict[str, Any]:
    details = {"phase": "training", "epoch": done / 2, "loss": loss, "learning_rate": 1e-4}
    details |= {"tokens_per_second": 1500.0}
    return {"done": done, "total": 8, "unit": "steps", "eta_seconds": 8.0 - done, "details": details}


def training(done: int, **more: Any) -> dict[str, Any]:
    return {**RUNNING, "mode": "run", "progress": progress(done, **more)}


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setattr(job, "LOOK", 0.01)
    monkeypatch.setattr(job, "PLAIN_EVERY", 0.0)
    daemon = FakeDaemon(tmp_path / "s", [engine("chat")])
    yield daemon
    daemon.close()


@pytest.fixture
def cli(daemon: FakeDaemon) -> Cli:
    return lambda *words: main.run(["--socket", daemon.path, *words])


WORDS = ("fine-tune", "--base-model", "Qwen/Qwen2.5-0.5B-Instruct", "--dataset", "d.jsonl", "--output", "out")


# --- the definition ------------------------------------------------------------------------------


def test_it_defines_a_job_with_paths_from_here_and_prints_the_id_alone(
    cli: Cli, daemon: FakeDaemon, capsys: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    words = ("fine-tune", "--base-model", "./base", "--dataset", "d", "--output", "../out", "--detach")
    given = ("--method", "qlora", "--lora-rank", "16", "--num-epochs", "1", "--max-steps", "9")
    more = ("--batch-size", "2", "--learning-rate", "2e-5", "--max-seq-length", "128", "--policy", "shared")
    assert cli(*words, *given, *more, "-o", "packing=true", "--python", "/envs/train/bin/python") == 0
    [body] = daemon.bodies
    name = body.pop("name")
    assert re.fullmatch(r"tune-[0-9a-f]{8}", name)
    assert capsys.readouterr().out == f"{name}\n"
    assert body == {
        **{"kind": "finetune", "model": str(tmp_path / "base"), "dataset": str(tmp_path / "d")},
        **{"output": str(tmp_path.parent / "out"), "method": "qlora", "lora_rank": 16, "num_epochs": 1.0},
        **{"max_steps": 9, "batch_size": 2, "learning_rate": 2e-5, "max_length": 128, "policy": "shared"},
        **{"packing": True, "python": "/envs/train/bin/python"},
    }


def test_it_waits_until_the_job_runs(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["define", "mine"] = [{**RUNNING, "mode": "run"}]
    assert cli(*WORDS, "--name", "mine") == 0
    captured = capsys.readouterr()
    assert captured.out == "mine\n"
    assert captured.err.startswith("mine: active (running), pid 4242")


def test_what_is_missing_is_named(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    assert cli("fine-tune", "--base-model", "x") == 2
    assert "Missing --dataset, --output." in capsys.readouterr().err
    assert cli(*WORDS, "--follow", "--detach") == 2
    assert daemon.bodies == []


def test_sages_spelling_starts_a_job_too(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["define", "engine-0a1b2c3d"] = [{**RUNNING, "mode": "run"}]
    words = ("engine", "start", "Qwen/Qwen2.5-0.5B-Instruct", "--engine-kind", "finetune")
    assert (
        cli(*words, "--dataset-path", "/d", "--output-dir", "/out", "--epochs", "1", "--lora-rank", "4") == 0
    )
    assert re.findall(r"engine-\w+", capsys.readouterr().out) == ["engine-0a1b2c3d"]
    [body] = daemon.bodies
    assert body == {
        **{"kind": "finetune", "model": "Qwen/Qwen2.5-0.5B-Instruct", "dataset": "/d", "output": "/out"},
        **{"num_epochs": 1.0, "lora_rank": 4},
    }
    daemon.logs["engine-0a1b2c3d"] = b"one\ntwo\nthree\n"
    assert cli("engine", "logs", "engine-0a1b2c3d", "--tail", "2") == 0
    assert capsys.readouterr().out == "two\nthree\n"


# --- following -----------------------------------------------------------------------------------


def test_follow_tells_how_far_it_is_and_ends_with_the_job(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["define", "mine"] = [training(0), *[training(2)] * 3, COMPLETED]
    assert cli(*WORDS, "--name", "mine", "--follow") == 0
    captured = capsys.readouterr()
    assert captured.out == "mine\n"
    *told, last = captured.err.splitlines()
    details = "epoch 1, loss 1.5, learning rate 0.0001, 1,500 tokens/s"
    assert f"mine: active (running): 25% step 2/8, 6s left, {details}" in told
    assert last == f"mine: inactive (completed): the result is in {os.path.abspath('out')}"


def test_a_job_that_fails_ends_it_with_1_reason_and_log(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.logs["mine"] = b"Traceback\nValueError: no\n"
    daemon.script["define", "mine"] = [training(0), training(2), {**FAILED, "mode": "run"}]
    assert cli(*WORDS, "--name", "mine", "--follow") == 1
    told = capsys.readouterr().err
    assert "mine: failed (exit-code): exited with code 1 while starting" in told
    assert "What to do: Check the model's name" in told
    assert told.rstrip().endswith("ValueError: no")


def test_a_job_that_is_stopped_ends_it_with_3(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    stopped = {**STOPPED, "mode": "run", "progress": progress(4)}
    daemon.script["define", "mine"] = [training(0), training(4), stopped]
    assert cli(*WORDS, "--name", "mine", "--follow") == 3
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "mine: inactive (stopped): 50% step 4/8; `sagectl start mine` goes on"


def test_an_earlier_job_is_followed_by_its_name(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.engines["mine"] = engine("mine", **training(2))
    daemon.script["stop", "mine"] = []
    daemon._pending["mine"] = [training(4), COMPLETED]
    assert cli("fine-tune", "--follow", "--name", "mine") == 0
    assert daemon.bodies == []
    assert cli("fine-tune", "--follow", "--name", "chat") == 1
    assert "chat is no job" in capsys.readouterr().err


def test_json_tells_the_engine_at_every_change(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["define", "mine"] = [training(0), *[training(2)] * 3, COMPLETED]
    assert cli("--json", *WORDS, "--name", "mine", "--follow") == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 2 in [one["progress"]["done"] for one in shown[:-1]]
    assert shown[-1]["substate"] == "completed"


def test_ctrl_c_ends_the_following_and_not_the_job(daemon: FakeDaemon) -> None:
    daemon.engines["mine"] = engine("mine", **training(2))
    command = [sys.executable, "-c", "from sagectl.cli.main import main; main()", "--socket", daemon.path]
    process = subprocess.Popen(
        [*command, "fine-tune", "--follow", "--name", "mine"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "step 2/8" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    told = process.stderr.read()
    assert process.wait(20) == 130
    assert "The job goes on" in told
    assert "`sagectl stop mine`" in told
    assert not any(asked.startswith("POST") for asked in daemon.requests)


def test_on_a_terminal_it_draws_a_bar_and_a_sparkline(daemon: FakeDaemon) -> None:
    daemon.engines["mine"] = engine("mine", **training(1))
    # Twice each, because the fake takes a step when its events are followed, too.
    told = [training(2 + n, loss=loss) for n, loss in enumerate((2.0, 1.5, 1.0, 0.5)) for _ in range(2)]
    daemon._pending["mine"] = [*told, COMPLETED]
    written = on_a_terminal(daemon, "fine-tune", "--follow", "--name", "mine", columns=70)
    drawn, _, rest = written.rpartition("\x1b[J")
    plain = ESCAPE.sub("", drawn)
    assert re.search(r"█+░+ 62% step 5/8, 3s left", plain)
    assert re.search(r"loss 2 [▁▂▃▄▅▆▇█]{4} 0.5", plain)
    assert all(len(line) < 70 for line in plain.splitlines())
    assert re.fullmatch(r"loss 2 [▁▂▃▄▅▆▇█]{4} 0.5\nmine: inactive \(completed\)\n", ESCAPE.sub("", rest))


def test_the_sparkline_begins_with_what_was_before(daemon: FakeDaemon) -> None:
    daemon.engines["mine"] = engine("mine", **training(6))
    daemon.history["mine"] = [{"step": n, "at": None, "loss": 9.0 - n} for n in range(1, 6)]
    daemon._pending["mine"] = [training(7, loss=0.25), training(7, loss=0.25), COMPLETED]
    plain = ESCAPE.sub("", on_a_terminal(daemon, "fine-tune", "--follow", "--name", "mine", columns=70))
    assert re.search(r"loss 8 █[▁▂▃▄▅▆▇█]{5} 0.25", plain)


def test_progress_that_comes_by_itself_is_shown_without_asking(daemon: FakeDaemon) -> None:
    daemon.engines["mine"] = engine("mine", **training(1, loss=8.0))
    daemon.told["mine"] = [*(training(n, loss=9.0 - n) for n in range(1, 8)), {**COMPLETED, "progress": None}]
    plain = ESCAPE.sub("", on_a_terminal(daemon, "fine-tune", "--follow", "--name", "mine", columns=70))
    assert plain.endswith("mine: inactive (completed)\n")
    read = [asked for asked in daemon.requests if asked == "GET engines/id-mine"]
    assert len(read) <= 3, "at the begin, at the end, and once more where it was at its end already"
    assert sum("progress" in asked for asked in daemon.requests) <= 2


# --- a job in the listings -----------------------------------------------------------------------


def test_list_and_status_show_how_far_it_is(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.engines["mine"] = engine("mine", engine_kind="finetune", **training(2))
    for words in (("list",), ("engine", "list"), ("status",)):
        assert cli(*words) == 0
        out = capsys.readouterr().out
        assert "PROGRESS" in out
        assert "25% step 2/8, 6s left" in out
    assert cli("status", "mine") == 0
    out = capsys.readouterr().out
    assert "Progress: ██████░░░░░░░░░░░░░░░░░░ 25% step 2/8, 6s left\n" in out
    assert "epoch 1, loss 1.5, learning rate 0.0001, 1,500 tokens/s\n" in out
    assert "Loss:" not in out
    daemon.history["mine"] = [{"step": n, "at": None, "loss": 3.0 - n} for n in range(3)]
    assert cli("status", "mine") == 0
    assert "Loss: 3 █▅▁ 1\n" in capsys.readouterr().out
