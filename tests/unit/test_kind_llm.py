"""The kind `llm` with the back end transformers: what it plans and what it refuses."""

from __future__ import annotations

import json
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
)
from sagectl_llm import LlmKind, sagectl_engine_kinds
from sagectl_llm.options import LlmOptions
from sagectl_llm.owned_flags import owned
from sagectl_llm.transformers_backend import MODULES

KIND = LlmKind()
PYTHON = "/envs/transformers/bin/python"
HUB_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
INSTALLED = dict.fromkeys((*MODULES, "bitsandbytes"), "5.23.0")


def with_transformers(**options: Any) -> LlmOptions:
    return LlmOptions(backend="transformers", **options)


def request(options: LlmOptions | None = None, **changes: Any) -> EngineRequest[LlmOptions]:
    values: dict[str, Any] = {
        "name": "chat",
        "model": HUB_MODEL,
        "host": "127.0.0.1",
        "port": 8001,
        "gpu_ids": None,
        "python": PYTHON,
        "options": options or with_transformers(),
        "probe": None,
        "models_dir": "/models",
        "state_dir": "/state/chat",
    }
    return EngineRequest(**(values | changes))


def gathered(
    asked: EngineRequest[LlmOptions],
    files: dict[str, FileFacts] | None = None,
    interpreter: InterpreterFacts | None = None,
) -> Facts:
    answers: dict[Any, Any] = {}
    for query in KIND.facts(asked):
        if isinstance(query, InterpreterQuery):
            answers[query] = interpreter or InterpreterFacts({m: INSTALLED[m] for m in query.modules})
        elif isinstance(query, FileQuery):
            answers[query] = (files or {}).get(query.path, FileFacts("missing"))
    return Facts(answers)


def planned(asked: EngineRequest[LlmOptions], **known: Any) -> LaunchPlan:
    result = KIND.plan(asked, gathered(asked, **known))
    assert isinstance(result, LaunchPlan), result
    return result


def refused(asked: EngineRequest[LlmOptions], **known: Any) -> Refusal:
    result = KIND.plan(asked, gathered(asked, **known))
    assert isinstance(result, Refusal), result
    return result


def directory(path: str) -> dict[str, FileFacts]:
    return {path: FileFacts("directory"), f"{path}/config.json": FileFacts("file", 800)}


def test_the_package_brings_one_kind_that_fulfils_the_contract() -> None:
    (kind,) = sagectl_engine_kinds()
    assert isinstance(kind, EngineKind)
    assert kind.name == "llm"
    assert kind.default_port == 8001
    assert kind.listens(with_transformers())


def test_a_model_of_the_hub_is_served_under_its_own_name() -> None:
    plan = planned(request())
    assert plan.argv == (
        *(PYTHON, "-m", "transformers.cli.transformers", "serve", HUB_MODEL),
        *("--host", "127.0.0.1", "--port", "8001", "--device", "auto", "--dtype", "auto"),
    )
    assert plan.served_models == (HUB_MODEL,)
    assert plan.cwd is None


def test_a_model_below_models_dir_is_served_from_there_under_its_name() -> None:
    plan = planned(request(model="starter"), files={"/models/starter/config.json": FileFacts("file", 800)})
    assert plan.argv[4] == "starter"
    assert plan.cwd == "/models"
    assert plan.served_models == ("starter",)


def test_a_directory_is_served_under_its_path() -> None:
    plan = planned(
        request(model="/data/x/"), files={"/data/x/": FileFacts("directory")} | directory("/data/x")
    )
    assert plan.argv[4] == "/data/x"
    assert plan.served_models == ("/data/x",)


def test_a_directory_can_be_served_under_its_last_part() -> None:
    plan = planned(
        request(with_transformers(served_model_name="x"), model="/data/x"), files=directory("/data/x")
    )
    assert plan.argv[4] == "x"
    assert plan.cwd == "/data"
    assert plan.served_models == ("x",)


@pytest.mark.parametrize(("model", "where"), [("/data/x", "/data/x"), ("starter", "/models/starter")])
def test_a_directory_is_served_under_another_name_through_a_link(model: str, where: str) -> None:
    files = directory("/data/x") | directory("/models/starter")
    plan = planned(request(with_transformers(served_model_name="help"), model=model), files=files)
    assert plan.argv[1].endswith("run_named.py")
    assert plan.argv[2:6] == (where, "help", "serve", "help")
    assert plan.cwd is None
    assert plan.served_models == ("help",)
    assert f"{where}, called help" in plan.notes[1]


@pytest.mark.parametrize(
    ("model", "name"),
    [(HUB_MODEL, "other"), *(("/data/x", name) for name in ("a@b", "/x", "../x", "a/../b", "."))],
)
def test_a_served_name_that_the_server_cannot_answer_to_is_refused(model: str, name: str) -> None:
    refusal = refused(
        request(with_transformers(served_model_name=name), model=model), files=directory("/data/x")
    )
    assert "served_model_name" in refusal.reason
    assert "served_model_name" in refusal.remedy


@pytest.mark.parametrize(
    ("model", "files", "words"),
    [
        (None, {}, "no model is named"),
        ("", {}, "no model is named"),
        ("./x", {}, "relative"),
        ("~/x", {}, "relative"),
        ("/data/x", {}, "does not exist"),
        ("/data/x", {"/data/x": FileFacts("directory")}, "holds no config.json"),
        ("/data/x", {"/data/x": FileFacts("file")}, "is not a directory"),
        ("/data/x@2", directory("/data/x@2"), "revision"),
    ],
)
def test_a_model_that_cannot_be_found_is_refused(model: Any, files: Any, words: str) -> None:
    assert words in refused(request(model=model), files=files).reason


