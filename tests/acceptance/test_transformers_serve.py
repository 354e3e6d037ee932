"""What the kind `llm` plans, against the real `transformers serve` and the starter model."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from learning import CORPUS, PROGRAM
from sagectl.plugin import (
    EngineRequest,
    ExitStatus,
    Facts,
    FailureReport,
    FileFacts,
    FileQuery,
    HttpProbe,
    InterpreterFacts,
    InterpreterQuery,
    LaunchPlan,
)
from sagectl_llm import LlmKind
from sagectl_llm.options import LlmOptions

pytestmark = pytest.mark.heavy

START_TIMEOUT = 120.0
NAME = "sagectl-starter-untrained"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def a_request(python: str, model: Path, state: Path, **changes: Any) -> EngineRequest[LlmOptions]:
    asked = EngineRequest(
        name="chat",
        model=NAME,
        host="127.0.0.1",
        port=free_port(),
        gpu_ids=(),
        python=python,
        options=LlmOptions(backend="transformers", threads=1),
        probe=None,
        models_dir=str(model.parent),
        state_dir=str(state),
    )
    return replace(asked, **changes)


def gather(asked: EngineRequest[LlmOptions]) -> Facts:
    """Answer the kind's questions about this machine, as the daemon would."""
    answers: dict[Any, Any] = {}
    for query in LlmKind().facts(asked):
        if isinstance(query, InterpreterQuery):
            answers[query] = InterpreterFacts(dict.fromkeys(query.modules, ""))
        elif isinstance(query, FileQuery):
            answers[query] = FileFacts("file" if os.path.isfile(query.path) else "missing")
    return Facts(answers)


