"""Read a data set: files become examples, one after the other, and bad rows are kept account of."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from . import sources
from .formats import example, recognise
from .model import FORMATS, LISTED, BadRow, DataError, Example, Format, RowError

KEPT = 1000
"""Bad rows that are remembered; all are counted."""


LOOKED_AT = 100
"""Rows by which the format is recognised."""


class Rows:
    """The examples of a data set. Iterating reads the files; nothing but the account is held in memory.

    After a pass:
    bad: the first bad rows; bad_count: how many there are.
    good: how many rows became examples.
    format: of the data set; None where no row was recognised. named: the one that was given, None for auto.
    """

    def __init__(
        self,
        files: list[Path],
        root: Path,
        format: Format | None,
        skip_bad_rows: bool,
        progress: sources.Progress,
    ) -> None:
        self.files = files
        self.skip_bad_rows = skip_bad_rows
        self.format = format
        self.bad: list[BadRow] = []
        self.bad_count = 0
        self.good = 0
        self.named = format
        self._root = root
        self._progress = progress

    @cached_property
    def sha256(self) -> str:
        """Of what the files hold, in their order."""
        return sources.digest(self.files)

    def names(self) -> list[str]:
        """The files, as rows name them: below the directory that was given."""
        return [self._name(path) for path in self.files]

    def __iter__(self) -> Iterator[Example]:
        """Read all files. Bad rows are left out; call `check` afterwards."""
        self.bad, self.bad_count, self.good = [], 0, 0
        raw = self._raw()
        if self.named is None:
            looked_at = list(islice(raw, LOOKED_AT))
            self.format = _commonest(looked_at)
            raw = chain(looked_at, raw)
        for name, number, value in raw:
            try:
                made = self._example(name, number, value)
            except RowError as error:
                self.reject(name, number, str(error))
            else:
                self.good += 1
                yield made

    def _raw(self) -> Iterator[tuple[str, int, Any]]:
        sizes = [sources.size(path) for path in self.files]
        total, done = sum(sizes), 0

        def here(read: int) -> None:
            self._progress(done + read, total)

        for path, size in zip(self.files, sizes, strict=True):
            for number, value in sources.rows(path, here):
                yield self._name(path), number, value
            done += size
            self._progress(done, total)

    def _example(self, name: str, number: int, value: Any) -> Example:
        if isinstance(value, RowError):
            raise value
        form = self.format
        if self.named is None:
            form = recognise(value)
            if form != self.format:
                raise RowError(
                    f"is in the format {form}, and most of the first rows in {self.format}: formats are mixed"
                )
        assert form is not None
        return example(value, form, name, number)

    def _name(self, path: Path) -> str:
        name = path.name if path == self._root else path.relative_to(self._root).as_posix()
        return os.fsencode(name).decode(errors="replace")  # it is printed, and may be no UTF-8

    def reject(self, file: str, number: int, reason: str) -> None:
        """Take a row into the account of bad ones."""
        self.bad_count += 1
        if len(self.bad) < KEPT:
            self.bad.append(BadRow(file, number, reason))

    def retract(self, example: Example, reason: str) -> None:
        """An example turned out to be of no use."""
        self.good -= 1
        self.reject(example.file, example.row, reason)

    def check(self) -> None:
        """After a pass: raise DataError where bad rows are not to be skipped, or no row was good."""
        if self.bad_count and not self.skip_bad_rows:
            more = f", of which the first {LISTED} are" if self.bad_count > LISTED else ""
            verb = "row is" if self.bad_count == 1 else "rows are"
            raise DataError(
                f"{self.bad_count:,} {verb} bad of {self.good + self.bad_count:,}{more}",
                "Correct them, or go on without them: --skip-bad-rows (skip_bad_rows = true).",
                self.bad,
            )
        if not self.good:
            why = f"all {self.bad_count:,} rows are bad" if self.bad_count else "it has no rows"
            raise DataError(f"Nothing in the data can be trained on: {why}", "Give other data.", self.bad)


def _commonest(raw: Iterable[tuple[str, int, Any]]) -> Format | None:
    """The format of most of these rows; of those in the same number the one that comes first."""
    found: Counter[Format] = Counter()
    for _, _, value in raw:
        with suppress(RowError):
            found[recognise(value)] += 1
    return found.most_common(1)[0][0] if found else None


def _silent(done: int, total: int) -> None:
    """Nobody watches."""


def read(
    path: str | Path,
    format: Literal["auto"] | Format = "auto",
    skip_bad_rows: bool = False,
    progress: sources.Progress = _silent,
) -> Rows:
    """Open a data set: a file, or a directory of files.

    format: `auto` recognises it by the first rows.
    skip_bad_rows: `Rows.check` goes on without them.
    progress: called now and then with the bytes that are read, and all.
    Raises DataError where there are no data files, or the format is unknown.
    """
    root = Path(path)
    if format != "auto" and format not in FORMATS:
        raise DataError(
            f'The data format "{format}" is unknown',
            f"Write auto, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.",
        )
    return Rows(sources.find(root), root, None if format == "auto" else format, skip_bad_rows, progress)