@pytest.mark.parametrize(
    ("gpu_ids", "device", "flag"),
    [
        (None, None, "auto"),
        ((), None, "cpu"),
        ((), "auto", "cpu"),
        ((), "cpu", "cpu"),
        (None, "cpu", "cpu"),
        (None, "cuda:1", "cuda:1"),
        ((0, 1), None, "auto"),
        ((1,), "cuda", "cuda"),
    ],
)
def test_the_device_follows_the_gpus(gpu_ids: Any, device: str | None, flag: str) -> None:
    argv = planned(request(with_transformers(device=device), gpu_ids=gpu_ids)).argv
    assert argv[argv.index("--device") + 1] == flag


@pytest.mark.parametrize(("gpu_ids", "device"), [((), "cuda"), ((0,), "cpu")])
def test_a_device_that_contradicts_the_gpus_is_refused(gpu_ids: Any, device: str) -> None:
    refusal = refused(request(with_transformers(device=device), gpu_ids=gpu_ids))
    assert f'device = "{device}"' in refusal.reason
    assert "use_gpu = false" in refusal.remedy


def test_cuda_visible_devices_is_left_to_the_daemon() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in planned(request(gpu_ids=(0,))).env


def test_every_option_becomes_its_flag() -> None:
    options = with_transformers(
        dtype="float32",
        trust_remote_code=True,
        continuous_batching=True,
        quantization="bnb-4bit",
        attn_implementation="sdpa",
        threads=4,
        extra_args=("--cb-block-size", "32"),
    )
    plan = planned(request(options))
    assert plan.argv[11:] == (
        *("--dtype", "float32", "--trust-remote-code", "--continuous-batching"),
        *("--quantization", "bnb-4bit", "--attn-implementation", "sdpa", "--cb-block-size", "32"),
    )
    assert plan.env["OMP_NUM_THREADS"] == "4"


def test_nothing_is_sent_home_and_the_hub_is_asked_unless_the_user_forbids_it() -> None:
    env = planned(request()).env
    assert env["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert env["HF_HUB_DISABLE_UPDATE_CHECK"] == "1"
    assert "HF_HUB_OFFLINE" not in env
    assert "OMP_NUM_THREADS" not in env


def test_ready_means_health_and_one_generated_token_of_this_model() -> None:
    probes = planned(request()).probes
    health, token = probes.startup
    assert health == probes.readiness == probes.liveness == HttpProbe("/health")
    assert isinstance(token, HttpProbe)
    assert (token.method, token.path) == ("POST", "/v1/completions")
    assert json.loads(token.body or "") == {"model": HUB_MODEL, "prompt": "Hello", "max_tokens": 1}
    assert token.json_path == ("usage", "completion_tokens")


def test_the_users_probe_takes_the_place_of_health() -> None:
    probe = HttpProbe("/my-health")
    probes = planned(request(probe=probe)).probes
    assert (probes.startup[0], probes.readiness, probes.liveness) == (probe, probe, probe)
    assert len(probes.startup) == 2


@pytest.mark.parametrize("module", MODULES)
def test_a_missing_module_is_refused_with_the_key_and_the_command(module: str) -> None:
    found = InterpreterFacts(INSTALLED | {module: None})
    refusal = refused(request(), interpreter=found)
    assert module in refusal.reason
    assert PYTHON in refusal.reason
    assert "[defaults.llm] python = " in refusal.remedy
    assert f"{PYTHON} -m pip install" in refusal.remedy


def test_quantization_needs_bitsandbytes() -> None:
    asked = request(with_transformers(quantization="bnb-8bit"))
    refusal = refused(asked, interpreter=InterpreterFacts(INSTALLED | {"bitsandbytes": None}))
    assert "bitsandbytes" in refusal.reason
    assert "bitsandbytes" in refusal.remedy


def test_an_interpreter_that_cannot_be_run_is_refused() -> None:
    refusal = refused(request(), interpreter=InterpreterFacts({}, error="No such file or directory"))
    assert "No such file" in refusal.reason
    assert "[defaults.llm] python" in refusal.remedy


@pytest.mark.parametrize(
    ("version", "enough"), [("4.57.6", False), ("5.5.4", False), ("5.6.0", True), ("6.0", True), ("", True)]
)
def test_an_old_transformers_is_refused(version: str, enough: bool) -> None:
    asked = request()
    result = KIND.plan(
        asked, gathered(asked, interpreter=InterpreterFacts(INSTALLED | {"transformers": version}))
    )
    assert isinstance(result, LaunchPlan) is enough


@pytest.mark.parametrize("flag", [*owned("transformers"), "--port=9"])
def test_flags_that_sagectl_owns_are_refused_in_extra_args(flag: str) -> None:
    with pytest.raises(ValueError, match="extra_args") as error:
        with_transformers(extra_args=(flag,))
    assert flag.partition("=")[0] in str(error.value)


@pytest.mark.parametrize("key", ["max_model_len", "threads"])
def test_a_count_below_one_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        with_transformers(**{key: 0})


def test_a_limit_that_the_server_does_not_enforce_is_said() -> None:
    assert any(
        "max_model_len = 4096" in note
        for note in planned(request(with_transformers(max_model_len=4096))).notes
    )


def test_a_missing_port_is_refused() -> None:
    assert "port" in refused(request(port=None)).remedy
