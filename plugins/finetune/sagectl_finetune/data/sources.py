"""Find data files and take them apart into raw rows. Nothing here knows what a row means.

A row that cannot be taken apart comes out as a `RowError`; the rows after it still come out.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from .model import DataError, RowError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")
KINDS = "JSON, JSONL, CSV, TSV, Parquet or text"
# They describe a data set, and lie beside its files.
DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
LISTS = ("train", "data")
PARQUET_ROWS = 1024

Raw: TypeAlias = tuple[int, Any]
"""(row, value); the value is a RowError where the row cannot be read."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes that are read, and all."""


def find(path: Path) -> list[Path]:
    """The data files that `path` names, in the order in which they are read: by name, hidden ones left out.

    Raises DataError where there are none.
    """
    if not path.exists():
        raise DataError(f"There is no data at {path}", "Check the path; the daemon must be able to read it.")
    if path.is_file():
        if suffix(path) not in SUFFIXES:
            raise DataError(f"{path} is no data file by its name", f"Name it by what it holds: {KINDS}.")
        return [path]
    found = [
        Path(directory, name)
        for directory, directories, names in os.walk(path)
        if not directories.sort() and _visible(directories)
        for name in sorted(names)
        if not name.startswith(".") and name not in DESCRIPTIONS and suffix(Path(name)) in SUFFIXES
    ]
    if not found:
        raise DataError(f"No data files are in {path}", f"Put {KINDS} files there.")
    return sorted(found, key=lambda file: file.relative_to(path).parts)


def _visible(directories: list[str]) -> bool:
    """Keep os.walk out of hidden directories."""
    directories[:] = [name for name in directories if not name.startswith(".")]
    return True


def suffix(path: Path) -> str:
    """What kind of file it is: its suffix, without that of the compression."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def digest(files: Iterable[Path]) -> str:
    """SHA-256 of what the files hold, in their order; names do not count, nor what cannot be read."""
    whole = hashlib.sha256()
    for path in files:
        with suppress(OSError), _opened(path) as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def size(path: Path) -> int:
    """Its bytes; 0 where it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _opened(path: Path) -> io.BufferedReader:
    """Raises OSError, also for a pipe or a device: reading one may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    return path.open("rb")


def rows(path: Path, progress: Callable[[int], None] = lambda done: None) -> Iterator[Raw]:
    """The rows of one file. `progress` gets the bytes that are read of it.

    Row 0 carries what is wrong with the whole file, or from some point on.
    """
    kind = suffix(path)
    try:
        if kind == ".parquet":
            _opened(path).close()
            yield from _parquet(path, progress)
            return
        with _opened(path) as raw:
            mark = MARKS.get(raw.read(2))
            raw.seek(0)
            if mark is not None:
                yield 0, RowError(f"is {mark}; write it as UTF-8")
                return
            packed = path.name.lower().endswith(".gz")
            plain = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw)
            for number, row in enumerate(_READERS[kind](plain)):
                if number % 256 == 0:
                    progress(raw.tell())
                yield row
    except (OSError, EOFError, zlib.error) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        yield 0, RowError(f"cannot be read: {why}")


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    iterator = iter(lines)
    for first in iterator:
        yield first.removeprefix(b"\xef\xbb\xbf")
        break
    yield from iterator


def _decoded(data: bytes) -> str | RowError:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return RowError(f"is not UTF-8: byte 0x{data[error.start]:02x} at byte {error.start + 1} of it")


def _parsed(text: str) -> Any:
    """A RowError for what is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return RowError(f"is not JSON: {_what(error)} at column {error.colno}")
    except RecursionError:
        return RowError("is not JSON that can be read: it is nested too deeply")
    except ValueError:  # Python's limit, against numbers that take hours
        return RowError("is not JSON that can be read: it has a number of thousands of digits")


