"""What `make up` decides: which torch, which configuration, what it says."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import tomli

import envs
import up

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
    ("gpu", "model", "on_cpu"), [(False, "m", True), (True, "m", False), (True, up.STARTER, True)]
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
    text = up.configuration("/vllm/python", "m", "vllm", embedding_python="/torch/python")
    found = tomli.loads(text)
    assert found["engines"]["embed"]["kind"] == "embedding"
    assert found["defaults"]["llm"]["python"] == "/vllm/python"
    assert found["defaults"]["embedding"]["python"] == "/torch/python"


def test_the_hints_name_the_address_and_the_model_and_what_it_is() -> None:
    chat = {
        "state": "active",
        "engine_kind": "llm",
        "address": "127.0.0.1:8001",
        "serves": [up.STARTER],
        "model_id": up.STARTER,
    }
    embed = {
        "state": "active",
        "engine_kind": "embedding",
        "address": "127.0.0.1:8090",
        "serves": ["e5"],
        "model_id": "e5",
    }
    text = up.summary(Path("/home/x/.sagectl"), {"chat": chat, "embed": embed})
    assert "curl http://127.0.0.1:8001/v1/chat/completions" in text
    assert f'"model": "{up.STARTER}"' in text
    assert text.count("untrained: ") == 1
    assert "curl http://127.0.0.1:8090/v1/embeddings" in text
    assert "SAGECTL_HOME=/home/x/.sagectl" in text


def test_a_failure_says_why_and_where_to_look() -> None:
    engine = {
        "state": "failed",
        "reason": "exit code 1",
        "diagnosis": {"summary": "No such model.", "remedy": "Correct `model`."},
    }
    text = up.summary(Path("/home/x/.sagectl"), {"embed": engine})
    assert "No such model." in text
    assert "Correct `model`." in text
    assert "logs embed" in text
