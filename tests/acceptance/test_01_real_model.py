"""Scenario 1: `sagectld` serves a real model on the CPU, and keeps it serving."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.harness import PROGRAMS, Daemon, free_port, kill

pytestmark = pytest.mark.heavy

LOADING = 90.0
MODEL = "sagectl-starter-untrained"


@pytest.fixture(scope="module")
def serving(transformers_python: str, starter_model: Path) -> Iterator[Daemon]:
    """A daemon with the llm engine `chat`, serving the starter model."""
    daemon = Daemon({"HF_HUB_OFFLINE": "1"})
    try:
        shutil.copytree(starter_model, daemon.home / "models" / MODEL)
        daemon.configure(
            f'[engines.chat]\nkind = "llm"\nmodel = "{MODEL}"\npython = "{transformers_python}"\n'
            f"port = {free_port()}\nautostart = true\nuse_gpu = false\n"
            f'env = {{ HF_HOME = "{daemon.home}/hf" }}\n'
            "restart = { delay = 0 }\nstop = { drain = 5, timeout = 20 }\n"
        )
        daemon.start()
        daemon.until_state("chat", "ready", timeout=LOADING)
        yield daemon
        assert daemon.terminate() == 0
        assert daemon.tree("chat") == []
    finally:
        daemon.close()


def ask(port: int, *, tokens: int = 8, stream: bool = False) -> http.client.HTTPResponse:
    """Ask for a chat completion over plain HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": stream}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return answer


def complete(port: int) -> dict[str, Any]:
    """One whole chat completion."""
    answer: dict[str, Any] = json.loads(ask(port).read())
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["message"]["role"] == "assistant"
    return answer


def test_a_chat_is_completed_over_plain_http_and_by_the_openai_client(
    serving: Daemon, transformers_python: str
) -> None:
    """Scenario 1.1: an llm engine is declared with autostart; a chat is asked for over HTTP, whole and as a
    stream, and both again with the real `openai` client.

    Result: the engine is ready only when it answers; each answer has 8 tokens of the assistant; a stream
    comes in pieces. `status` shows model and address.
    """
    engine = serving.show("chat")
    port = engine["port"] or 0
    assert engine["model_id"] == MODEL
    assert engine["serves"] == [MODEL]
    assert complete(port)["choices"][0]["message"]["content"]
    lines = ask(port, stream=True).read().decode().splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert len(data) > 3
    deltas = [json.loads(piece) for piece in data if piece != "[DONE]"]
    assert any(piece["choices"][0]["delta"].get("content") for piece in deltas if piece["choices"])

    asked = [transformers_python, str(PROGRAMS / "openai_chat.py"), f"http://127.0.0.1:{port}/v1", MODEL]
    answered = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert answered.returncode == 0, answered.stderr
    said = json.loads(answered.stdout)
    assert (said["role"], said["tokens"]) == ("assistant", 8)
    assert said["chunks"] > 1
    assert said["finish"] in ("length", "stop")
    assert f"127.0.0.1:{port}" in serving.cli("status", "chat").stdout


def test_sigkill_of_the_daemon_while_the_model_serves_interrupts_nothing(serving: Daemon) -> None:
    """Scenario 1.2: a client asks without pause and another one reads a long stream; `sagectld` gets
    SIGKILL, and is started again, twice.

    Result: every request is answered, the stream is whole; each new daemon adopts the same process, ready,
    with counters and uptime; nothing is doubled.
    """
    before = serving.show("chat")
    port, failures, answers = before["port"] or 0, [], []
    ending = threading.Event()

    def ask_on() -> None:
        while not ending.is_set():
            try:
                answers.append(complete(port))
            except (OSError, AssertionError, http.client.HTTPException) as error:
                failures.append(error)

    asking = threading.Thread(target=ask_on)
    stream = ask(port, tokens=100, stream=True)
    first = stream.readline()
    asking.start()
    try:
        for _ in range(2):
            serving.kill()
            serving.start()
            after = serving.show("chat")
            for key in ("engine_id", "pid", "port", "restart_count", "started_at", "substate"):
                assert after[key] == before[key], key
            assert (after["uptime_seconds"] or 0) > (before["uptime_seconds"] or 0)
    finally:
        ending.set()
        asking.join()
    rest = stream.read()
    assert first.startswith(b"data: ")
    assert (first + rest).count(b"data: ") > 50
    assert not failures
    assert answers


def test_sigkill_of_the_engine_brings_it_back_under_its_id_name_and_port(serving: Daemon) -> None:
    """Scenario 1.3: the model's server gets SIGKILL.

    Result: it loads again under the same id, name and port, one restart more, and answers.
    """
    before = serving.show("chat")
    kill(before["pid"] or 0)
    after = serving.until(
        "chat", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"], timeout=LOADING
    )
    for key in ("engine_id", "name", "port"):
        assert after[key] == before[key]
    assert after["restart_count"] == before["restart_count"] + 1
    assert after["last_exit"] == {"code": None, "signal": 9, "oom_kill": False}
    complete(after["port"] or 0)


def test_a_model_that_does_not_exist_fails_in_words(serving: Daemon, transformers_python: str) -> None:
    """Scenario 1.4: an engine's model is a directory without a model; the interpreter of another lacks torch.

    Result: `start` exits 1, failed (preflight), with reason and remedy; `chat` serves on.
    """
    (serving.home / "models" / "empty").mkdir(exist_ok=True)
    chat = serving.show("chat")
    serving.configure(
        f'[engines.empty]\nkind = "llm"\nmodel = "{serving.home}/models/empty"\n'
        f'python = "{transformers_python}"\n'
        f'[engines.bare]\nkind = "llm"\nmodel = "{MODEL}"\npython = "{sys.executable}"\n',
        "engines.d/wrong.toml",
    )
    assert serving.cli("reload").returncode == 0
    empty = serving.cli("start", "empty")
    assert empty.returncode == 1
    assert "failed (preflight)" in empty.stderr
    assert "config.json" in empty.stderr
    bare = serving.cli("start", "bare")
    assert bare.returncode == 1
    assert "lacks" in bare.stderr
    assert "pip install" in bare.stderr
    assert serving.show("chat")["pid"] == chat["pid"]
    complete(chat["port"] or 0)
