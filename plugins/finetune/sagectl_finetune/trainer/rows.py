"""The training data as the loop takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sagectl_finetune import data
from sagectl_finetune.trainer.records import say
from sagectl_finetune.trainer.settings import Refused, Settings

IGNORED = data.UNTRAINED
"""The label of a token that is not trained on."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows to train on and to evaluate with.

    report: what a preflight says of them. hashes: of the files, the tokenizer, the settings and the tokens.
    """

    train: Sequence[data.Row]
    evaluation: Sequence[data.Row]
    report: dict[str, Any]

    @property
    def hashes(self) -> dict[str, str]:
        """Of the files, the tokenizer, the settings and the tokens."""
        return cast("dict[str, str]", self.report["sha256"])


def prepare(settings: Settings, tokenizer: Any) -> Prepared:
    """Read and tokenise the data. Raises Refused where it cannot be trained on."""
    try:
        rows = data.read(settings.dataset, cast("Any", settings.format), settings.skip_bad_rows)
        made = data.tokenise(rows, tokenizer, settings.max_length, settings.packing)
        train, held = made.tokens, None
        if settings.eval_split > 0:
            train, held = made.tokens.split(settings.eval_split, settings.seed)
    except data.DataError as error:
        reason = error.what.partition(", of which the first")[0]  # its own list follows there
        because = tuple(str(bad) for bad in error.bad)
        raise Refused(reason, error.remedy.rstrip("."), because) from error
    report = data.report(made)
    for bad in report["bad_rows"]:
        say(f"left out: {data.BadRow(bad['file'], bad['row'], bad['reason'])}")
    if report["bad"] > len(report["bad_rows"]):
        say(f"left out: {report['bad'] - len(report['bad_rows'])} more")
    return Prepared(train, held or (), report)


def padded(rows: Sequence[data.Row], pad: int, multiple: int, packed: bool) -> dict[str, list[Any]]:
    """Rows of one length, as lists: input_ids, labels, lengths, and position_ids where rows are packed.

    There is no attention mask: what is padded comes after the tokens, and no token looks ahead. Packed
    sequences are told apart by their positions, which begin at 0 each; the padding goes on with the last.
    """
    width = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple
    batch: dict[str, list[Any]] = {"input_ids": [], "labels": [], "lengths": []}
    if packed:
        batch["position_ids"] = []
    for row in rows:
        length = len(row["input_ids"])
        room = width - length
        batch["input_ids"].append([*row["input_ids"], *[pad] * room])
        labels = [*row["labels"], *[IGNORED] * room]
        start = 0
        for sequence in row["seq_lengths"]:
            labels[start] = IGNORED  # nothing before it in its own sequence that could foretell it
            start += sequence
        batch["labels"].append(labels)
        batch["lengths"].append(length)
        if packed:
            last = row["position_ids"][-1] + 1
            batch["position_ids"].append([*row["position_ids"], *range(last, last + room)])
    return batch
