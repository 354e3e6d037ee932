"""Sizes, shares, durations and signals as people write them."""

from __future__ import annotations

import math
import re
import signal
from datetime import date, time
from typing import Any

_SIZES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SECONDS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z%]*)", re.ASCII)
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?\s*[a-z]+\s*)+", re.ASCII)

SIZE_REMEDY = 'write a size such as "20GiB" or "500MB", or a number of bytes'
SHARE_REMEDY = 'write a share such as "40%"'
DURATION_REMEDY = 'write a duration such as "90s", "5min" or "1h", or a number of seconds'
SIGNAL_REMEDY = 'write a signal such as "SIGINT", or its number'

MAX_BYTES = 2**60
MAX_SECONDS = 10 * 365 * 86400.0


class BadValue(ValueError):
    """A value that means nothing here: `message` says what is wrong, `remedy` what is accepted."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def describe(value: Any) -> str:
    """A value as TOML's user knows it: `"x"`, `5`, `an array`; long ones are cut."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # str() of an integer takes no more than 4300 digits, and nobody wants to read forty.
        if isinstance(value, int) and abs(value) >= 10**30:
            return f"a number of {int(math.log10(abs(value))) + 1} digits"
        return str(value)
    if isinstance(value, str):
        return f'"{value[:60]}…"' if len(value) > 60 else f'"{value}"'
    if isinstance(value, list | tuple):
        return "an array" if value else "an empty array"
    if isinstance(value, dict):
        return "a table"
    return "a date or time" if isinstance(value, date | time) else f"a {type(value).__name__}"


def encodable(text: str) -> bool:
    """The text can be written as UTF-8; JSON's `"\\ud800"` can not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_size(value: Any) -> int:
    """`"20GiB"`, `"500MB"` or a number of bytes → bytes. Raises BadValue."""
    if isinstance(value, int) and not isinstance(value, bool):
        # Cut off, since an integer may be too large for a float.
        amount, unit = float(max(min(value, MAX_BYTES * 2), -1)), "B"
    elif isinstance(value, str) and (match := _AMOUNT.fullmatch(value.strip())):
        amount, unit = float(match[1]), match[2]
    else:
        raise BadValue(f"{describe(value)} is not a size", SIZE_REMEDY)
    if unit not in _SIZES:
        if unit == "":
            raise BadValue(f"{describe(value)} has no unit", SIZE_REMEDY)
        likely = [known for known in _SIZES if known.lower() in (f"{unit}ib".lower(), unit.lower())]
        hint = f'write "{amount:g}{likely[-1]}"' if likely else SIZE_REMEDY
        raise BadValue(f'"{unit}" is not a unit of size', hint)
    if amount < 0:
        raise BadValue(f"{describe(value)} is negative", SIZE_REMEDY)
    if amount * _SIZES[unit] > MAX_BYTES:
        raise BadValue(f"{describe(value)} is larger than any memory", SIZE_REMEDY)
    return round(amount * _SIZES[unit])


def parse_share(value: Any) -> float:
    """`"40%"` → 0.4, more than 0 and at most 1. Raises BadValue."""
    match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] != "%":
        raise BadValue(f"{describe(value)} is not a share", SHARE_REMEDY)
    percent = float(match[1])
    if percent > 100:
        raise BadValue(f"{value.strip()} is more than the whole card", "write at most 100%")
    if percent == 0:
        raise BadValue("0% leaves nothing", SHARE_REMEDY)
    return percent / 100


def is_share(value: Any) -> bool:
    """The value is meant as a share rather than a size."""
    return isinstance(value, str) and value.strip().endswith("%")


def parse_duration(value: Any) -> float:
    """`"90s"`, `"5min"`, `"1h 30min"` or a number of seconds → seconds, from 0. Raises BadValue."""
    seconds: float
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A comparison, since an integer may be too large for a float.
        seconds = math.inf if value > MAX_SECONDS else float(max(value, -1))
    elif isinstance(value, str):
        seconds = _span(value)
    else:
        raise BadValue(f"{describe(value)} is not a duration", DURATION_REMEDY)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValue(f"{value} is not a duration", DURATION_REMEDY)
    if seconds < 0:
        raise BadValue(f"{describe(value)} is negative", DURATION_REMEDY)
    if seconds > MAX_SECONDS:
        raise BadValue(f"{describe(value)} is longer than ten years", DURATION_REMEDY)
    return seconds


def _span(text: str) -> float:
    if not _SPAN.fullmatch(text.strip()):
        raise BadValue(f"{describe(text)} is not a duration", DURATION_REMEDY)
    total = 0.0
    for amount, unit in _AMOUNT.findall(text):
        if unit not in _SECONDS:
            raise BadValue(f'"{unit}" is not a unit of time', f"use one of {', '.join(_SECONDS)}")
        total += float(amount) * _SECONDS[unit]
    return total


def parse_signal(value: Any) -> int:
    """`"SIGINT"`, `"INT"` or a number → the number. Raises BadValue."""
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value if value in signal.valid_signals() else None
    elif isinstance(value, str):
        name = value.strip().upper().removeprefix("SIG")
        number = getattr(signal.Signals, f"SIG{name}", None)
    if number is None:
        raise BadValue(f"{describe(value)} is not a signal", SIGNAL_REMEDY)
    if number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD):
        raise BadValue(f"{signal.Signals(number).name} ends no process", SIGNAL_REMEDY)
    return int(number)
