"""Fixtures for the tests marked `heavy`: an interpreter with torch and transformers, and a model for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

INTERPRETER = "SAGECTL_TRANSFORMERS_PYTHON"
STARTER = Path(__file__).parents[1] / "plugins" / "llm" / "sagectl_llm" / "starter.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the interpreter leave the heavy tests out, visibly; a wrong one is an error."""
    python = os.environ.get(INTERPRETER)
    if python:
        if not os.access(python, os.X_OK):
            raise pytest.UsageError(
                f"{INTERPRETER}={python} cannot be run; `make test` builds one and sets it"
            )
        return
    skip = pytest.mark.skip(reason=f"{INTERPRETER} names no interpreter; `make test` builds one and sets it")
    for item in items:
        if "heavy" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def transformers_python() -> str:
    """Path of an interpreter with torch and transformers; only for tests marked `heavy`."""
    return os.environ[INTERPRETER]


@pytest.fixture(scope="session")
def starter_model(transformers_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the untrained starter model, built once a session."""
    directory = tmp_path_factory.mktemp("models") / "sagectl-starter-untrained"
    built = subprocess.run(
        [transformers_python, str(STARTER), str(directory)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return directory
