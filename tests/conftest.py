"""Fixtures for the tests marked `heavy`: interpreters with what an engine needs, and a model for them.

Those marked `vllm` too run in an environment of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import hypothesis
import pytest

# Machines are shared: how long one example takes says nothing about the code.
hypothesis.settings.register_profile("sagectl", deadline=None)
hypothesis.settings.load_profile("sagectl")

# A shell has its background jobs ignore it, and whatever they start: tests send it to what they started.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

INTERPRETER = "SAGECTL_TRANSFORMERS_PYTHON"
VLLM_INTERPRETER = "SAGECTL_VLLM_PYTHON"
STARTER = Path(__file__).parents[1] / "plugins" / "llm" / "sagectl_llm" / "starter.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without its interpreter leave a heavy test out, visibly; a wrong one is an error."""
    skips = {name: _skip_unless(name) for name in (INTERPRETER, VLLM_INTERPRETER)}
    for item in items:
        if "heavy" in item.keywords:
            skip = skips[VLLM_INTERPRETER if "vllm" in item.keywords else INTERPRETER]
            if skip is not None:
                item.add_marker(skip)


def _skip_unless(variable: str) -> pytest.MarkDecorator | None:
    python = os.environ.get(variable)
    if not python:
        return pytest.mark.skip(reason=f"{variable} names no interpreter; `make test` builds one and sets it")
    if not os.access(python, os.X_OK):
        raise pytest.UsageError(f"{variable}={python} cannot be run; `make test` builds one and sets it")
    return None


@pytest.fixture(scope="session")
def transformers_python() -> str:
    """Path of an interpreter with torch and transformers; only for tests marked `heavy`."""
    if INTERPRETER not in os.environ:  # a test marked `vllm` may need both
        pytest.skip(f"{INTERPRETER} names no interpreter; `make test` builds one and sets it")
    return os.environ[INTERPRETER]


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """Path of an interpreter with vLLM; only for tests marked `heavy` and `vllm`."""
    return os.environ[VLLM_INTERPRETER]


@pytest.fixture(scope="session")
def starter_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the untrained starter model, built once a session, by the interpreter there is."""
    python = os.environ.get(INTERPRETER) or os.environ[VLLM_INTERPRETER]
    directory = tmp_path_factory.mktemp("models") / "sagectl-starter-untrained"
    built = subprocess.run(
        [python, str(STARTER), str(directory)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return directory
