"""Shell completion: the scripts, and the words that they are answered with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagectl.cli import main
from tests.integration.cli_daemon import READY, FakeDaemon, engine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    engines = [
        engine("chat", **READY),
        engine("rerank@1", group="rerank"),
        engine("rerank@2", group="rerank"),
    ]
    daemon = FakeDaemon(tmp_path / "s", engines)
    yield daemon
    daemon.close()


def complete(socket: str, *words: str) -> list[str]:
    """What bash is offered for the last of these words."""
    line = ["sagectl", "--socket", socket, *words]
    env = {**os.environ, "_SAGECTL_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(line)}
    env["COMP_CWORD"] = str(len(line) - 1)
    done = subprocess.run(
        [sys.executable, "-c", "from sagectl.cli.main import main; main()"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    assert f"_SAGECTL_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_bash_accepts_its_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    done = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p sagectl"], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("sagectl\n")
    assert done.stderr == ""


def test_verbs_are_completed(daemon: FakeDaemon) -> None:
    assert complete(daemon.path, "re") == ["restart", "reset-failed", "reload"]


def test_names_of_engines_and_groups_come_from_the_daemon(daemon: FakeDaemon) -> None:
    assert complete(daemon.path, "stop", "") == ["chat", "rerank@1", "rerank@2", "rerank"]
    assert complete(daemon.path, "status", "re") == ["rerank@1", "rerank@2", "rerank"]
    assert complete(daemon.path, "logs", "c") == ["chat"]


def test_a_name_is_not_offered_twice(daemon: FakeDaemon) -> None:
    assert complete(daemon.path, "stop", "chat", "") == ["rerank@1", "rerank@2", "rerank"]


def test_without_a_daemon_completion_is_silent(tmp_path: Path) -> None:
    assert complete(str(tmp_path / "none"), "stop", "") == []


def test_fine_tune_offers_its_choices_and_names(daemon: FakeDaemon) -> None:
    assert complete(daemon.path, "fine") == ["fine-tune"]
    assert complete(daemon.path, "fine-tune", "--method", "") == ["lora", "qlora", "full"]
    assert complete(daemon.path, "fine-tune", "--policy", "s") == ["shared"]
    assert complete(daemon.path, "fine-tune", "--follow", "--name", "c") == ["chat"]
