"""What `make up` decides: which torch, which configuration, what it says."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli

import envs
import learning
import up
import watching
from sagectl.config.load import load
from sagectl_embedding import EmbeddingKind
from sagectl_finetune import FinetuneKind
from sagectl_llm import LlmKind

PYTHON = Path("/venv/bin/python")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No GPU, a registry that would bring CUDA, nobody to ask."""
    monkeypatch.setattr(envs, "has_gpu", lambda: False)
    monkeypatch.setattr(envs, "brings_cuda", lambda python: True)
    monkeypatch.setattr(envs, "interactive", lambda: False)
    return monkeypatch


def test_with_a_gpu_the_registry_is_not_asked(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(envs, "has_gpu", lambda: True)
    machine.setattr(envs, "brings_cuda", lambda python: pytest.fail("asked"))
    assert envs.choose_torch(PYTHON) == "default"


def test_a_registry_with_a_cpu_build_needs_no_question(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(envs, "brings_cuda", lambda python: False)
    assert envs.choose_torch(PYTHON) == "default"


def test_where_nobody_can_be_asked_cuda_is_not_installed_and_that_is_said(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert envs.choose_torch(PYTHON) == "cpu"
    said = capsys.readouterr().err
    assert "several GB" in said
    assert "TORCH=cuda" in said


@pytest.mark.parametrize(("typed", "choice"), [("\n", "cpu"), ("c\n", "cpu"), ("what\nG\n", "default")])
def test_whoever_can_be_asked_is_asked(machine: pytest.MonkeyPatch, typed: str, choice: str) -> None:
    machine.setattr(envs, "interactive", lambda: True)
    machine.setattr(sys, "stdin", io.StringIO(typed))
    assert envs.choose_torch(PYTHON) == choice


@pytest.mark.parametrize("typed", ["q\n", ""])
def test_the_question_can_be_left(machine: pytest.MonkeyPatch, typed: str) -> None:
    machine.setattr(envs, "interactive", lambda: True)
    machine.setattr(sys, "stdin", io.StringIO(typed))
    with pytest.raises(SystemExit, match="before torch was installed"):
        envs.choose_torch(PYTHON)


def test_an_environment_is_named_after_what_it_is_made_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    constraints = tmp_path / "constraints.txt"
    monkeypatch.setattr(envs, "CONSTRAINTS", constraints)
    constraints.write_text("torch==1\n")
    first = envs.key("torch", "cpu")
    assert first == envs.key("torch", "cpu")
    assert first != envs.key("torch", "cuda")
    constraints.write_text("torch==2\n")
    assert first != envs.key("torch", "cpu")


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, envs.ROOT / ".envs"),
        ({"SAGECTL_ENVS": "/shared"}, Path("/shared")),
        ({"CI": "true", "XDG_CACHE_HOME": "/cache"}, Path("/cache/sagectl-envs")),
        ({"CI": "true", "SAGECTL_ENVS": "/shared"}, Path("/shared")),
    ],
)
def test_big_environments_live_where_checkouts_can_share_them(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], place: Path
) -> None:
    for name in ("SAGECTL_ENVS", "CI", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert envs.environments() == place


@pytest.mark.parametrize(
    ("gpu", "model", "on_cpu"), [(False, "m", True), (True, "m", False), (True, learning.MODEL, True)]
)
def test_the_first_configuration_uses_a_gpu_only_where_it_helps(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, model: str, on_cpu: bool
) -> None:
    monkeypatch.setattr(up, "has_gpu", lambda: gpu)
    engine = tomli.loads(up.configuration('/a "b"/python', model))["engines"]["chat"]
    assert engine["model"] == model
    assert ("use_gpu" in engine) is on_cpu


def test_a_configuration_of_ones_own_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "sagectl.toml"
    assert up.write_configuration(path, up.configuration("/python", "first"))
    assert up.write_configuration(path, up.configuration("/python", "second"))
    assert 'model = "second"' in path.read_text()
    path.write_text("# mine\n")
    assert not up.write_configuration(path, up.configuration("/python", "third"))
    assert path.read_text() == "# mine\n"


def test_the_first_configuration_has_an_embedding_engine_with_an_interpreter_of_its_own() -> None:
    text = up.configuration("/vllm/python", "m", "vllm", torch_python="/torch/python")
    found = tomli.loads(text)
    assert found["engines"]["embed"]["kind"] == "embedding"
    assert found["defaults"]["llm"]["python"] == "/vllm/python"
    assert found["defaults"]["embedding"]["python"] == "/torch/python"


def test_the_hints_name_the_address_and_the_model_and_what_it_is() -> None:
    chat = {
        "state": "active",
        "engine_kind": "llm",
        "address": "127.0.0.1:8001",
        "serves": [learning.MODEL],
        "model_id": learning.MODEL,
        "substate": "ready",
    }
    embed = {
        "state": "active",
        "engine_kind": "embedding",
        "address": "127.0.0.1:8090",
        "serves": ["e5"],
        "model_id": "e5",
        "substate": "ready",
    }
    done = {"state": "inactive", "substate": "completed"}
    text = up.summary(Path("/home/x/.sagectl"), {"starter": done, "chat": chat, "embed": embed})
    assert "curl http://127.0.0.1:8001/v1/chat/completions" in text
    assert f'"model": "{learning.MODEL}"' in text
    assert f'"content": "{learning.QUESTION}"' in text
    assert text.count("It was trained here") == 1
    assert "sagectl logs chat -f" in text
    assert "curl http://127.0.0.1:8090/v1/embeddings" in text
    assert "SAGECTL_HOME=/home/x/.sagectl" in text


def test_a_failure_says_why_and_where_to_look() -> None:
    engine = {
        "state": "failed",
        "substate": "exit-code",
        "reason": "exit code 1",
        "diagnosis": {"summary": "No such model.", "remedy": "Correct `model`."},
    }
    text = up.summary(Path("/home/x/.sagectl"), {"embed": engine})
    assert "No such model." in text
    assert "Correct `model`." in text
    assert "logs embed" in text


# --- the model that is trained on the spot ---------------------------------------------------

KINDS = {"llm": LlmKind(), "embedding": EmbeddingKind(), "finetune": FinetuneKind()}


@pytest.mark.parametrize("backend", ["transformers", "vllm"])
@pytest.mark.parametrize("train", [True, False])
def test_the_job_runs_only_where_the_model_is_not_there_and_chat_waits_for_it(
    tmp_path: Path, backend: str, train: bool
) -> None:
    path = tmp_path / "sagectl.toml"
    text = up.configuration("/llm/python", learning.MODEL, backend, torch_python="/torch/python", train=train)
    path.write_text(text)
    config = load(path, None, KINDS)
    specs = {spec.name: spec for spec in config.specs}
    assert config.warnings == ()
    assert specs["starter"].autostart is train
    assert specs["chat"].depends_on == (("starter",) if train else ())
    assert (specs["chat"].autostart, specs["embed"].autostart) == (True, True)
    found = tomli.loads(text)
    assert found["defaults"]["finetune"]["python"] == "/torch/python"
    job = found["engines"]["starter"]
    assert (job["model"], job["output"]) == (learning.BASE, f"models/{found['engines']['chat']['model']}")
    assert Path(job["dataset"]).is_file()


def test_another_model_needs_no_training() -> None:
    assert "finetune" not in up.configuration("/python", "Qwen/Qwen2.5-0.5B-Instruct")


def write_model(home: Path, made_from: str) -> None:
    directory = home / "models" / learning.MODEL
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"sagectl_made_from": made_from}))


