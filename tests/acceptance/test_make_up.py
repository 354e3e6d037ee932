"""`make up`: the model is trained once, what it prints can be pasted as it is, Ctrl-C leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import learning
from sagectl.client import Client
from sagectl.errors import SagectlError

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.heavy

LONGEST = 400
"""Seconds after which a `make up` is given up. The training alone takes minutes on a busy machine."""
ANSWERS: dict[str, str] = {
    question["content"]: answer["content"]
    for question, answer in (
        json.loads(line)["messages"] for line in learning.CORPUS.read_text().splitlines()
    )
}
SAMPLE = 40
"""Every so many'th question of the corpus is asked."""


def popen(python: str, home: Path, *words: str) -> subprocess.Popen[str]:
    """What `make up` runs once the environments are there."""
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "etc" / "make" / "up.py"), "--home", str(home)),
            *("--engine-python", python, "--starter-python", python, *words),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def read_until(process: subprocess.Popen[str], end: str) -> str:
    """Everything it prints up to a line with these words, or up to its end."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if end in line:
            break
    return "".join(lines)


def pasted(command: str) -> dict[str, Any]:
    """The answer to a printed `curl` command."""
    words = shlex.split(command)
    url, body = words[1], words[words.index("-d") + 1]
    asked = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


@contextmanager
def up(python: str, home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`make up`, ended with the block in any case."""
    process = popen(python, home, *words)
    watchdog = threading.Timer(LONGEST, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(60)


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C; what it says until it has ended."""
    process.send_signal(signal.SIGINT)
    rest = read_until(process, "\0")
    assert process.wait(60) == 0, rest
    return rest


def await_step(home: Path, step: int) -> None:
    """Wait until the training has done so many steps."""
    client = Client(home / "run" / "sagectl.sock")
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        try:
            found = client.progress(learning.JOB)
        except SagectlError:
            found = None
        if found and found["done"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@dataclass(frozen=True, slots=True)
class Trained:
    """A directory in which `make up` has trained its model, and what was said meanwhile.

    first: up to a Ctrl-C in the midst of it. second: by the one after that.
    """

    home: Path
    first: str
    second: str

    @property
    def log(self) -> str:
        """What the job wrote."""
        return "".join(path.read_text() for path in self.home.glob(f"log/{learning.JOB}.log*"))


@pytest.fixture(scope="module")
def trained(transformers_python: str) -> Iterator[Trained]:
    """Trained on the real corpus, once for all tests here."""
    with tempfile.TemporaryDirectory(prefix="sagectl-up-") as directory:
        home = Path(directory)
        with up(transformers_python, home) as process:
            await_step(home, 5)
            first = interrupt(process)
        with up(transformers_python, home) as process:
            second = read_until(process, "Ctrl-C stops")
            interrupt(process)
        yield Trained(home, first, second)


def requests(said: str) -> tuple[str, str]:
    """The two `curl` commands that were printed: for chat, for embed."""
    chat, embed = re.findall(r"curl .*?-d '.*?'$", said, re.DOTALL | re.MULTILINE)
    return chat, embed


def content(answer: dict[str, Any]) -> str:
    """What a chat answered."""
    found: str = answer["choices"][0]["message"]["content"]
    return found


def wrong_answers(chat: str) -> tuple[int, list[tuple[str, str]]]:
    """Ask the engine of a printed `curl` questions of the corpus; how many, and those it does not know."""
    rows = list(ANSWERS.items())[::SAMPLE]
    found = []
    words = shlex.split(chat)
    for question, answer in rows:
        messages = [{"role": "user", "content": question}]
        body = {"model": learning.MODEL, "messages": messages, "temperature": 0, "max_tokens": 100}
        words[words.index("-d") + 1] = json.dumps(body)
        said = content(pasted(shlex.join(words)))
        if said != answer:
            found.append((question, said))
    return len(rows), found


def test_a_training_that_ctrl_c_ended_is_gone_on_with(trained: Trained) -> None:
    """Scenario: `make up` in an empty directory; Ctrl-C after some steps; `make up`.

    Result: the first says where it stopped; the second goes on from there, trains to the end, and both
    engines are up.
    """
    step = re.search(r"the training is saved at step (\d+)", trained.first)
    assert step is not None, trained.first
    assert f"going on with the training of the starter model, after step {step[1]}\n" in trained.second
    assert f"going on after step {step[1]}\n" in trained.log
    assert "starter: inactive (completed): " in trained.second
    assert trained.second.index("(completed)") < trained.second.index("chat: active (ready)")


def test_both_engines_answer_the_printed_requests_and_ctrl_c_ends_everything(
    transformers_python: str, trained: Trained
) -> None:
    """Scenario: `make up` where the model is trained; the two printed `curl` commands, the printed `sagectl`;
    more questions of the corpus; `make up` again; Ctrl-C.

    Result: nothing is trained; the corpus' answers, two vectors of 384 numbers, two active engines; the
    second `make up` refuses, and says why; after Ctrl-C exit code 0 and no process of the directory.
    """
    home, log = trained.home, trained.log
    with up(transformers_python, home) as process:
        said = read_until(process, "Ctrl-C stops")
        chat, embed = requests(said)
        assert content(pasted(chat)) == ANSWERS[learning.QUESTION]
        assert [len(entry["embedding"]) for entry in pasted(embed)["data"]] == [384, 384]
        asked, wrong = wrong_answers(chat)
        assert asked >= 10
        assert len(wrong) <= 1, wrong
        printed = re.search(r"^ +SAGECTL_HOME=\S+ (\S+) status$", said, re.MULTILINE)
        assert printed is not None, said
        shown = subprocess.run(
            [printed[1], "list", "--json"],
            env=os.environ | {"SAGECTL_HOME": str(home)},
            capture_output=True,
            check=True,
        )
        assert {e["name"]: e["substate"] for e in json.loads(shown.stdout)["engines"]} == {
            "chat": "ready",
            "embed": "ready",
            "starter": "completed",
        }
        again = popen(transformers_python, home)
        refused, _ = again.communicate(timeout=60)
        assert again.returncode == 1
        assert "already" in refused
        rest = interrupt(process)
        assert "training" not in said + rest
        assert trained.log == log
        assert [p.cmdline() for p in psutil.process_iter() if str(home) in " ".join(_words(p))] == []


@pytest.mark.vllm
def test_vllm_serves_the_same_model_with_the_same_answers(
    transformers_python: str, vllm_python: str, trained: Trained
) -> None:
    """Scenario: `make up BACKEND=vllm` where the model is trained; questions of the corpus.

    Result: nothing is trained, and the answers are the corpus'.
    """
    words = ("--engine-python", vllm_python, "--backend", "vllm")
    log = trained.log
    with up(transformers_python, trained.home, *words) as process:
        said = read_until(process, "Ctrl-C stops")
        chat, _ = requests(said)
        assert content(pasted(chat)) == ANSWERS[learning.QUESTION]
        asked, wrong = wrong_answers(chat)
        assert asked >= 10
        assert len(wrong) <= 1, wrong
        interrupt(process)
    assert trained.log == log


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
