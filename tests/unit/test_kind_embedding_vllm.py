"""The kind `embedding` with the back end vllm, and what `auto` chooses: what it plans and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sagectl.plugin import (
    EngineRequest,
    Facts,
    FailureReport,
    FileFacts,
    FileQuery,
    HttpProbe,
    InterpreterFacts,
    InterpreterQuery,
    LaunchPlan,
    Refusal,
)
from sagectl_embedding import EmbeddingKind
from sagectl_embedding.options import ONLY_SENTENCE_TRANSFORMERS, ONLY_VLLM, EmbeddingOptions
from sagectl_models.vllm_server import OWNED_FLAGS

KIND = EmbeddingKind()
PYTHON = "/envs/vllm/bin/python"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CPU = {"vllm": "0.32.0+cpu", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
CUDA = {"vllm": "0.33.0", "torch": "2.13.0", "transformers": "5.23.0"}
OURS = {"sentence_transformers": "6.2.0", "aiohttp": "3.14.5"}


def request(options: EmbeddingOptions | None = None, **changes: Any) -> EngineRequest[EmbeddingOptions]:
    values: dict[str, Any] = {
        "name": "embed",
        "model": MODEL,
        "host": "127.0.0.1",
        "port": 8090,
        "gpu_ids": None,
        "python": PYTHON,
        "options": options or EmbeddingOptions(backend="vllm"),
        "probe": None,
        "models_dir": "/models",
        "state_dir": "/state/embed",
    }
    return EngineRequest(**(values | changes))


def decide(
    asked: EngineRequest[EmbeddingOptions],
    installed: dict[str, str],
    files: dict[str, FileFacts] | None = None,
) -> LaunchPlan | Refusal:
    answers: dict[Any, Any] = {}
    for query in KIND.facts(asked):
        if isinstance(query, InterpreterQuery):
            found = {module: installed.get(module) for module in query.modules}
            answers[query] = InterpreterFacts(found, version="3.12.1")
        elif isinstance(query, FileQuery):
            answers[query] = (files or {}).get(query.path, FileFacts("missing"))
    return KIND.plan(asked, Facts(answers))


def planned(asked: EngineRequest[EmbeddingOptions], installed: Any = None, **known: Any) -> LaunchPlan:
    result = decide(asked, installed or CPU, **known)
    assert isinstance(result, LaunchPlan), result
    return result


def refused(asked: EngineRequest[EmbeddingOptions], installed: Any = None) -> Refusal:
    result = decide(asked, installed or CPU)
    assert isinstance(result, Refusal), result
    return result


def test_the_pooling_runner_is_started_as_a_module_on_the_cpu() -> None:
    plan = planned(request())
    assert plan.argv == (
        *(PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL),
        *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", "8090"),
        *("--runner", "pooling", "--convert", "embed", "--dtype", "float32"),
        *("--disable-access-log-for-endpoints", "/health,/metrics"),
    )
    assert plan.env["CUDA_VISIBLE_DEVICES"] == ""
    assert plan.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert plan.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert plan.served_models == (MODEL,)


def test_on_gpus_the_build_for_cuda_keeps_its_own_choice_of_weights() -> None:
    plan = planned(request(gpu_ids=(0, 1), gpu_memory="30%"), CUDA)
    assert "--dtype auto --gpu-memory-utilization 0.3" in " ".join(plan.argv)
    assert plan.argv[plan.argv.index("--tensor-parallel-size") + 1] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in plan.env
    assert "VLLM_CPU_KVCACHE_SPACE" not in plan.env


@pytest.mark.parametrize(
    ("installed", "gpu_ids", "words"),
    [
        (CUDA, None, "for GPUs, and the engine is given none"),
        (CUDA, (), "for GPUs, and the engine is given none"),
        (CPU, (0,), "a vLLM for the CPU"),
        ({"torch": "2.13.0"}, None, "lacks vllm, transformers"),
    ],
)
def test_a_build_that_cannot_run_there_is_refused_before_anything_runs(
    installed: dict[str, str], gpu_ids: Any, words: str
) -> None:
    assert words in refused(request(gpu_ids=gpu_ids), installed).reason


def test_more_parts_than_gpus_are_refused() -> None:
    options = EmbeddingOptions(backend="vllm", tensor_parallel_size=4)
    assert "given 2 GPUs" in refused(request(options, gpu_ids=(0, 1)), CUDA).reason


def test_every_option_becomes_its_flag() -> None:
    options = EmbeddingOptions(
        backend="vllm",
        dtype="bfloat16",
        max_batch_size=8,
        max_batch_tokens=2048,
        max_queue=100,
        max_input_tokens=128,
        normalize=True,
        matryoshka=True,
        trust_remote_code=True,
        enforce_eager=True,
        quantization="fp8",
        kv_cache_memory="1GiB",
        gpu_memory_utilization=0.3,
        shutdown_timeout=3,
        threads=2,
        extra_args=("--disable-access-log-for-endpoints", "/x"),
    )
    plan = planned(request(options))
    assert plan.argv[15:] == (
        *("--dtype", "bfloat16", "--max-model-len", "128", "--max-num-seqs", "8"),
        *("--max-num-batched-tokens", "2048", "--max-num-queued-reqs", "100", "--quantization", "fp8"),
        *("--gpu-memory-utilization", "0.3", "--shutdown-timeout", "3"),
        *("--kv-cache-memory-bytes", str(2**30), "--trust-remote-code", "--enforce-eager"),
        *("--pooler-config", '{"use_activation": true}', "--hf-overrides", '{"is_matryoshka": true}'),
        *("--disable-access-log-for-endpoints", "/x"),
    )
    assert plan.env["OMP_NUM_THREADS"] == "2"
    assert "VLLM_CPU_KVCACHE_SPACE" not in plan.env


def test_a_revision_is_cut_off_the_name_but_not_off_a_directory() -> None:
    plan = planned(request(model="org/model@v2"))
    assert plan.argv[plan.argv.index("--model") + 1] == "org/model"
    assert plan.argv[plan.argv.index("--revision") + 1] == "v2"
    assert plan.served_models == ("org/model@v2",)
    files = {"/data/x@v2": FileFacts("directory"), "/data/x@v2/config.json": FileFacts("file", 300)}
    assert "--revision" not in planned(request(model="/data/x@v2"), files=files).argv


def test_ready_means_health_the_served_name_and_one_embedding() -> None:
    probes = planned(request()).probes
    health, served, first = probes.startup
    assert health == probes.readiness == probes.liveness == HttpProbe("/health")
    assert isinstance(served, HttpProbe)
    assert isinstance(first, HttpProbe)
    assert served.contains == f'"id":"{MODEL}"'
    assert json.loads(first.body or "")["model"] == MODEL
    assert first.json_path == ("data", 0, "embedding")
    assert served.bearer_env == first.bearer_env == "VLLM_API_KEY"


@pytest.mark.parametrize(
    ("installed", "backend"),
    [
        (CPU | OURS, "sentence-transformers"),
        (CPU, "vllm"),
        (OURS | {"torch": "2.13.0"}, "sentence-transformers"),
    ],
)
def test_auto_takes_the_smaller_server_where_both_are_installed(
    installed: dict[str, str], backend: str
) -> None:
    assert planned(request(EmbeddingOptions()), installed).notes[0].startswith(f"backend {backend}")


def test_auto_without_either_says_what_the_smaller_one_lacks() -> None:
    assert "sentence_transformers" in refused(request(EmbeddingOptions()), {"torch": "2.13.0"}).reason


def test_auto_refuses_options_of_the_back_end_that_is_not_there() -> None:
    refusal = refused(request(EmbeddingOptions(truncate=True)), CPU)
    assert "truncate: means nothing to the back end vllm, which is the one" in refusal.reason
    refusal = refused(request(EmbeddingOptions(extra_args=("--runner", "x"))), CPU)
    assert "--runner belongs to sagectl" in refusal.reason


@pytest.mark.parametrize("key", ONLY_VLLM)
def test_options_of_vllm_are_refused_by_the_other(key: str) -> None:
    values = {"enforce_eager": True, "quantization": "fp8", "gpu_memory_utilization": 0.5}
    with pytest.raises(ValueError, match=rf'{key}: means nothing .*backend = "vllm"'):
        EmbeddingOptions(backend="sentence-transformers", **{key: values.get(key, 1)})


@pytest.mark.parametrize("key", ONLY_SENTENCE_TRANSFORMERS)
def test_options_of_the_other_are_refused_by_vllm(key: str) -> None:
    values = {"device": "cpu", "max_wait": 0.5, "truncate": True}
    with pytest.raises(ValueError, match=rf'{key}: means nothing .*backend = "sentence-transformers"'):
        EmbeddingOptions(backend="vllm", **{key: values[key]})


@pytest.mark.parametrize("flag", [*OWNED_FLAGS, "--runner", "--max-model-len", "--max_model_len=4", "-tp2"])
def test_flags_that_sagectl_sets_are_refused(flag: str) -> None:
    with pytest.raises(ValueError, match="belongs to sagectl"):
        EmbeddingOptions(backend="vllm", extra_args=(flag,))


def test_a_flag_that_both_own_is_refused_before_the_choice() -> None:
    with pytest.raises(ValueError, match="--port belongs to sagectl"):
        EmbeddingOptions(extra_args=("--port", "1"))
    EmbeddingOptions(extra_args=("--runner", "x"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kv_cache_memory": "lots"}, "is not a size"),
        ({"kv_cache_memory": 0}, "kv_cache_memory"),
        ({"gpu_memory_utilization": 1.5}, "no share"),
        ({"shutdown_timeout": -1}, "negative"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EmbeddingOptions(**values)


@pytest.mark.parametrize("backend", ["vllm", "auto"])
def test_vllms_failures_are_told_in_words_that_fit_the_kind(backend: Any) -> None:
    log = (
        "(APIServer pid=1) INFO 11-21 06:44:54 [x.py:1] hello",
        "(EngineCore pid=2) ValueError: Failed to infer device type",
    )
    asked = request(EmbeddingOptions(backend=backend))
    diagnosis = KIND.explain(asked, FailureReport("starting", None, log))
    assert diagnosis is not None
    assert "[defaults.embedding] python" in diagnosis.remedy
    log = (log[0], "ValueError: Model X does not support `--runner pooling`.")
    diagnosis = KIND.explain(asked, FailureReport("starting", None, log))
    assert diagnosis is not None
    assert "computes no embeddings" in diagnosis.summary
