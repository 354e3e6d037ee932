"""Starts of the real vLLM that cannot work, under a real sagectld: each is told in words to act on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.acceptance.harness import Daemon, free_port

pytestmark = [pytest.mark.heavy, pytest.mark.vllm]

PATIENCE = 300.0
# engine → its keys, words of the reason, words of the remedy; all fail in the server itself
CLASSIC = {
    "context": ('model = "starter"\nmax_model_len = 999999', "made for 2048 tokens", "max_model_len = 2048"),
    "memory": (
        'model = "starter"\nmax_model_len = 2048\nkv_cache_memory = "1MB"',
        "One request of 2048 tokens",
        "`max_model_len = ",
    ),
    "flag": (
        'model = "starter"\nextra_args = ["--no-such-flag"]',
        "knows no flag --no-such-flag",
        "`extra_args`",
    ),
    "offline": ('model = "some/model"', "not in the local cache", "HF_HUB_OFFLINE"),
}


def test_each_classic_failure_is_told_in_words(daemon: Daemon, vllm_python: str, starter_model: Path) -> None:
    """Four engines start at once: too long a context, too little KV cache, an unknown flag, no such model.

    Result: each fails at once, without another try, with vLLM's reason in words and the key to change;
    `sagectl start` and `explain` show both.
    """
    (daemon.home / "models").mkdir()
    (daemon.home / "models" / "starter").symlink_to(starter_model)
    text = f"""
    [defaults.llm]
    python = "{vllm_python}"
    backend = "vllm"
    use_gpu = false
    enforce_eager = true
    env = {{ HF_HUB_OFFLINE = "1", HF_HOME = "{daemon.home}/hf" }}
    """
    for name, (keys, _, _) in CLASSIC.items():
        text += f'\n[engines.{name}]\nkind = "llm"\nautostart = true\nport = {free_port()}\n{keys}\n'
    daemon.configure(text)
    daemon.start()
    for name, (_, reason, remedy) in CLASSIC.items():
        engine = daemon.until_state(name, "failed", timeout=PATIENCE)
        assert engine["diagnosis"] is not None, engine
        assert reason in engine["diagnosis"]["summary"]
        assert remedy in engine["diagnosis"]["remedy"]
        assert engine["restart_count"] == 0
        told = daemon.cli("explain", name).stdout
        assert reason in told
        assert remedy in told


def test_what_can_be_seen_before_a_start_takes_no_start(
    daemon: Daemon, vllm_python: str, starter_model: Path
) -> None:
    """A directory without a model, a taken port, an interpreter without vLLM, GPUs for a build without.

    Result: refused at once, before any process, each with the key to change.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        engine = 'kind = "llm"\nrestart = { policy = "no" }'
        daemon.configure(
            f"""
            [defaults.llm]
            python = "{vllm_python}"
            backend = "vllm"
            [engines.nowhere]
            {engine}
            model = "/no/such/model"
            port = {free_port()}
            [engines.taken]
            {engine}
            model = "{starter_model}"
            port = {port}
            [engines.bare]
            {engine}
            python = "/usr/bin/env"
            model = "{starter_model}"
            port = {free_port()}
            [engines.gpus]
            {engine}
            model = "{starter_model}"
            gpu_ids = [0]
            port = {free_port()}
            """
        )
        daemon.start()
        expected = {
            "nowhere": "/no/such/model does not exist",
            "taken": str(port),
            "bare": "[defaults.llm] python",
            "gpus": "use_gpu = false",
        }
        for name, words in expected.items():
            answer = daemon.cli("start", name)
            assert answer.returncode == 1
            assert words in answer.stdout + answer.stderr
            assert daemon.show(name)["pid"] is None
