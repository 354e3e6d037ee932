"""What `transformers serve` logs when it fails, against what sagectl makes of it.

The excerpts in tests/data/transformers are the last lines of real runs of transformers 5.23.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sagectl.plugin import EngineRequest, ExitStatus, FailureReport
from sagectl_llm import LlmKind
from sagectl_llm.diagnoses import RULES
from sagectl_llm.options import LlmOptions

DATA = Path(__file__).parents[1] / "data" / "transformers"
REQUEST = EngineRequest(
    name="chat",
    model="some/model",
    host="127.0.0.1",
    port=8001,
    gpu_ids=None,
    python="/opt/transformers/bin/python",
    options=LlmOptions(),
    probe=None,
    models_dir="/models",
    state_dir="/state",
)

# excerpt → words of the summary, words of the remedy, whether trying again may help
EXPECTED = {
    "architecture-unknown": ("architecture hyperllama9", "pip install --upgrade transformers", False),
    "architecture-unnamed": ("names no architecture", "`model`", False),
    "attention": ("`attn_implementation` = fast", "sdpa", False),
    "bitsandbytes-missing": ("package bitsandbytes", "pip install 'bitsandbytes>=", False),
    "config-broken": ("not valid JSON", "`model`", False),
    "dtype": ("`dtype` = float99", "bfloat16", False),
    "flash-attention-missing": ("FlashAttention", 'attn_implementation = "sdpa"', False),
    "gated-forbidden": ("gated", "HF_TOKEN", False),
    "gated-no-token": ("(401)", "`env_file`", False),
    "memory-cpu": ("too little free memory", '`dtype = "bfloat16"`', True),
    "model-unknown": ("knows no model some/model", "`model`", False),
    "no-cuda": ("without CUDA", '`device = "cpu"`', False),
    "no-network": ("cannot be reached", "HF_ENDPOINT", True),
    "not-a-language-model": ("cannot generate text", "`model`", False),
    "offline": ("not in the local cache", "`model`", True),
    "port-in-use": ("Port 8001", "`port`", True),
    "quantizer-missing": ("package gptqmodel", "`model` or `quantization`", False),
    "remote-code": ("Python code of its own", "`trust_remote_code = true`", False),
    "revision-unknown": ("revision v9", "`model`", False),
    "tokenizer-missing": ("no tokenizer", "tokenizer.json", False),
    "unknown-flag": ("no flag --no-such-flag", "`extra_args`", False),
    "weights-mismatch": ("do not have the shapes", "`model`", False),
    "weights-missing": ("no weights", "`model`", False),
    "weights-truncated": ("damaged or cut off", "`model`", False),
}


def report(log: str, exit_status: ExitStatus | None = None) -> FailureReport:
    return FailureReport("starting", exit_status or ExitStatus(code=1), tuple(log.splitlines()))


def test_every_excerpt_is_expected() -> None:
    assert {path.stem for path in DATA.glob("*.log")} == set(EXPECTED)


@pytest.mark.parametrize("excerpt", EXPECTED)
def test_a_failure_is_told_in_words_to_act_on(excerpt: str) -> None:
    summary, remedy, retryable = EXPECTED[excerpt]
    diagnosis = LlmKind().explain(REQUEST, report((DATA / f"{excerpt}.log").read_text(encoding="utf-8")))
    assert diagnosis is not None
    assert summary in diagnosis.summary
    assert remedy in diagnosis.remedy
    assert diagnosis.retryable is retryable


@pytest.mark.parametrize("excerpt", EXPECTED)
def test_the_last_ten_lines_are_enough(excerpt: str) -> None:
    lines = (DATA / f"{excerpt}.log").read_text(encoding="utf-8").splitlines()[-10:]
    assert LlmKind().explain(REQUEST, report("\n".join(lines))) is not None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB. GPU 0 has a total "
            "capacity of 23.68 GiB of which 512.00 MiB is free.",
            "GPU has too little free memory",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB. GPU 0 has a total "
            "capacity of 79.11 GiB of which 70.02 GiB is free. 3.20 GiB allowed; Of the allocated memory",
            "more GPU memory than sagectl reserved for it: torch may take 3.20 GiB",
        ),
        ("RuntimeError: Found no NVIDIA driver on your system.", "no usable GPU"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("PermissionError: [Errno 13] Permission denied: '/models/x/model.safetensors'", "/models/x/model"),
        ("ModuleNotFoundError: No module named 'fastapi'", "lacks a module"),
    ],
)
def test_failures_that_need_other_machines_are_recognised_by_their_documented_texts(
    line: str, words: str
) -> None:
    diagnosis = LlmKind().explain(REQUEST, report(line))
    assert diagnosis is not None
    assert words in diagnosis.summary


def test_an_oom_kill_is_named_whatever_the_log_says() -> None:
    diagnosis = LlmKind().explain(REQUEST, report("", ExitStatus(signal=9, oom_kill=True)))
    assert diagnosis is not None
    assert diagnosis.summary.endswith("because memory ran out.")
    worker = ExitStatus(code=1, oom_kill=True, oom_detail="process 7 (worker) held 1.0 GiB")
    diagnosis = LlmKind().explain(REQUEST, report("", worker))
    assert diagnosis is not None
    assert diagnosis.summary.endswith("because memory ran out: process 7 (worker) held 1.0 GiB.")


@pytest.mark.parametrize("log", ["", "INFO:     Application startup complete.\nsomething new"])
def test_what_is_not_recognised_is_not_explained(log: str) -> None:
    assert LlmKind().explain(REQUEST, report(log)) is None


def test_every_rule_fills_in_only_words_that_there_are() -> None:
    known = {"python", "model", "port", "name"}
    for rule in RULES:
        words = known | set(re.compile(rule.pattern).groupindex)
        assert set(re.findall(r"\{(\w+)\}", rule.summary + rule.remedy)) <= words, rule.pattern
