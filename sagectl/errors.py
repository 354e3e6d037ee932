"""The errors of sagectl: one base, one level below it.

A refusal that is part of normal operation is a value (`sagectl.plugin.Refusal`); these are for
requests that cannot be carried out. Each says what happened, why, and what to do. How they become
HTTP statuses stands in `sagectl.api.problems`, how they become exit codes in `sagectl.cli.exits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


def sentence(text: str) -> str:
    """The text with a capital at its beginning, unless that is a name such as `gpu_ids`."""
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration or a request body.

    Args:
        key: dotted, such as `engines.chat.port`; "" where the whole file is meant.
        message: what is wrong, a sentence without a final period.
        remedy: what to do, likewise; may be "".
        file, line: where; None and 0 for a request body. Lines count from 1.
    """

    key: str
    message: str
    remedy: str = ""
    file: str | None = None
    line: int = 0
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = (
            f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        )
        key = f"{self.key}: " if self.key else ""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{key}{self.message}{remedy}"


class SagectlError(Exception):
    """Something that the user asked for cannot be done."""

    code = "error"
    """A stable word for scripts; the same in the API's `code` and in `--json` errors."""

    def __init__(self, detail: str, *, remedy: str = "", facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.facts = dict(facts or {})

    def __str__(self) -> str:
        return f"{self.detail}. {sentence(self.remedy)}." if self.remedy else self.detail


class MalformedRequest(SagectlError):
    """The request is not what its content type says, or a parameter is no number."""

    code = "malformed"


class UnknownEngine(SagectlError):
    """No engine has this id, name or group."""

    code = "unknown_engine"


class UnknownRoute(SagectlError):
    """The API has no such path."""

    code = "unknown_route"


class Conflict(SagectlError):
    """The request does not fit the engine's state."""

    code = "conflict"


class InvalidConfig(SagectlError):
    """A configuration or a definition is wrong; `problems` has every mistake."""

    code = "invalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        errors = [p for p in problems if p.severity == "error"]
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        super().__init__(f"{count} in the definition: {'; '.join(str(p) for p in errors)}")
        self.problems = tuple(problems)


class Forbidden(SagectlError):
    """The peer's user may not do this."""

    code = "forbidden"


class Unplaceable(SagectlError):
    """It can never run on this machine."""

    code = "unplaceable"


class Unkept(SagectlError):
    """It would be forgotten with the daemon, because the state database cannot be written."""

    code = "unkept"


class NoDaemon(SagectlError):
    """No daemon answers on the socket."""

    code = "no_daemon"


class DaemonRefusal(SagectlError):
    """The daemon cannot start here: another one runs, or the kernel lacks something."""

    code = "daemon_refusal"
