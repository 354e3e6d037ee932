"""Recognise what format a row is in, and make an example of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .conversations import kind, messages, sharegpt, text, tools, unpacked
from .model import Example, Format, RowError

Row = Mapping[str, Any]

CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("input", "output"))
ANSWERS = ("output", "response")
KEYS = (
    "messages; conversations; instruction and output; prompt and completion (or response); "
    "question and answer; input and output; or text"
)


def recognise(row: Any) -> Format:
    """The format of one row, by its keys. Raises RowError where there is none, or more than one."""
    if isinstance(row, list):
        return _of_conversation(row)
    if not isinstance(row, Mapping):
        raise RowError(f"is {kind(row)}, not an object")
    given = {key for key, value in row.items() if value is not None} or set(row)
    conversations = [key for key in CONVERSATIONS if key in given]
    if len(conversations) > 1:
        raise RowError(
            f'has both "{conversations[0]}" and "{conversations[1]}"; name the format that is meant'
        )
    if conversations:
        return _of_conversation(row[conversations[0]])
    for keys in (given, set(row)):
        found = _by_keys(keys)
        if found is not None:
            return found
    raise RowError(f"has none of the keys of a known format ({KEYS}), but {_listed(row)}")


def _by_keys(keys: set[str]) -> Format | None:
    if "instruction" in keys and keys & {"output", "response"}:
        return "alpaca"
    if any(keys.issuperset(pair) for pair in PAIRS):
        return "prompt-completion"
    return "text" if "text" in keys else None


def _of_conversation(given: Any) -> Format:
    try:
        given = unpacked(given, "")
    except RowError:
        return "messages"
    first = given[0] if isinstance(given, list) and given else None
    return "sharegpt" if isinstance(first, Mapping) and "from" in first else "messages"


def _listed(row: Row) -> str:
    return ", ".join(sorted(map(str, row))[:8]) or "no keys at all"


def example(row: Any, form: Format, file: str, number: int) -> Example:
    """What is trained on. Raises RowError where the row is not a good one of this format."""
    if not isinstance(row, Mapping | list):
        raise RowError(f"is {kind(row)}, not an object")
    return _MAKERS[form]({"messages": row} if isinstance(row, list) else row, file, number)


def _messages(row: Row, file: str, number: int) -> Example:
    key = _key(row)
    said, trained = messages(row[key], key)
    offered = tools(row.get("tools") or row.get("functions"))
    return Example(file, number, "messages", messages=said, trained=trained, tools=offered)


def _sharegpt(row: Row, file: str, number: int) -> Example:
    key = _key(row, first="conversations")
    said, trained = sharegpt(row[key], key)
    if row.get("system"):
        said = [{"role": "system", "content": text(row["system"], '"system"')}, *said]
        trained = tuple(index + 1 for index in trained)
    return Example(file, number, "sharegpt", messages=said, trained=trained, tools=tools(row.get("tools")))


def _key(row: Row, first: str = "messages") -> str:
    for key in (first, *CONVERSATIONS):
        if key in row:
            return key
    raise RowError(f'has no "{first}", but {_listed(row)}')


def _alpaca(row: Row, file: str, number: int) -> Example:
    for key in ("instruction", "output"):
        if key not in row and not (key == "output" and "response" in row):
            raise RowError(f'has no "{key}", but {_listed(row)}')
    asked = text(row["instruction"], '"instruction"')
    # Dolly's names for the same.
    context = row.get("input") or row.get("context")
    if context:
        given = text(context, '"input"')
        asked = f"{asked}\n\n{given}" if asked.strip() else given
    if not asked.strip():
        raise RowError('"instruction" and "input" are empty')
    key = next(key for key in ANSWERS if key in row)
    said = [*_system(row), *_history(row)]
    said += [{"role": "user", "content": asked}, {"role": "assistant", "content": row[key]}]
    answer = text(row[key], f'"{key}"')
    if not answer.strip():
        raise RowError(f'"{key}" is empty')
    checked, trained = messages(said)
    return Example(file, number, "alpaca", messages=checked, trained=trained)


def _system(row: Row) -> list[Row]:
    return [{"role": "system", "content": text(row["system"], '"system"')}] if row.get("system") else []


def _history(row: Row) -> list[Row]:
    said: list[Row] = []
    for turn in unpacked(row.get("history") or [], '"history"'):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError('"history" is not made of pairs')
        said += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return said


def _pair(row: Row, file: str, number: int) -> Example:
    names = next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)
    if names is None:
        raise RowError(f"has no pair of keys of this format, but {_listed(row)}")
    first, second = names
    if isinstance(row[first], list) and isinstance(row[second], list):
        return _conversational_pair(row, names, file, number)
    asked, answer = text(row[first], f'"{first}"'), text(row[second], f'"{second}"')
    if not answer.strip():
        raise RowError(f'"{second}" is empty')
    # Prompts with completions are written so that they follow each other; the others are not.
    separator = "" if names == PAIRS[0] else "\n"
    return Example(file, number, "prompt-completion", prompt=asked, completion=answer, separator=separator)


def _conversational_pair(row: Row, names: tuple[str, str], file: str, number: int) -> Example:
    asked, answered = (row[name] for name in names)
    said, trained = messages([*asked, *answered], f"{names[0]} and {names[1]}")
    trained = tuple(index for index in trained if index >= len(asked))
    if not trained:
        raise RowError(f'"{names[1]}" has no assistant turn')
    offered = tools(row.get("tools"))
    return Example(file, number, "prompt-completion", messages=said, trained=trained, tools=offered)


def _text(row: Row, file: str, number: int) -> Example:
    if "text" not in row:
        raise RowError(f'has no "text", but {_listed(row)}')
    whole = text(row["text"], '"text"')
    if not whole.strip():
        raise RowError('"text" is empty')
    return Example(file, number, "text", text=whole)


_MAKERS: dict[Format, Callable[[Row, str, int], Example]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt-completion": _pair,
    "text": _text,
}
