"""The kind `llm` with the back end vllm: what it plans and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sagectl.plugin import (
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
from sagectl_llm import LlmKind
from sagectl_llm.options import ONLY_TRANSFORMERS, ONLY_VLLM, LlmOptions
from sagectl_llm.owned_flags import owned

KIND = LlmKind()
PYTHON = "/envs/vllm/bin/python"
HUB_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
CUDA = {"vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.19.0"}
CPU = CUDA | {"torch": "2.13.0+cpu"}
SERVE = (PYTHON, "-m", "vllm.entrypoints.openai.api_server")


def request(options: LlmOptions | None = None, **changes: Any) -> EngineRequest[LlmOptions]:
    values: dict[str, Any] = {
        "name": "chat",
        "model": HUB_MODEL,
        "host": "127.0.0.1",
        "port": 8001,
        "gpu_ids": (0,),
        "python": PYTHON,
        "options": options or LlmOptions(backend="vllm"),
        "probe": None,
        "models_dir": "/models",
        "state_dir": "/state/chat",
    }
    return EngineRequest(**(values | changes))


def gathered(
    asked: EngineRequest[LlmOptions],
    files: dict[str, FileFacts] | None = None,
    modules: dict[str, str] | None = None,
    error: str | None = None,
) -> Facts:
    """Answers to what the kind asks; a module that is not named is missing."""
    answers: dict[Any, Any] = {}
    installed = CUDA if modules is None else modules
    for query in KIND.facts(asked):
        if isinstance(query, InterpreterQuery):
            answers[query] = InterpreterFacts({m: installed.get(m) for m in query.modules}, error=error)
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


def with_vllm(**options: Any) -> LlmOptions:
    return LlmOptions(backend="vllm", **options)


def value_of(plan: LaunchPlan, flag: str) -> str | None:
    return plan.argv[plan.argv.index(flag) + 1] if flag in plan.argv else None


# --- the back end ------------------------------------------------------------------------------


def test_auto_takes_vllm_where_the_interpreter_has_it() -> None:
    assert planned(request(LlmOptions())).argv[:3] == SERVE


def test_auto_takes_transformers_where_there_is_no_vllm() -> None:
    modules = dict.fromkeys(("torch", "transformers", "accelerate"), "5.23.0")
    modules |= dict.fromkeys(("fastapi", "uvicorn", "openai", "pydantic"), "1.0")
    plan = planned(request(LlmOptions()), modules=modules)
    assert plan.argv[2] == "transformers.cli.transformers"


def test_auto_without_either_says_what_is_missing() -> None:
    refusal = refused(request(LlmOptions()), modules={"torch": "2.13.0"})
    assert "transformers" in refusal.reason
    assert "[defaults.llm] python" in refusal.remedy


def test_auto_refuses_an_option_that_the_installed_one_lacks() -> None:
    refusal = refused(request(LlmOptions(enable_lora=True)), modules={"transformers": "5.23.0"})
    assert "enable_lora" in refusal.reason
    assert 'backend = "vllm"' in refusal.remedy
    refusal = refused(request(LlmOptions(continuous_batching=True)))
    assert "continuous_batching" in refusal.reason


def test_auto_refuses_a_flag_that_sagectl_sets_for_the_chosen_one() -> None:
    refusal = refused(request(LlmOptions(extra_args=("--served_model_name=x",))))
    assert "--served_model_name" in refusal.reason
    assert "`served_model_name`" in refusal.remedy


@pytest.mark.parametrize(("backend", "foreign"), [("vllm", ONLY_TRANSFORMERS), ("transformers", ONLY_VLLM)])
def test_an_option_of_the_other_back_end_is_refused_by_name(backend: Any, foreign: dict[str, str]) -> None:
    values: dict[str, Any] = {"speculative_config": {"method": "ngram"}, "gpu_memory_utilization": 0.5}
    for key in foreign:
        default = LlmOptions.__dataclass_fields__[key].default
        value = values.get(key, True if isinstance(default, bool) else 2)
        extra = {"tool_call_parser": "hermes"} if key == "enable_auto_tool_choice" else {}
        with pytest.raises(ValueError, match=f"means nothing to the back end {backend}"):
            LlmOptions(backend=backend, **({key: value} | extra))


def test_every_option_is_of_one_back_end_or_of_both() -> None:
    both = {"backend", "dtype", "max_model_len", "trust_remote_code", "quantization"}
    both |= {"served_model_name", "threads", "extra_args"}
    assert set(LlmOptions.__dataclass_fields__) == both | set(ONLY_VLLM) | set(ONLY_TRANSFORMERS)


def test_the_names_of_quantizations_are_each_back_ends_own() -> None:
    with pytest.raises(ValueError, match="bitsandbytes"):
        with_vllm(quantization="bnb-4bit")
    with pytest.raises(ValueError, match="quantization"):
        LlmOptions(backend="transformers", quantization="awq")


# --- the command -------------------------------------------------------------------------------


def test_a_model_of_the_hub_on_one_gpu() -> None:
    plan = planned(request())
    assert plan.argv == (
        *SERVE,
        *("--model", HUB_MODEL, "--served-model-name", HUB_MODEL, "--host", "127.0.0.1", "--port", "8001"),
        *("--dtype", "auto", "--disable-access-log-for-endpoints", "/health,/metrics"),
    )
    assert plan.served_models == (HUB_MODEL,)
    assert "VLLM_CPU_KVCACHE_SPACE" not in plan.env
    assert plan.env["VLLM_NO_USAGE_STATS"] == plan.env["DO_NOT_TRACK"] == "1"


def test_a_model_below_models_dir_is_served_under_its_name() -> None:
    plan = planned(request(model="starter"), files={"/models/starter/config.json": FileFacts("file")})
    assert value_of(plan, "--model") == "/models/starter"
    assert plan.served_models == ("starter",)


def test_a_directory_can_be_served_under_any_name() -> None:
    files = {"/data/x": FileFacts("directory"), "/data/x/config.json": FileFacts("file")}
    assert planned(request(model="/data/x"), files=files).served_models == ("/data/x",)
    plan = planned(request(with_vllm(served_model_name="chat"), model="/data/x"), files=files)
    assert plan.served_models == ("chat",)
    assert value_of(plan, "--served-model-name") == "chat"


@pytest.mark.parametrize("files", [{}, {"/data/x": FileFacts("directory")}, {"/data/x": FileFacts("file")}])
def test_a_directory_without_a_model_is_refused_before_anything_runs(files: dict[str, FileFacts]) -> None:
    assert "/data/x" in refused(request(model="/data/x"), files=files).reason


def test_every_option_becomes_its_flag() -> None:
    options = with_vllm(
        dtype="float16", max_model_len=8192, tensor_parallel_size=2, pipeline_parallel_size=2,
        quantization="fp8", enforce_eager=True, max_num_seqs=16, max_num_batched_tokens=4096,
        kv_cache_dtype="fp8", kv_cache_memory="1.5GiB", gpu_memory_utilization=0.7, enable_sleep_mode=True,
        enable_lora=True, max_loras=2, max_lora_rank=32, trust_remote_code=True, chat_template="{{ x }}",
        enable_auto_tool_choice=True, tool_call_parser="hermes", reasoning_parser="qwen3", seed=7,
        revision="v2", tokenizer="other/tokenizer", load_format="dummy", shutdown_timeout=5, threads=3,
        enable_prefix_caching=False, speculative_config={"method": "ngram"},
        extra_args=("--block-size", "32"),
    )  # fmt: skip
    plan = planned(request(options, gpu_ids=(0, 1, 2, 3)))
    pairs = {
        "--dtype": "float16", "--max-model-len": "8192", "--tensor-parallel-size": "2",
        "--pipeline-parallel-size": "2", "--quantization": "fp8", "--max-num-seqs": "16",
        "--max-num-batched-tokens": "4096", "--kv-cache-dtype": "fp8",
        "--kv-cache-memory-bytes": "1610612736",
        "--gpu-memory-utilization": "0.7", "--max-loras": "2", "--max-lora-rank": "32",
        "--chat-template": "{{ x }}", "--tool-call-parser": "hermes", "--reasoning-parser": "qwen3",
        "--seed": "7", "--revision": "v2", "--tokenizer": "other/tokenizer", "--load-format": "dummy",
        "--shutdown-timeout": "5", "--speculative-config": '{"method": "ngram"}',
    }  # fmt: skip
    assert {flag: value_of(plan, flag) for flag in pairs} == pairs
    switches = {"--enforce-eager", "--enable-sleep-mode", "--enable-lora", "--trust-remote-code"}
    assert {*switches, "--enable-auto-tool-choice", "--no-enable-prefix-caching"} <= set(plan.argv)
    assert plan.argv[-2:] == ("--block-size", "32")
    assert plan.env["OMP_NUM_THREADS"] == "3"


# --- devices -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gpu_ids", "modules"), [((), CPU), (None, CPU)])
def test_on_the_cpu_it_takes_little_memory_and_no_threads_for_its_own(
    gpu_ids: Any, modules: dict[str, str]
) -> None:
    plan = planned(request(gpu_ids=gpu_ids), modules=modules)
    assert plan.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert plan.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert value_of(plan, "--max-model-len") == "auto"
    assert any("the CPU" in note for note in plan.notes)


def test_what_the_user_says_about_the_cache_holds_on_the_cpu_too() -> None:
    plan = planned(request(with_vllm(kv_cache_memory="256MiB"), gpu_ids=()), modules=CPU)
    assert value_of(plan, "--kv-cache-memory-bytes") == str(256 << 20)
    assert "VLLM_CPU_KVCACHE_SPACE" not in plan.env
    assert "--max-model-len" not in plan.argv
    plan = planned(request(with_vllm(extra_args=("--max_model_len=64",)), gpu_ids=()), modules=CPU)
    assert "--max-model-len" not in plan.argv


def test_unmanaged_gpus_are_left_to_vllm() -> None:
    plan = planned(request(gpu_ids=None))
    assert "--max-model-len" not in plan.argv
    assert "CUDA_VISIBLE_DEVICES" not in plan.env


def test_gpus_with_a_build_for_the_cpu_are_refused() -> None:
    refusal = refused(request(gpu_ids=(0,)), modules=CPU)
    assert "2.13.0+cpu" in refusal.reason
    assert "use_gpu = false" in refusal.remedy


def test_a_share_of_the_card_is_passed_on() -> None:
    assert value_of(planned(request(gpu_memory="70%")), "--gpu-memory-utilization") == "0.7"
    both = request(with_vllm(gpu_memory_utilization=0.5), gpu_memory="70%")
    assert value_of(planned(both), "--gpu-memory-utilization") == "0.5"
    for other in ("auto", 4 << 30, None):
        assert "--gpu-memory-utilization" not in planned(request(gpu_memory=other)).argv
    assert "--gpu-memory-utilization" not in planned(request(gpu_memory="70%", gpu_ids=()), modules=CPU).argv


def test_several_gpus_share_each_layer_unless_said_otherwise() -> None:
    assert value_of(planned(request(gpu_ids=(2, 3))), "--tensor-parallel-size") == "2"
    plan = planned(request(with_vllm(pipeline_parallel_size=2), gpu_ids=(0, 1, 2, 3)))
    assert value_of(plan, "--tensor-parallel-size") == "2"
    plan = planned(request(with_vllm(tensor_parallel_size=1), gpu_ids=(2, 3)))
    assert "--tensor-parallel-size" not in plan.argv


def test_more_parallelism_than_gpus_is_refused_with_the_figures() -> None:
    refusal = refused(request(with_vllm(tensor_parallel_size=4), gpu_ids=(0, 1)))
    assert "4" in refusal.reason
    assert "[0, 1]" in refusal.reason
    refusal = refused(request(with_vllm(pipeline_parallel_size=2), gpu_ids=(0, 1, 2)))
    assert "pipeline_parallel_size = 2" in refusal.reason


def test_automatic_parallelism_takes_all_gpus_where_they_are_not_managed() -> None:
    auto = with_vllm(tensor_parallel_size="auto")
    assert value_of(planned(request(auto, gpu_ids=(0, 1))), "--tensor-parallel-size") == "2"
    assert value_of(planned(request(auto, gpu_ids=None)), "--tensor-parallel-size") is None
    both = with_vllm(tensor_parallel_size="auto", pipeline_parallel_size=2)
    plan = planned(request(both, gpu_ids=(0, 1, 2, 3)))
    assert value_of(plan, "--tensor-parallel-size") == value_of(plan, "--pipeline-parallel-size") == "2"


def test_sleep_mode_is_refused_on_the_cpu() -> None:
    assert (
        "enable_sleep_mode"
        in refused(request(with_vllm(enable_sleep_mode=True), gpu_ids=()), modules=CPU).reason
    )


# --- ready -------------------------------------------------------------------------------------


def test_ready_means_health_the_served_name_and_one_generated_token() -> None:
    probes = planned(request()).probes
    health, served, token = probes.startup
    assert health == probes.readiness == probes.liveness == HttpProbe("/health")
    assert served == HttpProbe("/v1/models", contains=f'"id":"{HUB_MODEL}"', bearer_env="VLLM_API_KEY")
    assert isinstance(token, HttpProbe)
    assert (token.method, token.path, token.bearer_env) == ("POST", "/v1/completions", "VLLM_API_KEY")
    assert json.loads(token.body or "")["max_tokens"] == 1
    assert token.json_path == ("usage", "completion_tokens")


def test_the_users_probe_takes_the_place_of_health() -> None:
    probe = HttpProbe("/ping")
    probes = planned(request(probe=probe)).probes
    assert (probes.startup[0], probes.readiness, probes.liveness) == (probe, probe, probe)


# --- the interpreter and the flags ---------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(CUDA))
def test_a_missing_module_is_refused_with_the_key_and_the_command(module: str) -> None:
    refusal = refused(request(), modules={m: v for m, v in CUDA.items() if m != module})
    assert f"{PYTHON} lacks {module}" in refusal.reason
    assert "[defaults.llm] python" in refusal.remedy
    assert "pip install vllm" in refusal.remedy


def test_an_interpreter_that_cannot_be_run_is_refused() -> None:
    assert "No such file" in refused(request(), error="No such file or directory").reason


@pytest.mark.parametrize("flag", sorted(owned("vllm")))
@pytest.mark.parametrize("form", ["{0}", "{0}=x", "{1}", "{1}=x"])
def test_flags_that_sagectl_owns_are_refused_however_they_are_written(flag: str, form: str) -> None:
    written = form.format(flag, "--" + flag[2:].replace("-", "_"))
    with pytest.raises(ValueError, match="extra_args") as error:
        with_vllm(extra_args=("--block-size", "32", written))
    assert "belongs to sagectl" in str(error.value)


@pytest.mark.parametrize("written", ["-tp", "-tp2", "-pp=2", "--por", "--api-k=x", "--no-trust-remote-code"])
def test_short_and_shortened_forms_are_meant_too(written: str) -> None:
    with pytest.raises(ValueError, match="belongs to sagectl"):
        with_vllm(extra_args=(written,))


@pytest.mark.parametrize("backend", ["auto", "vllm", "transformers"])
@pytest.mark.parametrize(("flag", "variable"), [("--api-key", "VLLM_API_KEY"), ("--hf-token", "HF_TOKEN")])
def test_a_secret_in_the_arguments_is_refused_with_the_place_for_it(
    backend: Any, flag: str, variable: str
) -> None:
    with pytest.raises(ValueError, match="env_file") as error:
        LlmOptions(backend=backend, extra_args=(f"{flag}=s3cret",))
    assert variable in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--enforce-eager",),
        ("--max-log-len", "5"),
        ("--config-format", "hf"),
        ("-cc", "3"),
        ("-O3",),
        ("--kv-transfer-config", '{"kv_connector": "x"}'),
        ("--seed", "-1"),
    ],
)
def test_other_flags_pass_through(arguments: tuple[str, ...]) -> None:
    plan = planned(request(with_vllm(extra_args=arguments)))
    assert plan.argv[-len(arguments) :] == arguments


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization"),
        ({"kv_cache_memory": "4"}, "kv_cache_memory"),
        ({"kv_cache_memory": "0GiB"}, "kv_cache_memory"),
        ({"kv_cache_memory": "lots"}, "kv_cache_memory"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"shutdown_timeout": -1}, "shutdown_timeout"),
        ({"enable_auto_tool_choice": True}, "tool_call_parser"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        with_vllm(**values)


def test_a_missing_chat_template_is_refused_before_anything_runs() -> None:
    asked = request(with_vllm(chat_template="/nowhere/x.jinja"))
    assert "/nowhere/x.jinja" in refused(asked).reason
    assert planned(asked, files={"/nowhere/x.jinja": FileFacts("file")})
