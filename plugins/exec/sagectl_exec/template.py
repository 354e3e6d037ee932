"""The placeholders of a command: a closed list, no expressions, no shell."""

from __future__ import annotations

import re
from collections.abc import Mapping

PLACEHOLDERS = ("name", "model", "host", "port", "gpu_ids")

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class TemplateError(ValueError):
    """A word of a command cannot be filled in; the message says which part and what is possible."""


def check(word: str) -> None:
    """Refuse unknown placeholders and single braces.

    Raises:
        TemplateError: naming the known placeholders.
    """
    for match in _TOKEN.finditer(word):
        if match[0] in ("{{", "}}") or match[1] in PLACEHOLDERS:
            continue
        known = " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        what = f"unknown placeholder {match[0]}" if match[1] is not None else f"a single {match[0]}"
        raise TemplateError(f"{what} in {word!r}; known are {known}, and {{{{ or }}}} is a brace itself")


def used(words: tuple[str, ...]) -> frozenset[str]:
    """The names of the placeholders that occur in `words`."""
    return frozenset(match[1] for word in words for match in _TOKEN.finditer(word) if match[1] is not None)


def fill(word: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders of a checked word; what is filled in is not looked at again."""

    def replace(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else values[match[1]]

    return _TOKEN.sub(replace, word)
