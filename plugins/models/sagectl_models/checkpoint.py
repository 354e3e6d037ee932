"""What sagectl knows of an engine's model before it starts: its architecture and weights, or a guess."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sagectl.plugin import CheckpointFacts, CheckpointQuery, EngineRequest
from sagectl_models import architecture, weights
from sagectl_models.architecture import Architecture
from sagectl_models.weights import LayerWeights, Weights

# How many billions of parameters a name says, and which names say that they are stored in fewer bits.
_BILLIONS = re.compile(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)
_FOUR_BITS = re.compile(r"awq|gptq|4bit|int4|w4a16|nf4|fp4", re.IGNORECASE)
_EIGHT_BITS = re.compile(r"fp8|int8|w8a8|8bit", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Known:
    """A model. architecture: None where there is no config.json; notes: what was assumed."""

    architecture: Architecture | None
    weights: Weights
    notes: tuple[str, ...] = ()


def query(request: EngineRequest[Any], revision: str | None = None) -> CheckpointQuery | None:
    """The query for an engine's model; None where it names none that can be looked up."""
    model = request.model or ""
    if not model or model.startswith((".", "~")):
        return None
    if revision is not None and not model.startswith("/") and "@" not in model:
        model = f"{model}@{revision}"
    return CheckpointQuery(model.rstrip("/") or "/", request.models_dir)


def known(model: str, facts: CheckpointFacts, dtype: str = "auto") -> Known | None:
    """What the files say, else what the name says; None where neither says anything.

    Args:
        dtype: as in `weights.read`.
    """
    found = architecture.read(facts)
    sizes = weights.read(facts, found, dtype=dtype)
    if sizes is not None:
        return Known(found, sizes, sizes.notes)
    guess = guessed(model)
    if guess is None:
        return None
    why = facts.error or "there are no weights"
    note = f"{why}: {weights_words(guess)} are guessed from its name, and nothing is known of its cache"
    return Known(None, Weights((LayerWeights(split=guess),), 0, 0, 0, 0, 0, 0, exact=False), (note,))


def guessed(model: str) -> int | None:
    """Bytes of weights as a model's name tells them, such as `Qwen2.5-7B-Instruct-AWQ`."""
    name = model.rstrip("/").rpartition("/")[2].partition("@")[0]
    counts = [
        float(count) * int(times or 1) * (1e9 if unit in "bB" else 1e6)
        for times, count, unit in _BILLIONS.findall(name.replace("_", "-"))
    ]
    if not counts:
        return None
    each = 0.75 if _FOUR_BITS.search(name) else 1.1 if _EIGHT_BITS.search(name) else 2.1
    return int(max(counts) * each)


def weights_words(size: int) -> str:
    """`15.7 GiB of weights`."""
    return f"{size / 2**30:.1f} GiB of weights"
