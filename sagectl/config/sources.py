"""Reading the files of a configuration: bytes → values with positions, or a problem with its line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from sagectl.config import positions
from sagectl.config.sections import Origin, Report, Section
from sagectl.errors import Problem

MAX_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Document:
    """A file that is TOML: its values, and its top-level tables with positions."""

    file: str
    values: Mapping[str, Any]
    lines: Mapping[positions.Path, int]

    def line(self, path: positions.Path) -> int:
        """The line of a key, 0 where it has none."""
        return self.lines.get(path, 0)


def read(path: Path, report: Report, *, text: str | None = None, drop_in: bool = False) -> Document | None:
    """Read and parse a file; None, and a problem in the report, where that fails.

    Args:
        text: its contents, where they are known already.
        drop_in: it lies in engines.d, where only plain files are read.
    """
    file = str(path)
    report.reading(file)
    if text is None:
        text = _contents(path, report, drop_in)
    return None if text is None else parse(file, text, report)


def _contents(path: Path, report: Report, drop_in: bool) -> str | None:
    trouble, line = ("is larger than a configuration can be", f"keep it below {MAX_BYTES // 2**20} MiB"), 0
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and (drop_in or not stat.S_ISDIR(mode)):
            # Opening a FIFO would block for ever.
            trouble = ("is not a file", "move it out of engines.d" if drop_in else "name a plain file")
        else:
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
            if len(data) <= MAX_BYTES:
                return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        trouble = (f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8")
        line = data.count(b"\n", 0, error.start) + 1
    except IsADirectoryError:
        trouble = ("is a directory", "name a file")
    except PermissionError:
        trouble = ("cannot be read: permission denied", f"let user {os.geteuid()} read it")
    except OSError as error:
        trouble = (f"cannot be read: {error.strerror or error}", "check that it exists")
    report.add(Problem("", *trouble, str(path), line))
    return None


def parse(file: str, text: str, report: Report) -> Document | None:
    """Parse TOML, or add the syntax error to the report."""
    try:
        return Document(file, tomli.loads(text), positions.scan(text))
    except tomli.TOMLDecodeError as error:
        report.add(_syntax_error(file, text, error))
    except RecursionError:
        report.add(Problem("", "arrays or tables are nested too deeply", "flatten them", file))
    except ValueError:
        # What is left is Python's limit on the digits of an integer.
        match = _MANY_DIGITS.search(text)
        line = text.count("\n", 0, match.start()) + 1 if match else 0
        report.add(Problem("", "a number with thousands of digits", "write a smaller one", file, line))
    return None


_MANY_DIGITS = re.compile(r"[0-9_]{4000}")
_OPEN = {
    "Unclosed array": "close it with ]",
    "Unclosed inline table": "close it with }",
    "Unterminated string": "close it with the quotes that open it",
}
"""Errors that the parser notices long after the place that is to blame."""
_REMEDIES = {
    "Invalid value": "strings need quotes; true and false are in lower case",
    "Expected '=' after a key in a key/value pair": "write key = value",
    "Expected newline or end of document after a statement": "write one key a line",
    "Illegal character '\\n'": "close the quotes on the line where they open",
}


def _syntax_error(file: str, text: str, error: tomli.TOMLDecodeError) -> Problem:
    line, message, remedy = error.lineno, error.msg, _REMEDIES.get(error.msg, "")
    twice = positions.first_duplicate(text)
    if twice is not None and twice.second <= line:
        key = positions.dotted(twice.path)
        table = message.startswith("Cannot declare")
        what = f"the table [{key}] is declared" if table else "is set"
        text = f"{what} twice, first on line {twice.first}"
        return Problem("" if table else key, text, "remove one of them", file, twice.second)
    if (
        message in _OPEN
        and (begun := positions.unfinished(text.replace("\r\n", "\n")[: error.pos])) is not None
    ):
        path, begins = begun
        text = f"is not valid TOML: {message}, noticed on line {line}"
        return Problem(positions.dotted(path), text, _OPEN[message], file, begins)
    return Problem("", f"is not valid TOML: {message}", remedy, file, line)


def section(document: Document, path: positions.Path, source: str = "file") -> Section:
    """One table of a document, with the origins of its keys."""
    values: Any = document.values
    for step in path:
        values = values[step]
    length = len(path)
    prefix = positions.dotted(path)
    return Section(
        values,
        {
            found[length:]: _origin(document.file, source, prefix, found[length:], line)
            for found, line in document.lines.items()
            if found[:length] == path
        },
    )


def _origin(file: str, source: Any, prefix: str, rest: positions.Path, line: int) -> Origin:
    key = positions.dotted(rest)
    return Origin(source, file, line, f"{prefix}.{key}" if prefix and key else prefix or key)


def sections(document: Document, table: str, source: str) -> dict[str, Section]:
    """The tables within a table, such as all of `[engines]`, in one pass."""
    tables: dict[str, Any] = document.values.get(table, {})
    places: dict[str, dict[positions.Path, Origin]] = {name: {} for name in tables}
    prefixes = {name: positions.dotted((table, name)) for name in tables}
    for path, line in document.lines.items():
        if len(path) > 1 and path[0] == table and path[1] in places:
            name = str(path[1])
            rest = path[2:]
            places[name][rest] = _origin(document.file, source, prefixes[name], rest, line)
    return {name: Section(value, places[name]) for name, value in tables.items()}