def test_a_model_counts_as_trained_only_while_the_corpus_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not learning.is_trained(tmp_path)
    write_model(tmp_path, "something else")
    assert not learning.is_trained(tmp_path)
    write_model(tmp_path, learning.made_from())
    assert learning.is_trained(tmp_path)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(learning.CORPUS.read_text() + "\n")
    monkeypatch.setattr(learning, "CORPUS", corpus)
    assert not learning.is_trained(tmp_path)


def test_what_a_training_reached_is_said_before_and_after(tmp_path: Path) -> None:
    assert "about a minute" in learning.announcement(tmp_path)
    assert "begins it anew" in learning.left_at(tmp_path)
    for step in (100, 37):
        (tmp_path / "models" / "finetuned" / learning.JOB / f"checkpoint-{step}").mkdir(parents=True)
    assert learning.announcement(tmp_path).endswith("after step 100")
    assert "saved at step 100" in learning.left_at(tmp_path)


def test_the_corpus_answers_each_question_once_and_the_one_that_is_shown() -> None:
    rows = [json.loads(line)["messages"] for line in learning.CORPUS.read_text().splitlines()]
    assert all([message["role"] for message in row] == ["user", "assistant"] for row in rows)
    # As the template writes them.
    questions = [row[0]["content"].lower().replace("`", "").strip(" ?!.") for row in rows]
    assert sorted(questions) == sorted(set(questions))
    assert learning.QUESTION in [row[0]["content"] for row in rows]
    assert len({row[1]["content"] for row in rows}) >= 40


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def job(done: int) -> dict[str, Any]:
        details = {"phase": "training", "loss": 1.2345}
        progress = {"done": done, "total": 200, "unit": "steps", "eta_seconds": 21.0, "details": details}
        return {"name": "starter", "progress": progress}

    display = watching.Display()
    display.progress(job(50))
    display.progress(job(51))
    display.say("chat: active (ready)")
    said = capsys.readouterr().err
    assert said == "starter: 25% step 50/200, 21s left, loss 1.234\nchat: active (ready)\n"
