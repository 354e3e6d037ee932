"""Flags that a user gives to a server in `extra_args`, as its command line reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-q": "--quantization",
    "-m": "--model",
}


def trouble(owned: Mapping[str, str], arguments: Sequence[str]) -> tuple[str, str] | None:
    """The first argument that is sagectl's to set: what is wrong and what to do instead.

    The servers take `--x y` and `--x=y`, underscores for dashes, `--no-x`, and any beginning of a
    flag that is unique; all of that is meant too.

    Args:
        owned: the flags that are refused, and what to do instead.
    """
    for argument in arguments:
        written = argument.partition("=")[0]
        if not written.startswith("-") or len(written) < 2:
            continue
        flag = _meant(written, owned)
        if flag is not None:
            return f"{written} belongs to sagectl", owned[flag]
    return None


def given(flag: str, arguments: Sequence[str]) -> bool:
    """Whether the user gives this flag."""
    return any(argument.partition("=")[0].replace("_", "-") == flag for argument in arguments)


def value(flag: str, arguments: Sequence[str]) -> str | None:
    """What the user gives to this flag, as `--x y` or `--x=y`; the last one counts, as in argparse."""
    found = None
    for place, argument in enumerate(arguments):
        name, equals, written = argument.partition("=")
        if name.replace("_", "-") == flag:
            found = written if equals else (arguments[place + 1] if place + 1 < len(arguments) else None)
    return found


def number(flag: str, arguments: Sequence[str]) -> int | None:
    """A whole number that the user gives to this flag, in vLLM's ways too: `8k` is 8000, `8K` is 8192."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", value(flag, arguments) or "")
    if match is None:
        return None
    factors = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}
    return int(float(match[1]) * factors[match[2]])


def _meant(written: str, owned: Mapping[str, str]) -> str | None:
    if not written.startswith("--"):
        # argparse takes `-tp2` and `-q awq` alike
        shorts = [long for short, long in _SHORT.items() if written.rstrip("0123456789") == short]
        return shorts[0] if shorts and shorts[0] in owned else None
    name = "--" + written[2:].replace("_", "-")
    for form in (name, name.replace("--no-", "--", 1)):
        if form in owned:
            return form
    return next((flag for flag in owned if flag.startswith(name) and len(name) > 2), None)
