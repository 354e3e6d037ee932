"""What the embedding server logs when it fails, against what sagectl makes of it.

The excerpts in tests/data/embedding are the last lines of real runs of sentence-transformers 6.2.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sagectl.plugin import EngineRequest, ExitStatus, FailureReport
from sagectl_embedding import EmbeddingKind
from sagectl_embedding.diagnoses import RULES
from sagectl_embedding.options import EmbeddingOptions

DATA = Path(__file__).parents[1] / "data" / "embedding"
REQUEST = EngineRequest(
    name="embed",
    model="some/model",
    host="127.0.0.1",
    port=8090,
    gpu_ids=None,
    python="/opt/embedding/bin/python",
    options=EmbeddingOptions(),
    probe=None,
    models_dir="/models",
    state_dir="/state",
)

# excerpt → words of the summary, words of the remedy, whether trying again may help
EXPECTED = {
    "architecture-unknown": ("architecture hyperbert9", "pip install --upgrade transformers", False),
    "config-broken": ("not valid JSON", "`model`", False),
    "gated-forbidden": ("gated", "HF_TOKEN", False),
    "gated-no-token": ("gated", "`env_file`", False),
    "max-input-tokens": ("up to 512 tokens", "`max_input_tokens` to 512", False),
    "memory-cpu": ("too little free memory", "`max_batch_tokens`", True),
    "model-unknown": ("knows no model some/model", "`model`", False),
    "module-unknown": ("no module Hyper", "pip install --upgrade sentence-transformers", False),
    "module-unsupported": ("begins with the module BoW", "`model`", False),
    "modules-broken": ("not valid JSON", "`model`", False),
    "no-cuda": ("without CUDA", "`gpu_ids`", False),
    "no-network": ("cannot be reached", "HF_ENDPOINT", True),
    "offline": ("HF_HUB_OFFLINE forbids", "`env`", False),
    "pooling-missing": ("module Pooling", "`model`", False),
    "port-in-use": ("Port 8090", "`port`", True),
    "remote-code": ("Python code of its own", "`trust_remote_code = true`", False),
    "revision-unknown": ("no such revision", "`model`", False),
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


@pytest.mark.parametrize("lines", [0, -10], ids=["all of it", "its last ten lines"])
@pytest.mark.parametrize("excerpt", EXPECTED)
def test_a_failure_is_told_in_words_to_act_on(excerpt: str, lines: int) -> None:
    summary, remedy, retryable = EXPECTED[excerpt]
    log = (DATA / f"{excerpt}.log").read_text(encoding="utf-8").splitlines()[lines:]
    diagnosis = EmbeddingKind().explain(REQUEST, report("\n".join(log)))
    assert diagnosis is not None
    assert summary in diagnosis.summary
    assert remedy in diagnosis.remedy
    assert diagnosis.retryable is retryable


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
        ("ModuleNotFoundError: No module named 'einops'", "lacks the module einops"),
        ("cannot listen on 10.0.0.9:8090: [Errno 99] cannot assign requested address", "10.0.0.9:8090"),
    ],
)
def test_failures_that_need_other_machines_are_recognised_by_their_documented_texts(
    line: str, words: str
) -> None:
    diagnosis = EmbeddingKind().explain(REQUEST, report(line))
    assert diagnosis is not None
    assert words in diagnosis.summary


def test_an_oom_kill_is_named_whatever_the_log_says() -> None:
    diagnosis = EmbeddingKind().explain(REQUEST, report("", ExitStatus(signal=9, oom_kill=True)))
    assert diagnosis is not None
    assert "memory ran out" in diagnosis.summary


@pytest.mark.parametrize("log", ["", "INFO ready after 3.0 s\nsomething new"])
def test_what_is_not_recognised_is_not_explained(log: str) -> None:
    assert EmbeddingKind().explain(REQUEST, report(log)) is None


def test_every_rule_fills_in_only_words_that_there_are() -> None:
    known = {"python", "model", "port", "name"}
    for rule in RULES:
        groups = set(re.compile(rule.pattern).groupindex)
        assert set(re.findall(r"\{(\w+)\}", rule.summary + rule.remedy)) <= known | groups