class Server:
    """A launched plan and its log."""

    def __init__(self, plan: LaunchPlan, port: int, log: Path) -> None:
        self.port = port
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                plan.argv,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(log.parent)} | dict(plan.env),
                cwd=plan.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def wait_for(self, probe: HttpProbe) -> Any:
        """Ask until it answers; fail with the log where it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                status, body = self.ask(probe.method, probe.path, probe.body)
            except OSError:
                time.sleep(0.05)  # nothing to await: the port opens when the model is loaded
                continue
            assert status == 200, body
            for key in probe.json_path:
                body = body[key]
            return body
        pytest.fail(f"not ready (exit {self.process.poll()}):\n{self.log.read_text()}")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def server(
    transformers_python: str, starter_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, LaunchPlan]]:
    state = tmp_path_factory.mktemp("chat")
    asked = a_request(transformers_python, starter_model, state)
    plan = LlmKind().plan(asked, gather(asked))
    assert isinstance(plan, LaunchPlan), plan
    assert asked.port is not None
    running = Server(plan, asked.port, state / "log")
    yield running, plan
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def test_the_startup_probes_lead_to_one_generated_token(server: tuple[Server, LaunchPlan]) -> None:
    running, plan = server
    health, token = plan.probes.startup
    assert isinstance(health, HttpProbe)
    assert isinstance(token, HttpProbe)
    running.wait_for(health)
    assert running.wait_for(token) == 1


def test_it_completes_a_chat_under_the_name_that_the_plan_gives(server: tuple[Server, LaunchPlan]) -> None:
    running, plan = server
    running.wait_for(HttpProbe("/health"))
    assert plan.served_models == (NAME,)
    messages = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"model": NAME, "messages": messages, "max_tokens": 8})
    status, answer = running.ask("POST", "/v1/chat/completions", body)
    assert status == 200
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 8


def test_it_refuses_a_model_that_it_does_not_serve(server: tuple[Server, LaunchPlan]) -> None:
    running, _ = server
    running.wait_for(HttpProbe("/health"))
    status, _ = running.ask("POST", "/v1/completions", json.dumps({"model": "other", "prompt": "Hello"}))
    assert status == 400


def test_a_port_in_use_ends_it_and_is_explained(
    server: tuple[Server, LaunchPlan], transformers_python: str, starter_model: Path, tmp_path: Path
) -> None:
    running, _ = server
    running.wait_for(HttpProbe("/health"))
    asked = a_request(transformers_python, starter_model, tmp_path, port=running.port)
    plan = LlmKind().plan(asked, gather(asked))
    assert isinstance(plan, LaunchPlan)
    second = Server(plan, running.port, tmp_path / "log")
    code = second.process.wait(START_TIMEOUT)
    assert code not in (0, None)
    log = tuple(second.log.read_text().splitlines())
    diagnosis = LlmKind().explain(asked, FailureReport("starting", ExitStatus(code=code), log))
    assert diagnosis is not None
    assert f"Port {running.port}" in diagnosis.summary


def test_a_directory_is_served_under_another_name(
    transformers_python: str, starter_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "served" / "earlier").mkdir(parents=True)  # left by a start under another name
    options = LlmOptions(backend="transformers", threads=1, served_model_name="team/help")
    asked = a_request(transformers_python, starter_model, tmp_path, options=options)
    plan = LlmKind().plan(asked, gather(asked))
    assert isinstance(plan, LaunchPlan), plan
    assert asked.port is not None
    running = Server(replace(plan, cwd=str(tmp_path)), asked.port, tmp_path / "log")
    try:
        for probe in plan.probes.startup:
            assert isinstance(probe, HttpProbe)
            answer = running.wait_for(probe)
        assert answer == 1
        status, _ = running.ask("POST", "/v1/completions", json.dumps({"model": NAME, "prompt": "Hello"}))
        assert status == 400
        assert running.end() == -signal.SIGTERM
    finally:
        running.process.kill()
        running.process.wait()
    assert sorted(path.name for path in (tmp_path / "served").rglob("*")) == ["help", "team"]
    assert (starter_model / "model.safetensors").exists()


def test_sigterm_ends_it_cleanly(server: tuple[Server, LaunchPlan]) -> None:
    running, _ = server
    running.wait_for(HttpProbe("/health"))
    # uvicorn shuts down in order, then raises the signal again: asked for, so not a failure.
    assert running.end() == -signal.SIGTERM
    assert "Application shutdown complete" in running.log.read_text()


def test_the_starter_model_is_small_labelled_and_the_same_each_time(
    transformers_python: str, starter_model: Path, tmp_path: Path
) -> None:
    spec = importlib.util.find_spec("sagectl_llm.starter")
    assert spec is not None
    assert spec.origin is not None
    again = tmp_path / "again"
    subprocess.run([transformers_python, spec.origin, str(again)], check=True, capture_output=True)
    files = {path.name for path in starter_model.iterdir()}
    assert files == {path.name for path in again.iterdir()}
    for name in files:
        assert _digest(starter_model / name) == _digest(again / name), name
    assert sum((starter_model / name).stat().st_size for name in files) < 20 * 2**20
    assert "never trained" in (starter_model / "README.md").read_text()
    assert json.loads((starter_model / "config.json").read_text())["head_dim"] in (32, 64)


WRITE_TWICE = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
sys.path.insert(0, sys.argv[1])
import starter
for name in sys.argv[3:]:
    starter.write(Path(name), Path(sys.argv[2]), "its note")
messages = [
    {"role": "system", "content": "Be nice."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "What does `sagectl stop` do?"},
]
tokenizer = AutoTokenizer.from_pretrained(name)
print(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
"""


def test_the_starter_models_base_is_the_same_each_time_and_sees_the_last_question(
    transformers_python: str, tmp_path: Path
) -> None:
    places = [tmp_path / "one", tmp_path / "another"]
    words = [str(PROGRAM.parent), str(CORPUS), *map(str, places)]
    prompt = subprocess.check_output([transformers_python, "-c", WRITE_TWICE, *words], text=True)
    assert prompt.split("<|im_start|>")[1:] == [
        "user\n what does sagectl stop do<|im_end|>\n",
        "assistant\n\n",
    ]
    one, another = ({path.name: _digest(path) for path in place.iterdir()} for place in places)
    assert one == another
    config = json.loads((places[0] / "config.json").read_text())
    assert config["sagectl_made_from"] == "its note"
    assert config["vocab_size"] > 1000


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
