"""`estimate`: a model's memory in parts and where it fits, without a daemon and with one."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from sagectl.cli import main
from sagectl.system import plugins
from sagectl_models import architecture
from sagectl_models.blueprint import tensors_of
from tests.integration.cli_daemon import FakeDaemon
from tests.models import config, described, write_model

Out = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a daemon, an empty cache of the hub, and the kinds of this repository."""
    points = {"exec": "sagectl_exec", "llm": "sagectl_llm", "embedding": "sagectl_embedding"}
    found = [EntryPoint(name=name, value=value, group="sagectl") for name, value in points.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)
    monkeypatch.setenv("SAGECTL_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def model(home: Path, name: str) -> str:
    """A real model's files, their data a hole, below the directory of models."""
    found = architecture.read(described(name))
    assert found is not None
    write_model(home / "models" / name, config(name), tensors_of(found), files=2)
    return name


def run(capsys: Out, *words: str) -> str:
    assert main.run(["estimate", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def dumped(capsys: Out, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(capsys, *words, "--json"))
    return answer


def test_the_parts_and_their_sum(home: Path, capsys: Out) -> None:
    shown = run(capsys, model(home, "Qwen2.5-7B-Instruct"), "--context", "8192")
    first = shown.splitlines()[0]
    assert first == "Qwen2.5-7B-Instruct  llm, 1 GPU, exact weights"
    assert "weights      14.2 GiB  7,615,616,512 parameters" in shown
    assert "one sequence of 8,192 tokens, 56 KiB a token" in shown
    assert "together     17.1 GiB" in shown
    assert "24 GiB (RTX 4090, A10, L4)" in shown
    assert "2 GPUs: tensor 2" in shown  # on cards of 16 GiB


def test_figures_as_json(home: Path, capsys: Out) -> None:
    found = dumped(capsys, model(home, "Qwen2.5-7B-Instruct"), "--context", "8192", "--gpu", "24GiB")
    assert found["exact"]
    assert found["weights_gb"] == 14.185
    assert found["kv_per_token_bytes"] == 57344
    assert found["needed_gb"] == pytest.approx(sum(part["size_gb"] for part in found["parts"]), abs=0.01)
    (fit,) = found["fits"]
    assert (fit["fits"], fit["gpus"], fit["free_gb"]) == (True, 1, 23.0)
    cache = next(part["size_gb"] for part in found["parts"] if part["name"] == "kv-cache")
    assert fit["sequences"] == 1 + int((23.0 - found["needed_gb"]) / cache)


def test_as_many_gpus_as_are_named(home: Path, capsys: Out) -> None:
    name = model(home, "Llama-3.1-70B")
    one, four = (["--gpu", "80GiB"] * count for count in (1, 4))
    (fit,) = dumped(capsys, name, "--context", "8192", *one)["fits"]
    assert not fit["fits"]
    (fit,) = dumped(capsys, name, "--context", "8192", *four)["fits"]
    assert (fit["gpus"], fit["tensor_parallel_size"]) == (2, 2)
    assert "no" in run(capsys, name, "--gpu", "24GiB")


def test_parallelism_and_types_that_are_asked_for(home: Path, capsys: Out) -> None:
    name = model(home, "Llama-3.1-70B")
    found = dumped(capsys, name, "--tp", "4", "--pp", "2", "--kv-cache-dtype", "fp8", "--context", "4096")
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (4, 2)
    assert len(found["needed_gb_by_gpu"]) == 8
    assert found["kv_per_token_bytes"] == 80 * 2 * 8 * 128 // 8
    fewer = dumped(capsys, name, "--tp", "4", "--max-num-seqs", "8", "-o", "enforce_eager=true")
    assert "cuda-graphs" not in {part["name"] for part in fewer["parts"]}


def test_an_embedding_model_is_known_by_its_modules(home: Path, capsys: Out) -> None:
    name = model(home, "bge-small-en-v1.5")
    (home / "models" / name / "modules.json").write_text("[]")
    found = dumped(capsys, name)
    assert found["engine_kind"] == "embedding"
    assert found["needed_gb"] < 2  # where it was 20 once
    assert dumped(capsys, name, "--kind", "llm", "-o", "backend=transformers")["engine_kind"] == "llm"


def test_a_model_that_is_not_here_is_guessed_by_its_name(capsys: Out) -> None:
    assert "guessed from its name" in run(capsys, "Qwen/Qwen2.5-7B-Instruct")
    assert main.run(["estimate", "acme/unheard-of"]) == 1
    assert "acme/unheard-of is not on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--method", "lora"], 1, "no kind finetune is installed"),
        (["--kind", "exec"], 1, "the kind exec says nothing of the memory"),
        (["--kind", "embedding", "--max-num-seqs", "8", "--pp", "2"], 2, "--pp means nothing"),
        (["--tp", "two"], 2, "neither a number of GPUs nor auto"),
        (["--tp", "3"], 1, "28 attention heads cannot be divided by 3"),
        (["-o", "bogus=1"], 2, "has no option bogus"),
        (["-o", "max_model_len=x"], 2, "max_model_len"),
        (["--gpu", "24"], 2, "has no unit"),
        (["--context", "0"], 2, "context"),
    ],
)
def test_what_cannot_be_meant_so(home: Path, capsys: Out, words: list[str], code: int, said: str) -> None:
    assert main.run(["estimate", model(home, "Qwen2.5-7B-Instruct"), *words]) == code
    assert said in capsys.readouterr().err


def test_a_damaged_checkpoint_says_so(home: Path, capsys: Out) -> None:
    name = model(home, "bge-small-en-v1.5")
    (home / "models" / name / "model-00002-of-00002.safetensors").unlink()
    assert main.run(["estimate", name]) == 1
    assert "model-00002-of-00002.safetensors is missing" in capsys.readouterr().err


def test_the_gpus_are_the_daemons_where_one_answers(home: Path, tmp_path: Path, capsys: Out) -> None:
    daemon = FakeDaemon(tmp_path / "s", [])
    daemon.answers["gpu"] = (
        200,
        {
            "devices": [
                {"gpu_id": 0, "name": "H100", "memory_total_gb": 80.0, "memory_free_gb": 1.0, "lost": None},
                {"gpu_id": 1, "name": "H100", "memory_total_gb": 80.0, "memory_free_gb": 79.0, "lost": None},
                {
                    "gpu_id": 2,
                    "name": "H100",
                    "memory_total_gb": 80.0,
                    "memory_free_gb": 79.0,
                    "lost": "gone",
                },
            ]
        },
    )
    try:
        words = ["--socket", daemon.path, "estimate", model(home, "Qwen2.5-7B-Instruct"), "--json"]
        assert main.run([*words, "--context", "8192"]) == 0
    finally:
        daemon.close()
    full, empty = json.loads(capsys.readouterr().out)["fits"]
    assert (full["gpu"], full["fits"]) == ("GPU 0, H100", False)
    assert (empty["gpu"], empty["fits"], empty["gpus"]) == ("GPU 1, H100", True, 1)
