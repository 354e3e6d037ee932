"""Tokens in memory: five bytes each, in flat arrays, whatever the number of rows."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from .model import DataError
from .packing import pack

VERSION = 1
"""Of how tokens are made; another one trains on other tokens."""
UNTRAINED = -100
"""The label of a token that is not trained, as torch's losses have it."""


class Row(TypedDict):
    """One row to train on, unpadded.

    labels: as many as input_ids, unshifted.
    position_ids: start at 0 with each sequence.
    seq_lengths: tokens of each sequence in the row. A token attends to those before it in its own sequence
    only: the mask is block-diagonal, with blocks of these sizes.
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    seq_lengths: list[int]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the tokens depend on beside the data and the tokenizer.

    format: auto, or the one that was named.
    pairs: how prompts with completions are written: `chat` as a question with its answer by the chat
    template, `raw` one after the other.
    """

    max_length: int
    packing: bool
    format: str
    pairs: Literal["chat", "raw"]
    version: int = VERSION


@dataclass(slots=True)
class Cut:
    """What did not fit into `max_length`.

    rows, tokens, trained: sequences that were cut, and the tokens that went, all and trained ones.
    lost: sequences of which nothing was left to train, which are left out.
    split: texts that were divided into several sequences, so that nothing of them went.
    """

    rows: int = 0
    tokens: int = 0
    trained: int = 0
    lost: int = 0
    split: int = 0


@dataclass(slots=True)
class Corpus:
    """All sequences, one after the other.

    trained: 1 for each token that has a label.
    starts: where each sequence starts, and the end of the last.
    files, rows: where each came from, the file by its place among all.
    full: tokens of each before it was cut.
    """

    ids: array[int] = field(default_factory=lambda: array("i"))
    trained: bytearray = field(default_factory=bytearray)
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    files: array[int] = field(default_factory=lambda: array("i"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    full: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.files)

    def add(self, ids: Sequence[int], trained: bytes | bytearray, source: tuple[int, int], full: int) -> None:
        """Put a sequence behind the others. Its first token never has a label: nothing comes before it."""
        self.ids.extend(ids)
        self.trained += b"\0"
        self.trained += trained[1:]
        self.starts.append(len(self.ids))
        self.files.append(source[0])
        self.rows.append(source[1])
        self.full.append(full)

    def length(self, index: int) -> int:
        """Tokens of a sequence."""
        return self.starts[index + 1] - self.starts[index]

    def tokens_trained(self, index: int) -> int:
        """Tokens of a sequence that have a label."""
        return self.trained.count(1, self.starts[index], self.starts[index + 1])

    def sha256(self) -> str:
        """Of all tokens, labels and bounds."""
        whole = hashlib.sha256()
        for part in (self.ids, self.trained, self.starts):
            whole.update(memoryview(part))
        return whole.hexdigest()


class Tokens(Sequence[Row]):
    """Rows to train on: of one sequence each, or of several where they are packed. A map-style data set.

    layout: which sequences of `corpus` make up each row, by index.
    """

    def __init__(self, corpus: Corpus, sequences: Sequence[int], settings: Settings) -> None:
        self.corpus = corpus
        self.settings = settings
        self.layout: list[tuple[int, ...]] = [(sequence,) for sequence in sequences]
        if settings.packing:
            packed = pack([corpus.length(sequence) for sequence in sequences], settings.max_length)
            self.layout = [tuple(sequences[index] for index in row) for row in packed]

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # there are no slices of it
        """The row at an index. Raises IndexError."""
        row = Row(input_ids=[], labels=[], position_ids=[], seq_lengths=[])
        for sequence in self.layout[index]:
            start, end = self.corpus.starts[sequence], self.corpus.starts[sequence + 1]
            ids = self.corpus.ids[start:end].tolist()
            flags = self.corpus.trained[start:end]
            row["input_ids"] += ids
            row["labels"] += [token if flag else UNTRAINED for token, flag in zip(ids, flags, strict=True)]
            row["position_ids"] += range(end - start)
            row["seq_lengths"].append(end - start)
        return row

    def sequences(self) -> Iterator[int]:
        """The sequences of all rows, by index in `corpus`."""
        for row in self.layout:
            yield from row

    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [sum(map(self.corpus.length, row)) for row in self.layout]

    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(map(self.corpus.length, self.sequences()))

    def tokens_trained(self) -> int:
        """Tokens of all rows that have a label."""
        return sum(map(self.corpus.tokens_trained, self.sequences()))

    def fill(self) -> float:
        """Share of the room of all rows that tokens take, where each has room for `max_length`."""
        return self.tokens() / (max(1, len(self)) * self.settings.max_length)

    def split(self, share: float, seed: int) -> tuple[Tokens, Tokens]:
        """Rows to train on, and others to evaluate on, made of `share` of the data's rows, chosen by `seed`.

        All that one row of the data became is on the same side. Raises DataError where a side would be empty.
        """
        made: dict[tuple[int, int], list[int]] = {}
        for sequence in sorted(self.sequences()):
            made.setdefault((self.corpus.files[sequence], self.corpus.rows[sequence]), []).append(sequence)
        count = max(1, round(len(made) * share))
        if count >= len(made):
            raise DataError(
                f"The data has {len(made)} rows: with {count} to evaluate on, none would be left to train on",
                "Give more rows, or evaluate on fewer of them.",
            )
        chosen = set(random.Random(seed).sample(sorted(made), count))
        sides: tuple[list[int], list[int]] = ([], [])
        for source, sequences in made.items():
            sides[source in chosen].extend(sequences)
        return Tokens(self.corpus, sides[0], self.settings), Tokens(self.corpus, sides[1], self.settings)
