"""The training data as the loop takes it."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer.settings import Refused, Settings

IGNORED = -100
"""The label of a token that is not trained on."""
Row = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows to train on and to evaluate with, and what a preflight says of them."""

    train: Sequence[Row]
    evaluation: Sequence[Row]
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of all tokens and labels."""
        found = hashlib.sha256()
        for rows in (self.train, self.evaluation):
            found.update(b"%d\n" % len(rows))
            for row in rows:
                for key in sorted(row):
                    found.update(key.encode() + b"\0" + array("q", row[key]).tobytes())
        return found.hexdigest()


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to evaluate with, in the order of the data; the same for the same seed."""
    if share <= 0:
        return list(range(count)), []
    held = max(1, round(count * share))
    if held >= count:
        raise Refused(
            f"eval_split = {share:g} leaves nothing to train on: there are {count} rows",
            "lower eval_split, or bring more data",
        )
    chosen = set(random.Random(seed).sample(range(count), held))
    return [i for i in range(count) if i not in chosen], sorted(chosen)


def prepare(settings: Settings, tokenizer: Any) -> Prepared:
    """Read and tokenise the data. Raises Refused where nothing can be trained on."""
    rows = [json.loads(line) for line in Path(settings.dataset).read_text(encoding="utf-8").splitlines()]
    made = [_tokens(tokenizer, row["messages"], settings.max_length) for row in rows]
    if not any(label != IGNORED for row in made for label in row["labels"]):
        raise Refused("nothing of the data would be trained on", "add answers of the assistant")
    train, held = split(len(made), settings.eval_split, settings.seed)
    return Prepared([made[i] for i in train], [made[i] for i in held], {"rows": len(made)})


def _tokens(tokenizer: Any, messages: list[dict[str, Any]], most: int) -> Row:
    ids: list[int] = []
    labels: list[int] = []
    for count, message in enumerate(messages, 1):
        answer = message["role"] == "assistant"
        if answer:
            text = tokenizer.apply_chat_template(
                messages[: count - 1], tokenize=False, add_generation_prompt=True
            )
            prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
            labels += [IGNORED] * (len(prompt) - len(ids))
            ids = prompt
        text = tokenizer.apply_chat_template(messages[:count], tokenize=False)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        labels += whole[len(ids) :] if answer else [IGNORED] * (len(whole) - len(ids))
        ids = whole
    return {"input_ids": ids[:most], "labels": labels[:most]}
