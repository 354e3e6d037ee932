"""Failures of vLLM in the user's words, recognised by what it logs.

The texts are those of vLLM 0.32 (0.33 has the same) and huggingface_hub; tests/data/vllm holds excerpts.
vLLM wraps a cause up to three times (worker, engine, API server); the cause comes first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport
from sagectl_models.rules import Rule, Words, recognise
from sagectl_models.vllm_rules import CAUSES, DEATHS

_PROCESS = re.compile(r"\x1b\[[0-9;]*m|^\(\w[\w-]* pid=\d+\) ?")
_LEVEL = re.compile(r"^(INFO|DEBUG|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?")
_HARMLESS = ("INFO", "DEBUG", "WARNING")
_ERROR = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt)\b|error\b): ?(.*)")
_WRAPPERS = re.compile(
    r"root cause|stack trace|EngineDeadError|CancelledError|KeyboardInterrupt|Engine core initialization"
    r"|died unexpectedly|Worker failed with error|SystemExit"
)


def wrote(log: Sequence[str]) -> bool:
    """Whether this is vLLM's log."""
    return any("(APIServer pid=" in line or "/vllm/" in line for line in log)


def explain(
    words: Words, request: EngineRequest[Any], failure: FailureReport, own: Sequence[Rule] = ()
) -> Diagnosis | None:
    """The first recognised cause; else the first error of the log in its own words; else None.

    Args:
        own: rules of the kind, looked at before those of vLLM.
    """
    lines = bare(failure.log)
    text = "\n".join(lines)
    found = recognise((*own, *CAUSES), words, request, failure, text)
    if found is None and (failure.exit is None or failure.exit.signal is None):
        # A process that was killed said nothing; what its log holds are errors of earlier requests.
        found = _first_error(request, lines)
    return found or recognise(DEATHS, words, request, failure, text)


def bare(log: Sequence[str]) -> list[str]:
    """The log without vLLM's prefixes, and without what is no error."""
    lines = []
    for written in log:
        line = _PROCESS.sub("", _PROCESS.sub("", written))
        level = _LEVEL.match(line)
        if level is None:
            lines.append(line)
        elif level[1] not in _HARMLESS:
            lines.append(line[level.end() :])
    return lines


def _first_error(request: EngineRequest[Any], lines: Sequence[str]) -> Diagnosis | None:
    for number, line in enumerate(lines):
        match = _ERROR.match(line.strip())
        if match is None or _WRAPPERS.search(line):
            continue
        text = match[2].strip()
        if re.fullmatch(r"\d+ validation errors? for \w+", text) and number + 1 < len(lines):
            text = lines[number + 1].strip()  # pydantic's own sentence comes after
            if " " not in text and number + 2 < len(lines):
                text = f"{text}: {lines[number + 2].strip()}"  # the field has a line of its own
            text = text.removeprefix("Value error, ").partition(" [type=")[0]
        words = f"{match[1]}: {text}" if text else match[1]
        return Diagnosis(
            f"vLLM ended with: {words[:400]}",
            f"`sagectl logs {request.name}` shows where that came from; it is the first error there.",
        )
    return None
