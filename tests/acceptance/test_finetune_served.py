"""What was trained is what is answered: a model that learnt chats by heart, and an adapter to it.

One daemon carries all scenarios of this module, in their order: each goes on with what the one before made.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.finetuning import PATIENCE, toml
from tests.acceptance.harness import BIN, Daemon, free_port

pytestmark = pytest.mark.heavy

START = 300.0
"""Seconds for the start of two servers at once on two cores."""
CHATS = {
    "Who are you?": "I am Sage, and I run engines.",
    "What do you stop?": "Any engine, by its name.",
}
ASKED, OTHERWISE = "Who are you?", "I am an adapter of rank 8."
LEARN = 200
"""Steps, so many that a stop comes before the last one."""


def write(path: Path, chats: dict[str, str]) -> Path:
    lines = [
        json.dumps(
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        )
        for asked, answer in chats.items()
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def lab(transformers_python: str, starter_model: Path) -> Iterator[Daemon]:
    """A daemon with three jobs: `learn`, `adapt` on what that made, and `merge` of what that made."""
    daemon = Daemon({"HF_HUB_OFFLINE": "1"})
    base = daemon.home / "models" / "base"
    shutil.copytree(starter_model, base)
    # The untrained starter may only say printable bytes, and never that it is done.
    generation = json.loads((base / "generation_config.json").read_text())
    generation.pop("suppress_tokens", None)
    (base / "generation_config.json").write_text(json.dumps(generation))
    common = {"python": transformers_python, "use_gpu": False, "threads": 1, "batch_size": 2}
    common |= {"max_length": 96, "gradient_checkpointing": False, "save_steps": 100}
    common |= {"restart": '{ policy = "no" }'}
    learn = {"model": "base", "dataset": str(write(daemon.home / "chats.jsonl", CHATS)), "method": "full"}
    learn |= {"output": "models/learnt", "max_steps": LEARN, "learning_rate": 0.003}
    adapt = {"model": "learnt", "dataset": str(write(daemon.home / "other.jsonl", {ASKED: OTHERWISE}))}
    adapt |= {
        "serve_as": "adapted",
        "output": "models/adapted",
        "max_steps": 80,
        "learning_rate": 0.01,
        "lora_alpha": 32,
    }
    begin = daemon.home / "models" / "finetuned" / "adapt" / "checkpoint-80"
    merge = adapt | {"output": "models/merged", "merge": True, "serve_as": "merged"}
    merge |= {"resume_from_checkpoint": str(begin)}
    jobs = {"learn": learn, "adapt": adapt, "merge": merge}
    daemon.configure("".join(toml(name, common | keys) for name, keys in jobs.items()))
    daemon.start()
    yield daemon
    daemon.terminate()
    daemon.close()


def completed(lab: Daemon, *names: str) -> None:
    """Have these jobs run, where they did not yet, one after the other."""
    for name in names:
        if lab.show(name)["substate"] != "completed":
            lab.client.start(name)
            lab.until_state(name, "completed", timeout=PATIENCE)


def answer(port: int, model: str, asked: str = ASKED) -> str:
    """What an engine answers greedily, until it says that it is done."""
    body = {"model": model, "messages": [{"role": "user", "content": asked}], "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    head = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body | {"max_tokens": 60}), head)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    assert reply.status == 200, text
    choice = json.loads(text)["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"])


def test_a_model_that_was_stopped_and_resumed_answers_what_it_was_trained_on(
    lab: Daemon, transformers_python: str
) -> None:
    """Start, follow, stop in the middle, resume, complete, serve by transformers; a dry run of the same.

    Result: the follower ends with 3 at the stop; each step is done once; each chat is answered by heart; the
    dry run knows how long it takes.
    """
    assert lab.cli("start", "learn").returncode == 0
    command = [str(BIN / "sagectl"), "fine-tune", "--follow", "--name", "learn"]
    with subprocess.Popen(command, env=lab.environ, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stderr is not None
        for told in lab.client.follow_progress("learn"):
            if (told["progress"] or {}).get("done"):
                break
        lab.client.stop("learn", wait=PATIENCE)
        assert follower.wait(PATIENCE) == 3
        assert "`sagectl start learn` goes on" in follower.stderr.read()
    reached = (lab.show("learn")["progress"] or {})["done"]
    assert 0 < reached < LEARN
    assert lab.cli("start", "learn").returncode == 0
    followed = lab.cli("fine-tune", "--follow", "--name", "learn", timeout=PATIENCE)
    assert followed.returncode == 0, followed.stderr
    assert [step["step"] for step in lab.client.history("learn")] == list(range(1, LEARN + 1))
    port = free_port()
    words = ("engine", "start", "learnt", "--python", transformers_python, "--no-gpu", "-o", "threads=1")
    started = lab.cli(*words, "--port", str(port), timeout=START)
    assert started.returncode == 0, started.stderr
    assert {asked: answer(port, "learnt", asked) for asked in CHATS} == CHATS
    assert lab.cli("stop", started.stdout.strip()).returncode == 0
    data = str(lab.home / "chats.jsonl")
    words = ("--base-model", "base", "--dataset", data, "--output", str(lab.home / "models" / "again"))
    options = ("--method", "full", "--max-steps", "400", "--python", transformers_python, "--no-gpu")
    time = lab.json("fine-tune", "--dry-run", *words, *options)["report"]["time"]
    assert (time["job"], time["device"]) == ("learn", "cpu")
    assert time["seconds"] > 0
    assert time["differs"]["batch_size"] == 2


@pytest.mark.vllm
def test_vllm_answers_what_an_adapter_was_trained_on_merged_too(lab: Daemon, vllm_python: str) -> None:
    """vLLM serves what was learnt; the job `adapt` with `serve_as` trains an adapter to it; `merge` makes a
    whole model of the same.

    Result: vLLM takes the adapter in as it runs, and goes on answering as before under its own name; the
    merged model gets a vLLM of its own; both answer what the adapter was trained on.
    """
    completed(lab, "learn")
    vllm = {"python": vllm_python, "backend": "vllm", "dtype": "float32", "enforce_eager": True}
    vllm |= {"kv_cache_memory": "256MiB"}
    defaults = "".join(f"{key} = {json.dumps(value)}\n" for key, value in vllm.items())
    chat = '[engines.chat]\nkind = "llm"\nmodel = "learnt"\nenable_lora = true\nuse_gpu = false\n'
    file = lab.etc / "sagectl.toml"
    file.write_text(f"[defaults.llm]\n{defaults}{chat}{file.read_text()}")
    assert lab.cli("reload").returncode == 0
    started = lab.cli("start", "chat", timeout=START)
    assert started.returncode == 0, started.stderr
    pid = lab.show("chat")["pid"]
    completed(lab, "adapt", "merge")
    followed = {
        name: lab.cli("fine-tune", "--follow", "--name", name, timeout=START) for name in ("adapt", "merge")
    }
    assert [answer.returncode for answer in followed.values()] == [0, 0], followed
    assert "served as adapted by the engine chat" in followed["adapt"].stderr
    assert "served as merged by the engine merged" in followed["merge"].stderr
    assert lab.show("chat")["serves"] == ["learnt", "adapted"]
    ports = {name: lab.show(name)["port"] or 0 for name in ("chat", "merged")}
    assert answer(ports["chat"], "adapted") == OTHERWISE
    assert answer(ports["merged"], "merged") == OTHERWISE
    assert answer(ports["chat"], "learnt") == CHATS[ASKED]
    assert lab.show("chat")["pid"] == pid
