"""Fine-tuning under a real daemon: start, progress, stop, resume, complete; and what dies meanwhile."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.finetuning import PATIENCE, history, toml, write_chats
from tests.acceptance.harness import Daemon, kill
from tests.acceptance.listening import FollowedLog

pytestmark = pytest.mark.heavy

STEPS = 60


class Job:
    """A job named `tune` of a daemon, and its directories."""

    def __init__(self, daemon: Daemon, python: str, model: Path, **options: Any) -> None:
        self.daemon = daemon
        chats = write_chats(daemon.home / "data.jsonl")
        self.state = daemon.home / "state" / "engines" / "tune"
        self.checkpoints = daemon.home / "models" / "finetuned" / "tune"
        self.output = daemon.home / "models" / "result"
        keys = {
            **{"model": str(model), "dataset": str(chats), "output": "models/result", "python": python},
            **{"use_gpu": False, "threads": 1, "max_length": 64, "save_steps": 10, "max_steps": STEPS},
            **{"restart": "{ delay = 0 }", "env": '{ HF_HUB_OFFLINE = "1" }'},
        }
        daemon.configure(toml("tune", keys | options))

    @property
    def steps(self) -> list[int]:
        """Of the history."""
        return [entry["step"] for entry in history(self.state) if "loss" in entry]

    def await_step(self, step: int) -> None:
        """The history is a file of the job's own: nothing tells of it."""
        end = time.monotonic() + PATIENCE
        while not self.steps or self.steps[-1] < step:
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    @property
    def log(self) -> str:
        """What the trainers wrote."""
        return b"".join(self.daemon.client.logs("tune")).decode()

    def start(self, *words: str) -> None:
        """`sagectl start tune`, which returns when it runs."""
        answer = self.daemon.cli("start", "tune", *words)
        assert answer.returncode == 0, answer.stderr


@pytest.fixture
def new_job(daemon: Daemon, transformers_python: str, starter_model: Path) -> Callable[..., Job]:
    """Makes the job of this test's daemon."""
    return lambda **options: Job(daemon, transformers_python, starter_model, **options)


def test_a_job_is_started_followed_stopped_resumed_and_completed(new_job: Callable[..., Job]) -> None:
    """Start, progress in the API and in `status`, `stop` in the middle, `start` again, `start --again`.

    Result: stopped is inactive (stopped), with a checkpoint at that step; each step is done once; completed
    is inactive (completed) with the result in its place; --again is a run of its own.
    """
    job = new_job()
    daemon = job.daemon
    daemon.start()
    job.start()
    job.await_step(15)
    shown = daemon.show("tune")
    assert shown["substate"] == "running"
    progress = shown["progress"] or {}
    assert (progress["total"], progress["unit"]) == (STEPS, "steps")
    assert progress["done"] >= 15
    assert progress["eta_seconds"] > 0
    details = progress["details"]
    assert details["loss"] > 0
    assert details["tokens_per_second"] > 0
    assert details["memory_gb"] > 0
    assert (details["phase"], details["batch_size"]) == ("training", 4)
    stopped = daemon.cli("stop", "tune")
    assert stopped.returncode == 0, stopped.stderr
    shown = daemon.show("tune")
    assert (shown["state"], shown["substate"], shown["last_exit_code"]) == ("inactive", "stopped", 75)
    reached = job.steps[-1]
    assert (job.checkpoints / f"checkpoint-{reached}" / "manifest.json").exists()
    past = daemon.client.history("tune")
    assert [step["step"] for step in past] == job.steps
    assert all(step["loss"] and step["learning_rate"] is not None and step["at"] for step in past)
    assert "Loss: " in daemon.cli("status", "tune").stdout
    job.start()
    shown = daemon.until_state("tune", "completed", timeout=PATIENCE)
    assert (shown["state"], shown["last_exit_code"], shown["restart_count"]) == ("inactive", 0, 0)
    assert job.steps == list(range(1, STEPS + 1))
    assert f"going on after step {reached}" in job.log
    card = json.loads((job.output / "sagectl.json").read_text())
    assert (card["job"], card["steps"]) == ("tune", STEPS)
    refused = daemon.cli("start", "tune")
    assert refused.returncode == 1
    job.start("--again")
    daemon.until_state("tune", "completed", timeout=PATIENCE)
    assert "this is a new one" in job.log
    assert job.steps == list(range(1, STEPS + 1))


