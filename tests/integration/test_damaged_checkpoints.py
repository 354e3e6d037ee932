"""Files of a model that are not what they should be: the answer says which, and never waits or raises."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sagectl.plugin import CheckpointFacts, CheckpointQuery
from sagectl.system import checkpoints


def read(directory: Path) -> CheckpointFacts:
    return checkpoints.read(CheckpointQuery(str(directory), "/models"), {})


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', '{"weight_map": []}'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / checkpoints.INDEX).write_text(text)
    assert "has no weight_map" in str(read(tmp_path).error)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert str(read(tmp_path).error).endswith("model.safetensors is no safetensors file")


@pytest.mark.parametrize("offsets", [[30, 0], [-8, 0]])
def test_a_tensor_is_not_less_than_nothing(tmp_path: Path, offsets: list[int]) -> None:
    header = json.dumps({"a": {"dtype": "F16", "shape": [1], "data_offsets": offsets}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    assert "is no safetensors file, or it is cut off" in str(read(tmp_path).error)
