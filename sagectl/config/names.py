"""Names of engines and of environment variables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MAX_NAME = 48
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
REFERENCE = re.compile(r"[a-z0-9][a-z0-9_-]*(?:@[1-9][0-9]*)?")
"""An engine as another one refers to it: a replica has a number."""
_ID = re.compile(r"engine-[0-9a-f]{8}")
_VARIABLE = re.compile(r"[^=\s\0]+")

SET_BY_US = frozenset({"SAGECTL_ENGINE", "NOTIFY_SOCKET"})
"""Variables that the shim sets itself."""

_SECRET_WORDS = frozenset(
    {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "APIKEY"}
)
_PLACES = frozenset({"FILE", "PATH", "DIR", "URL", "NAME", "ID"})


def name_fault(name: str, *, may_be_id: bool = False) -> tuple[str, str] | None:
    """What is wrong with an engine's name, and the remedy; None where nothing is."""
    if not may_be_id and _ID.fullmatch(name):
        return f'"{name}" looks like an engine\'s id', "choose a name of another form"
    if len(name) > MAX_NAME:
        return f"the name is {len(name)} characters long", f"use at most {MAX_NAME}"
    if not NAME.fullmatch(name):
        fixed = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")
        example = f', such as "{fixed}"' if NAME.fullmatch(fixed) else ""
        return (
            f'"{name}" is not a name for an engine',
            f"use a-z, 0-9, _ and -, beginning with a letter or digit{example}",
        )
    return None


def is_variable(name: str) -> bool:
    """The name can stand in a process's environment."""
    return _VARIABLE.fullmatch(name) is not None


def is_secret(variable: str) -> bool:
    """The variable's name says that its value is a secret: `HF_TOKEN`, but not `MAX_TOKENS`."""
    words = [word for word in re.split(r"[^A-Z0-9]+", variable.upper()) if word]
    if not words or words[-1] in _PLACES:
        return False
    return (
        not _SECRET_WORDS.isdisjoint(words)
        or words[-1].endswith(("PASSWORD", "PASSWD"))
        or (len(words) > 1 and words[-1] in ("KEY", "PWD"))
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean "model"?`, or "" where nothing known is close."""
    # Few mistype the first letter: "bogus" does not mean "gpus", though "vllm" means "llm".
    for name in difflib.get_close_matches(word, known, n=5):
        alike = difflib.SequenceMatcher(None, word, name).ratio()
        if name[:1] == word[:1] or alike >= 0.8:
            return f'did you mean "{name}"?'
    return ""
