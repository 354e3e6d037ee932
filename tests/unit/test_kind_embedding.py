"""The kind `embedding` and its back end sentence-transformers: what it plans and what it refuses."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sagectl.plugin import (
    EngineKind,
    EngineRequest,
    Facts,
    FileFacts,
    FileQuery,
    HttpProbe,
    InterpreterFacts,
    InterpreterQuery,
    LaunchPlan,
    Refusal,
    TcpProbe,
)
from sagectl_embedding import EmbeddingKind, sagectl_engine_kinds
from sagectl_embedding.options import OWNED_FLAGS, EmbeddingOptions
from sagectl_embedding.sentence_transformers_backend import MODULES, SERVER

KIND = EmbeddingKind()
PYTHON = "/envs/embedding/bin/python"
HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
INSTALLED = {"sentence_transformers": "6.2.0", "torch": "2.13.0", "aiohttp": "3.14.5"}


def request(options: EmbeddingOptions | None = None, **changes: Any) -> EngineRequest[EmbeddingOptions]:
    values: dict[str, Any] = {
        "name": "embed",
        "model": HUB_MODEL,
        "host": "127.0.0.1",
        "port": 8090,
        "gpu_ids": None,
        "python": PYTHON,
        "options": options or EmbeddingOptions(),
        "probe": None,
        "models_dir": "/models",
        "state_dir": "/state/embed",
    }
    return EngineRequest(**(values | changes))


def gathered(
    asked: EngineRequest[EmbeddingOptions],
    files: dict[str, FileFacts] | None = None,
    interpreter: InterpreterFacts | None = None,
) -> Facts:
    answers: dict[Any, Any] = {}
    for query in KIND.facts(asked):
        if isinstance(query, InterpreterQuery):
            answers[query] = interpreter or InterpreterFacts(INSTALLED, version="3.12.1")
        elif isinstance(query, FileQuery):
            answers[query] = (files or {}).get(query.path, FileFacts("missing"))
    return Facts(answers)


def planned(asked: EngineRequest[EmbeddingOptions], **known: Any) -> LaunchPlan:
    result = KIND.plan(asked, gathered(asked, **known))
    assert isinstance(result, LaunchPlan), result
    return result


def refused(asked: EngineRequest[EmbeddingOptions], **known: Any) -> Refusal:
    result = KIND.plan(asked, gathered(asked, **known))
    assert isinstance(result, Refusal), result
    return result


def flag(plan: LaunchPlan, name: str) -> str:
    return plan.argv[plan.argv.index(name) + 1]


def directory(path: str, mark: str = "modules.json") -> dict[str, FileFacts]:
    return {path: FileFacts("directory"), f"{path}/{mark}": FileFacts("file", 300)}


def test_the_package_brings_one_kind_that_fulfils_the_contract() -> None:
    (kind,) = sagectl_engine_kinds()
    assert isinstance(kind, EngineKind)
    assert kind.name == "embedding"
    assert kind.default_port == 8090
    assert kind.listens(EmbeddingOptions())


def test_a_model_of_the_hub_is_served_on_the_cpu_under_its_own_name() -> None:
    plan = planned(request())
    assert plan.argv == (
        *(PYTHON, SERVER, "--model", HUB_MODEL, "--name", HUB_MODEL),
        *("--host", "127.0.0.1", "--port", "8090", "--device", "cpu", "--dtype", "auto"),
    )
    assert plan.served_models == (HUB_MODEL,)


def test_the_server_is_a_file_beside_the_kind() -> None:
    assert Path(SERVER).is_absolute()
    assert Path(SERVER).is_file()


@pytest.mark.parametrize("mark", ["modules.json", "config.json"])
def test_a_model_below_models_dir_is_served_from_there_under_its_name(mark: str) -> None:
    plan = planned(request(model="minilm"), files=directory("/models/minilm", mark))
    assert flag(plan, "--model") == "/models/minilm"
    assert plan.served_models == ("minilm",)


def test_a_directory_is_served_under_its_path_or_the_name_that_is_set() -> None:
    assert planned(request(model="/data/x/"), files=directory("/data/x")).served_models == ("/data/x",)
    asked = request(EmbeddingOptions(served_model_name="mini"), model="/data/x")
    plan = planned(asked, files=directory("/data/x"))
    assert (flag(plan, "--model"), flag(plan, "--name")) == ("/data/x", "mini")
    assert plan.served_models == ("mini",)


@pytest.mark.parametrize(
    ("model", "files", "words"),
    [
        (None, {}, "no model is named"),
        ("", {}, "no model is named"),
        ("./x", {}, "relative"),
        ("~/x", {}, "relative"),
        ("/data/x", {}, "does not exist"),
        ("/data/x", {"/data/x": FileFacts("directory")}, "holds no modules.json"),
        ("/data/x", {"/data/x": FileFacts("file")}, "is not a directory"),
        ("/data/x", {"/data/x": FileFacts("missing", error="permission denied")}, "permission denied"),
    ],
)
def test_a_model_that_cannot_be_found_is_refused(model: Any, files: Any, words: str) -> None:
    assert words in refused(request(model=model), files=files).reason


@pytest.mark.parametrize(
    ("gpu_ids", "device", "expected"),
    [
        (None, None, "cpu"),
        ((), None, "cpu"),
        ((), "cpu", "cpu"),
        ((1,), None, "cuda"),
        ((1,), "cuda:0", "cuda:0"),
        (None, "cuda:1", "cuda:1"),
    ],
)
def test_it_runs_on_the_cpu_unless_a_gpu_is_given_or_named(
    gpu_ids: Any, device: str | None, expected: str
) -> None:
    plan = planned(request(EmbeddingOptions(device=device), gpu_ids=gpu_ids))
    assert flag(plan, "--device") == expected
    assert plan.env.get("CUDA_VISIBLE_DEVICES") == ("" if expected == "cpu" else None)


@pytest.mark.parametrize(
    ("gpu_ids", "device", "words"),
    [((), "cuda", "given no GPU"), ((0,), "cpu", "given the GPU 0"), ((0, 1), None, "uses one GPU")],
)
def test_a_device_that_contradicts_the_gpus_is_refused(gpu_ids: Any, device: str | None, words: str) -> None:
    assert words in refused(request(EmbeddingOptions(device=device), gpu_ids=gpu_ids)).reason


def test_every_option_becomes_its_flag() -> None:
    options = EmbeddingOptions(
        dtype="bfloat16",
        max_batch_size=8,
        max_batch_tokens=2048,
        max_wait=0.005,
        max_queue=100,
        max_input_tokens=128,
        truncate=True,
        normalize=True,
        matryoshka=True,
        trust_remote_code=True,
        threads=2,
        extra_args=("--x", "1"),
    )
    plan = planned(request(options))
    assert plan.argv[12:] == (
        *("--dtype", "bfloat16", "--max-batch-size", "8", "--max-batch-tokens", "2048"),
        *("--max-wait", "0.005", "--max-queue", "100", "--max-input-tokens", "128", "--threads", "2"),
        *("--truncate", "--normalize", "--matryoshka", "--trust-remote-code", "--x", "1"),
    )
    assert plan.env["OMP_NUM_THREADS"] == "2"


def test_nothing_is_sent_home_and_the_hub_is_asked_unless_the_user_forbids_it() -> None:
    env = planned(request()).env
    assert env["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert "HF_HUB_OFFLINE" not in env
    assert "OMP_NUM_THREADS" not in env


def test_ready_means_health_and_one_embedding_of_this_model() -> None:
    probes = planned(request()).probes
    health, first = probes.startup
    assert health == probes.readiness == probes.liveness == HttpProbe("/health")
    assert isinstance(first, HttpProbe)
    assert json.loads(first.body or "")["model"] == HUB_MODEL
    assert first.json_path == ("data", 0, "embedding")


def test_a_probe_of_the_user_replaces_health() -> None:
    probes = planned(request(probe=TcpProbe())).probes
    assert probes.startup[0] == probes.liveness == TcpProbe()


@pytest.mark.parametrize(
    ("interpreter", "reason"),
    [
        (InterpreterFacts(dict.fromkeys(MODULES), error="no such file"), "cannot be run: no such file"),
        (InterpreterFacts(INSTALLED | {"aiohttp": None}), "lacks aiohttp"),
        (InterpreterFacts(dict.fromkeys(MODULES)), "lacks the modules sentence_transformers, torch, aiohttp"),
        (InterpreterFacts(INSTALLED | {"sentence_transformers": "3.4.1"}), "sentence-transformers 3.4.1"),
        (InterpreterFacts(INSTALLED, version="3.10.2"), "Python 3.10.2"),
    ],
)
def test_an_interpreter_that_cannot_serve_is_refused_before_anything_runs(
    interpreter: InterpreterFacts, reason: str
) -> None:
    refusal = refused(request(), interpreter=interpreter)
    assert reason in refusal.reason
    assert "[defaults.embedding] python" in refusal.remedy or "pip install" in refusal.remedy


def test_missing_modules_name_the_key_and_the_command() -> None:
    remedy = refused(request(), interpreter=InterpreterFacts(dict.fromkeys(MODULES))).remedy
    assert "[defaults.embedding] python" in remedy
    assert f"{PYTHON} -m pip install 'sentence-transformers>=5.0' aiohttp" in remedy


def test_an_unknown_version_is_not_refused() -> None:
    planned(request(), interpreter=InterpreterFacts(dict.fromkeys(MODULES, "")))


def test_without_a_port_there_is_no_plan() -> None:
    assert "port" in refused(request(port=None)).reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_input_tokens": -1}, "max_input_tokens"),
        ({"threads": 0}, "threads"),
        ({"max_wait": -1.0}, "max_wait"),
        ({"max_wait": 60.0}, "max_wait"),
        ({"served_model_name": ""}, "served_model_name"),
        ({"extra_args": ("--port=1",)}, "set `port` instead"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EmbeddingOptions(**options)


def test_sagectls_own_flags_are_all_guarded() -> None:
    options = EmbeddingOptions(
        max_batch_size=1,
        max_batch_tokens=1,
        max_queue=1,
        max_wait=1.0,
        max_input_tokens=1,
        truncate=True,
        normalize=True,
        matryoshka=True,
        trust_remote_code=True,
        threads=1,
    )
    flags = {word for word in planned(request(options)).argv if word.startswith("--")}
    assert flags == set(OWNED_FLAGS["sentence-transformers"])


def test_every_option_has_a_help() -> None:
    assert all(field.metadata["help"] for field in fields(EmbeddingOptions))
