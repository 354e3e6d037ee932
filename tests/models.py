"""Checkpoints for tests: real models' config.json, and safetensors files with a hole for their data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagectl.plugin import CheckpointFacts, Tensor

CONFIGS = Path(__file__).parent / "data" / "models"
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "U8": 1, "I8": 1, "F8_E4M3": 1}


def config(name: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a model in tests/data/models."""
    found: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return found | changes


def described(name: str, **changes: Any) -> CheckpointFacts:
    """A checkpoint of which only config.json is here."""
    return CheckpointFacts("/models/" + name, documents={"config.json": config(name, **changes)})


def tensor(dtype: str, *shape: int) -> Tensor:
    """A tensor as a header has it."""
    return Tensor(dtype, shape, math.prod(shape) * SIZES[dtype])


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file with this header; its data are a hole, which takes no space."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, one in tensors.items():
        header[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [end, end + one.size]}
        end += one.size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_model(
    directory: Path, configuration: Mapping[str, Any], tensors: Mapping[str, Tensor], *, files: int = 1
) -> None:
    """A checkpoint of so many files, with an index where there is more than one."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(configuration), encoding="utf-8")
    if files == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return
    weight_map = {}
    names = list(tensors)
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = names[number::files]
        write_safetensors(directory / file, {name: tensors[name] for name in part})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
