"""These tests need a GPU and an interpreter for it; without them one line says so."""

from __future__ import annotations

import os

import pytest

from sagectl.system.nvml import NvmlGpus

INTERPRETER = "SAGECTL_CUDA_PYTHON"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what cannot run here."""
    mine = [item for item in items if item.get_closest_marker("gpu")]
    reason = _missing() if mine else None
    for item in mine:
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str | None:
    reader = NvmlGpus()
    reading = reader.read()
    reader.close()
    if not any(gpu.lost is None for gpu in reading.gpus):
        why = reading.trouble or next((gpu.lost for gpu in reading.gpus), "NVML lists none.")
        return f"no NVIDIA GPU here: {why}"
    python = os.environ.get(INTERPRETER)
    if not python:
        return f"{INTERPRETER} names no interpreter; it takes one with torch for CUDA"
    if not os.access(python, os.X_OK):
        raise pytest.UsageError(f"{INTERPRETER}={python} cannot be run")
    return None
