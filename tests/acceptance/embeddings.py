"""What sentence-transformers itself makes of some texts, and how to compare with it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

TEXTS = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The central bank raised its interest rate by half a point.",
    "Inflation makes borrowing money more expensive.",
    "Whisk the eggs with sugar until they are pale.",
    "Bake the cake for forty minutes.",
    "Der Zug nach Köln fährt um 7:35 Uhr ab.",
    "x",
    "many words " * 90,
)
NEIGHBOURS = ((0, 1), (2, 3), (4, 5))

# Runs in the engine's interpreter: what sentence-transformers itself makes of the texts.
DIRECTLY = """
import json, sys
from sentence_transformers import SentenceTransformer
import torch
torch.set_num_threads(1)
asked = json.load(sys.stdin)
model = SentenceTransformer(asked["model"], device="cpu")
vectors = model.encode(asked["texts"], show_progress_bar=False)
tokens = [model.tokenizer(text)["input_ids"] for text in asked["texts"]]
json.dump({"vectors": [[float(x) for x in v] for v in vectors], "tokens": tokens}, sys.stdout)
"""


def run_python(python: str, program: str, *arguments: str, given: Any) -> Any:
    """Run a program in the engine's interpreter, JSON in and out."""
    done = subprocess.run(
        [python, "-c", program, *arguments],
        input=json.dumps(given),
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def differ(found: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
