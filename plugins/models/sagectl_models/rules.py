"""Tables of causes: what a server's log says when it fails, and what to tell the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport


@dataclass(frozen=True, slots=True)
class Rule:
    """One cause. `pattern` is searched in the log; `{python}`, `{model}`, `{port}`, `{name}` and the
    pattern's named groups are filled into `summary` and `remedy`.
    """

    pattern: str
    summary: str
    remedy: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """What a kind's remedies call things.

    kind: as in `[defaults.KIND]`.
    host_memory: what to do when the machine's memory ran out.
    more: further words to fill in.
    """

    kind: str
    host_memory: str
    more: Mapping[str, str] = field(default_factory=dict)


def recognise(
    rules: Sequence[Rule], words: Words, request: EngineRequest[Any], failure: FailureReport, log: str
) -> Diagnosis | None:
    """The first of the rules that matches the log, its words filled in."""
    if failure.exit is not None and failure.exit.oom_kill:
        detail = f": {failure.exit.oom_detail}" if failure.exit.oom_detail else ""
        summary = f"The kernel killed {request.name} because memory ran out{detail}."
        return Diagnosis(summary, words.host_memory)
    known = {
        "kind": words.kind,
        "python": request.python,
        "model": request.model or "the model",
        "port": str(request.port),
        "name": request.name,
        **words.more,
    }
    for rule in rules:
        match = re.search(rule.pattern, log)
        if match is None:
            continue
        found = known | {key: value or "" for key, value in match.groupdict().items()}
        return Diagnosis(_fill(rule.summary, found), _fill(rule.remedy, found), rule.retryable)
    return None


def _fill(text: str, words: Mapping[str, str]) -> str:
    # Not str.format: remedies show TOML, which has braces of its own.
    return re.sub(r"\{(\w+)\}", lambda match: words[match[1]], text)