def _what(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")  # some say "starting at", and the place follows


# --- JSON --------------------------------------------------------------------------------------


def _json(file: IO[bytes]) -> Iterator[Raw]:
    """An array, an object with one, or, as many such files are, one object on each line."""
    lines = _without_mark(file)
    read: list[bytes] = []
    for line in lines:
        read.append(line)
        if line.strip():
            break
    first = _parsed((read or [b""])[-1].decode(errors="replace"))
    if isinstance(first, dict) and not _rows_of(first):
        yield from _numbered_lines(chain(read, lines))
        return
    text = b"".join(chain(read, lines)).decode(errors="surrogateescape")
    if not text.strip():
        yield 0, RowError("is empty")
        return
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        yield (
            error.lineno,
            RowError(f"is not JSON: {_what(error)} at column {error.colno} of line {error.lineno}"),
        )
        return
    except RecursionError:
        yield 0, RowError("is nested too deeply to be read")
        return
    except ValueError:
        yield 0, RowError("has a number of thousands of digits, which cannot be read")
        return
    if not isinstance(whole, list):
        whole = _rows_of(whole) if isinstance(whole, dict) and _rows_of(whole) else [whole]
    yield from enumerate(whole, 1)


def _rows_of(whole: dict[str, Any]) -> list[Any] | None:
    for name in LISTS:
        if isinstance(whole.get(name), list):
            return cast(list[Any], whole[name])
    return None


def _json_lines(file: IO[bytes]) -> Iterator[Raw]:
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    # An array over several lines, which has the wrong name.
    if start.split(b"\n", 1)[0].strip() == b"[":
        yield from _json(file)
    else:
        yield from _numbered_lines(_without_mark(file))


def _numbered_lines(lines: Iterable[bytes]) -> Iterator[Raw]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        text = _decoded(line.rstrip(b"\r\n"))
        yield number, text if isinstance(text, RowError) else _parsed(text)


# --- CSV ---------------------------------------------------------------------------------------


def _csv(file: IO[bytes]) -> Iterator[Raw]:
    yield from _table(file, None)


def _tsv(file: IO[bytes]) -> Iterator[Raw]:
    yield from _table(file, "\t")


def _table(file: IO[bytes], delimiter: str | None) -> Iterator[Raw]:
    """Rows are counted from 1 below the header: one may span several lines."""
    csv.field_size_limit(2**31 - 1)
    # Bytes that are no UTF-8 become half characters, which no text may hold.
    lines = (line.decode(errors="surrogateescape") for line in _without_mark(file))
    head = next(lines, "")
    if delimiter is None:
        delimiter = max(",;\t|", key=head.count)
    reader = csv.reader(chain([head], lines), delimiter=delimiter)
    records = _records(reader)
    header = next(records, [])
    if isinstance(header, RowError) or not any(name.strip() for name in header):
        yield 0, header if isinstance(header, RowError) else RowError("is empty: it has no header")
        return
    names = [name.strip() for name in header]
    for number, fields in enumerate(records, 1):
        if isinstance(fields, RowError):
            yield number, fields
        elif len(fields) != len(names):
            yield number, RowError(f"has {len(fields)} fields, and the header has {len(names)}")
        else:
            yield number, dict(zip(names, fields, strict=True))


def _records(reader: Iterator[list[str]]) -> Iterator[list[str] | RowError]:
    """Without empty lines; a RowError for what is no CSV."""
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield RowError(f"is not CSV: {error}")
        else:
            if fields:
                yield fields


# --- Parquet and text --------------------------------------------------------------------------


def _parquet(path: Path, progress: Callable[[int], None]) -> Iterator[Raw]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
        broken: type[Exception] = import_module("pyarrow").ArrowException
    except ImportError:
        raise DataError(
            f"{path} is Parquet, which this interpreter cannot read: it lacks the package pyarrow",
            f"Install it: {sys.executable} -m pip install pyarrow; or write the data as JSONL.",
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            total = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield number, value
                progress(path.stat().st_size * number // total)
    except broken as error:
        yield 0, RowError(f"is not Parquet that can be read: {error}")


def _text(file: IO[bytes]) -> Iterator[Raw]:
    """Paragraphs, where the file has lines with nothing on them between others; else lines."""
    lines = list(_without_mark(file))
    by_lines = b"" not in (line.strip() for line in b"".join(lines).strip().splitlines())
    start, paragraph = 1, b""
    for number, line in enumerate(chain(lines, [b""]), 1):
        if line.strip():
            start = start if paragraph else number
            paragraph += line
        if paragraph and (by_lines or not line.strip()):
            text = _decoded(paragraph.strip(b"\r\n"))
            yield start, text if isinstance(text, RowError) else {"text": text}
            paragraph = b""


_READERS: dict[str, Callable[[IO[bytes]], Iterator[Raw]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _text,
}
