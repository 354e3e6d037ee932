"""The sizes that sagectl reckons, against vLLM's own code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sagectl_models import architecture, kv_cache, parallel
from sagectl_models.architecture import Architecture
from tests.models import CONFIGS, described

pytestmark = [pytest.mark.heavy, pytest.mark.vllm]

PROGRAM = Path(__file__).parent / "programs" / "vllm_cache_sizes.py"
STAGES = [(layers, count) for layers in (24, 28, 32, 61, 62, 80) for count in (1, 2, 3, 4, 5, 8)]
MOST = 0.03
"""How much more than vLLM needs may be reserved for a sequence: a few blocks."""


def question(a: Architecture, context: int, block: int) -> dict[str, Any]:
    return {
        **{"windows": a.windows, "heads": a.kv_heads, "width": a.head_dim, "block": block},
        **{"latent": a.latent.width if a.latent is not None else None, "context": context},
    }


def test_caches_and_stages_are_vllms(vllm_python: str) -> None:
    """Fifteen real models, three contexts, blocks of 16 and 64 tokens; and stages of six depths.

    Result: what sagectl reserves for one sequence is never less than vLLM asks for, and at most 3% more.
    """
    found = [architecture.read(described(path.stem)) for path in sorted(CONFIGS.glob("*.json"))]
    cases = [
        (a, context, block)
        for a in found
        if a is not None and not a.encoder
        for context in (4096, 8193, a.max_positions or 0)
        for block in (16, 64)
    ]
    asked = {"caches": [question(*case) for case in cases], "stages": STAGES}
    done = subprocess.run(
        [vllm_python, str(PROGRAM)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    for (a, context, block), theirs in zip(cases, answers["caches"], strict=True):
        ours = kv_cache.sequence(a, range(a.layers), 1, kv_cache.Cache(2, 2 * 2048), context)
        assert theirs <= ours <= theirs * (1 + MOST), (a.model_type, a.layers, context, block)
    for (layers, count), stages in zip(STAGES, answers["stages"], strict=True):
        assert [[one.start, one.stop] for one in parallel.stages(layers, count)] == stages