def test_the_job_outlives_the_daemon_and_its_history_is_whole(new_job: Callable[..., Job]) -> None:
    """SIGKILL of the daemon while it trains; a new daemon; later SIGKILL of the trainer; then of both.

    Result: the process goes on and is adopted with its progress; killed, it goes on from its newest
    checkpoint; each step is in the history once.
    """
    job = new_job()
    daemon = job.daemon
    daemon.start()
    job.start()
    job.await_step(5)
    pid = daemon.show("tune")["pid"] or 0
    daemon.kill()
    job.await_step(job.steps[-1] + 5)
    daemon.start()
    shown = daemon.show("tune")
    assert (shown["pid"], shown["substate"]) == (pid, "running")
    assert (shown["progress"] or {})["done"] >= 10
    assert [step["step"] for step in daemon.client.history("tune")[:10]] == list(range(1, 11))
    job.await_step(23)
    kill(pid)
    daemon.until("tune", lambda engine: engine["pid"] not in (None, pid), "another process", PATIENCE)
    FollowedLog(daemon.client, "tune").expect(b"going on after step ", PATIENCE)
    resumed = int(re.findall(r"going on after step (\d+)", job.log)[-1])
    assert resumed >= 20, "no more is lost than what came after the last save"
    job.await_step(resumed + 12)
    pid = daemon.show("tune")["pid"] or 0
    daemon.kill()
    kill(pid)
    daemon.start()
    shown = daemon.until_state("tune", "completed", timeout=PATIENCE)
    assert shown["restart_count"] == 2
    assert job.steps == list(range(1, STEPS + 1))


def test_shutting_the_daemon_down_saves_and_the_next_one_goes_on(new_job: Callable[..., Job]) -> None:
    """SIGTERM of the daemon while the job trains; another daemon.

    Result: the job ended with a checkpoint, and goes on unasked, for nobody stopped it.
    """
    job = new_job()
    daemon = job.daemon
    daemon.start()
    job.start()
    job.await_step(12)
    assert daemon.terminate() == 0
    reached = job.steps[-1]
    assert (job.checkpoints / f"checkpoint-{reached}" / "manifest.json").exists()
    daemon.start()
    daemon.until_state("tune", "completed", timeout=PATIENCE)
    assert job.steps == list(range(1, STEPS + 1))


def test_a_refusal_is_told_in_its_own_words_and_not_tried_again(new_job: Callable[..., Job]) -> None:
    """The checkpoints of a stopped job no longer fit its options; then the output is somebody else's.

    Result: failed (exit-code) with code 65 at once, reason and remedy in `status`; nothing is touched.
    """
    job = new_job()
    daemon = job.daemon
    daemon.start()
    job.start()
    job.await_step(3)
    assert daemon.cli("stop", "tune").returncode == 0
    definition = daemon.etc / "sagectl.toml"
    definition.write_text(definition.read_text() + "lora_rank = 16\n")
    assert daemon.cli("reload").returncode == 0
    daemon.cli("start", "tune")
    failed = daemon.until_state("tune", "failed", timeout=PATIENCE)
    assert (failed["substate"], failed["last_exit_code"], failed["restart_count"]) == ("exit-code", 65, 0)
    assert (
        "lora_rank differs: it was made with 8, the job now says 16" in (failed["diagnosis"] or {})["summary"]
    )
    assert "to begin anew" in daemon.cli("status", "tune").stdout
    definition.write_text(definition.read_text().replace("lora_rank = 16\n", ""))
    assert daemon.cli("reload").returncode == 0
    job.output.mkdir()
    (job.output / "precious").write_text("data")
    daemon.cli("start", "tune")
    failed = daemon.until_state("tune", "failed", timeout=PATIENCE)
    assert "holds files that no job wrote" in (failed["diagnosis"] or {})["summary"]
    assert [path.name for path in job.output.iterdir()] == ["precious"]


def test_a_stop_is_waited_for_longer_than_the_timeout_while_a_step_is_at_work(
    new_job: Callable[..., Job],
) -> None:
    """A step takes seconds, `stop.timeout` is a fraction of one.

    Result: the trainer asks for more time, and its checkpoint is whole; it is not killed.
    """
    job = new_job(stop="{ timeout = 0.1 }", batch_size=16, max_length=768)
    write_chats(job.daemon.home / "data.jsonl", rows=64, padding=700)
    daemon = job.daemon
    daemon.start()
    job.start()
    job.await_step(1)
    before = next(event["id"] for event in daemon.client.events(engine="tune", tail=1))
    assert daemon.cli("stop", "tune").returncode == 0
    events = [event for event in daemon.client.events(engine="tune") if (event["id"] or 0) > (before or 0)]
    asked, ended = (
        next(datetime.fromisoformat(event["at"]) for event in events if event["state"] == state)
        for state in ("deactivating", "inactive")
    )
    assert (ended - asked).total_seconds() > 0.1
    shown = daemon.show("tune")
    assert (shown["substate"], shown["last_exit_code"]) == ("stopped", 75)
    assert not any(event["kind"] == "stop-timeout" for event in daemon.events)
    assert (job.checkpoints / f"checkpoint-{job.steps[-1]}" / "manifest.json").exists()
