"""What a data set is made of once it is read: examples, bad rows, and the error that refuses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

Format: TypeAlias = Literal["messages", "sharegpt", "alpaca", "prompt-completion", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
Message: TypeAlias = Mapping[str, Any]

LISTED = 20
"""Bad rows that an error lists."""


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to train on: a conversation, a prompt with its completion, or a text. The others are empty.

    file, row: where it came from; `row` counts from 1, in lines where the file is made of lines.
    messages: in OpenAI's form, the arguments of tool calls as objects, not as JSON.
    trained: which of `messages` are trained on, by index; all are the assistant's.
    tools: what the assistant could call, in OpenAI's form.
    separator: stands between prompt and completion where they are written without a chat template.
    """

    file: str
    row: int
    format: Format
    messages: Sequence[Message] = ()
    trained: tuple[int, ...] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    prompt: str = ""
    completion: str = ""
    separator: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be trained on. `row` is 0 where the whole file is meant."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}" if self.row else f"{self.file}: {self.reason}"


class DataError(ValueError):
    """The data cannot be trained on as it is.

    what: what happened and why, one line.
    remedy: what to do next, one line.
    bad: the first bad rows, where they are the reason.
    """

    def __init__(self, what: str, remedy: str, bad: Sequence[BadRow] = ()) -> None:
        self.what = what
        self.remedy = remedy
        self.bad = tuple(bad[:LISTED])
        super().__init__(what, remedy)

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.what}:" if self.bad else self.what, *(f"  {row}" for row in self.bad), self.remedy]
        )


class RowError(ValueError):
    """Why one row is bad; the reader knows which row it is."""
