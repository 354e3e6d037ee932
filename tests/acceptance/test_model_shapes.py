"""The tensors that sagectl reckons from config.json, against those of transformers' own classes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sagectl.plugin import CheckpointFacts
from sagectl_models import architecture, weights
from tests.models import CONFIGS, described, tensor

pytestmark = pytest.mark.heavy

PROGRAM = Path(__file__).parent / "programs" / "transformers_tensors.py"


def test_parameters_are_those_of_transformers(transformers_python: str) -> None:
    """Sixteen real models, made without memory.

    Result: the parts of each layer, the table, the head and the rest are the same to the parameter, from
    config.json alone and from the tensors under the names that transformers gives them; towers for images,
    whose size is guessed without headers, are told from the rest.
    """
    done = subprocess.run(
        [transformers_python, str(PROGRAM), str(CONFIGS)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    models = json.loads(done.stdout.splitlines()[-1])
    assert len(models) == len(list(CONFIGS.glob("*.json")))
    for name, shapes in models.items():
        facts = described(name, quantization_config=None, torch_dtype="bfloat16")
        found = architecture.read(facts)
        assert found is not None
        tensors = {key: tensor("BF16", *shape) for key, shape in shapes.items()}
        stored = weights.read(CheckpointFacts("/m", tensors, facts.documents), found)
        computed = weights.read(facts, found)
        assert stored is not None
        assert computed is not None
        assert stored.layers == computed.layers, name
        assert (stored.embedding, stored.head, stored.other, stored.skipped) == (
            *(computed.embedding, computed.head, computed.other),
            0,
        ), name
        assert (stored.vision > 0) == found.vision
        if not found.vision:
            assert replace(stored, exact=False, notes=computed.notes) == computed, name
