"""pydantic's errors in the words of somebody who writes TOML."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from sagectl.config.names import did_you_mean
from sagectl.config.units import BadValue, describe

_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of reasonable size",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "tuple_type": "an array",
    "set_type": "an array",
    "frozen_set_type": "an array",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dataclass_type": "a table",
    "path_type": "a path as a string",
    "none_required": "nothing",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong value, not yet placed in a file. `missing`: a required key is not there."""

    path: tuple[str | int, ...]
    message: str
    remedy: str = ""
    missing: bool = False


def faults(errors: Sequence[ErrorDetails], data: Any) -> list[Fault]:
    """Every fault once: the branches of a union that all failed become one.

    Args:
        data: what was validated; it tells keys in an error's location from names of branches.
    """
    grouped: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for error in errors:
        loc = error["loc"]
        path = loc if error["type"] in ("missing", "extra_forbidden") else _within(data, loc)
        grouped.setdefault(path, []).append(error)
    # A fault inside a value says more than that the whole value failed another branch.
    return [
        _fault(path, group, _at(data, path))
        for path, group in grouped.items()
        if not any(other != path and other[: len(path)] == path for other in grouped) or not path
    ]


def _within(data: Any, loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    for depth, step in enumerate(loc):
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            # Beyond the name of a union's branch there may be an index again.
            nested = _within(data, loc[depth + 1 :]) if isinstance(data, list | dict) else ()
            return loc[:depth] + nested
    return loc


def _at(data: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _fault(path: tuple[str | int, ...], group: list[ErrorDetails], value: Any) -> Fault:
    first = group[0]
    error = first.get("ctx", {}).get("error")
    if first["type"] == "missing":
        return Fault(path, "is required", missing=True)
    if isinstance(error, BadValue):
        return Fault(path, error.message, error.remedy)
    if error is not None:
        return Fault(path, str(error).rstrip("."))
    accepted = list(dict.fromkeys(_accepted(one) for one in group))
    if None in accepted:
        return Fault(path, _plain(first["msg"]))
    words = _one_of([word for word in accepted if word is not None])
    return Fault(path, f"must be {words}, not {describe(value)}", _remedy(group, value))


def _accepted(error: ErrorDetails) -> str | None:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in ("literal_error", "enum"):
        return _one_of([f'"{c}"' if isinstance(c, str) else describe(c) for c in _choices(error)])
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{words} {context[bound]}"
    if kind in ("too_short", "string_too_short"):
        return "a value that is not empty"
    return None


def _choices(error: ErrorDetails) -> list[Any]:
    expected = str(error.get("ctx", {}).get("expected", "")).replace(" or ", ", ")
    try:
        return list(ast.literal_eval(f"[{expected}]"))
    except (SyntaxError, ValueError):
        return [expected]


def _remedy(group: Sequence[ErrorDetails], value: Any) -> str:
    kinds = {error["type"] for error in group}
    if "string_type" in kinds and isinstance(value, int | float):
        return f"put it in quotes: {describe(str(describe(value)))}"
    if isinstance(value, str):
        choices = [c for e in group if e["type"] in ("literal_error", "enum") for c in _choices(e)]
        if hint := did_you_mean(value, [c for c in choices if isinstance(c, str)]):
            return hint
        if "bool_type" in kinds and value.lower() in ("true", "false", "yes", "no", "on", "off"):
            return f"write {'true' if value.lower() in ('true', 'yes', 'on') else 'false'} without quotes"
        if kinds & {"int_type", "float_type"} and value.strip().lstrip("+-").replace(".", "", 1).isdigit():
            return f"write {value.strip()} without quotes"
        if kinds & {"list_type", "tuple_type"}:
            return f"write [{', '.join(describe(word) for word in _words(value))}]"
    return ""


def _words(text: str) -> list[str]:
    """The words of what may be a command line as one types it in a shell."""
    try:
        return shlex.split(text) or [text]
    except ValueError:
        return [text]


def _one_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _plain(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return text[:1].lower() + text[1:]
