"""What an engine may be given of the machine, as people write it: `nofile = 65536`, `as = "32GiB"`,
`[soft, hard]`, CPUs `[0, 1]` or `"0-3,8"`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sagectl.config.units import SIZE_REMEDY, BadValue, describe, parse_duration, parse_size

UNLIMITED = -1
"""RLIM_INFINITY, as `resource` has it."""

MAX_LIMIT = 2**60
MAX_CPUS = 8192
"""More than the kernel can be built for."""

Pair = tuple[int, int]
_OR = ', "unlimited", or [soft, hard]'
COUNT_REMEDY = f"write a number such as 65536{_OR}"
CPUS_REMEDY = 'write CPUs such as [0, 1] or "0-3,8"'
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def parse_limit(value: Any, one: Callable[[Any], int]) -> Pair:
    """A limit, or `[soft, hard]` → both. Raises BadValue.

    Args:
        one: reads a single value that is not "unlimited".
    """
    if not isinstance(value, list):
        both = _one(value, one)
        return both, both
    if len(value) != 2:
        message = "an array of limits has two: the soft and the hard one"
        raise BadValue(message, "write [soft, hard], or one value for both")
    soft, hard = _one(value[0], one), _one(value[1], one)
    if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        raise BadValue(
            f"the soft limit of {in_words(soft)} is above the hard one of {in_words(hard)}",
            "write [soft, hard]",
        )
    return soft, hard


def _one(value: Any, one: Callable[[Any], int]) -> int:
    return UNLIMITED if value == "unlimited" else one(value)


def as_count(value: Any) -> int:
    """A whole number from 0. Raises BadValue."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadValue(f"{describe(value)} is not a number", COUNT_REMEDY)
    if value > MAX_LIMIT:
        raise BadValue(f"{describe(value)} is more than any limit", 'write "unlimited"')
    return value


def as_bytes(value: Any) -> int:
    """Bytes. Raises BadValue."""
    try:
        return parse_size(value)
    except BadValue as error:
        remedy = f"{SIZE_REMEDY}{_OR}" if error.remedy == SIZE_REMEDY else error.remedy
        raise BadValue(error.message, remedy) from None


def as_seconds(value: Any) -> int:
    """A duration in whole seconds, rounded up. Raises BadValue."""
    return math.ceil(parse_duration(value))


def as_microseconds(value: Any) -> int:
    """A duration; a plain number is microseconds already, the kernel's unit. Raises BadValue."""
    return math.ceil(parse_duration(value) * 1e6) if isinstance(value, str) else as_count(value)


def up_to(most: int) -> Callable[[Any], int]:
    """A number from 0 to `most`."""

    def one(value: Any) -> int:
        number = as_count(value)
        if number > most:
            raise BadValue(f"{describe(value)} is not one from 0 to {most}", f"write at most {most}")
        return number

    return one


def parse_cpus(value: Any) -> tuple[int, ...]:
    """`[0, 1]`, `"0-3,8"` or a number → the CPUs, each once, in order. Raises BadValue."""
    found: set[int] = set()
    parts: Sequence[Any]
    if isinstance(value, str):
        parts = [_range(word) for word in re.split(r"[,\s]+", value.strip(), flags=re.ASCII) if word]
    elif isinstance(value, list):
        parts = [_cpu(number) for number in value]
    else:
        parts = [_cpu(value)]
    for part in parts:
        found.update(part)
    if not found:
        raise BadValue("names no CPU", CPUS_REMEDY)
    return tuple(sorted(found))


def _cpu(value: Any) -> range:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_CPUS:
        raise BadValue(f"{describe(value)} is not a CPU's number", CPUS_REMEDY)
    return range(value, value + 1)


def _range(word: str) -> range:
    match = _RANGE.fullmatch(word)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last or last >= MAX_CPUS:
        raise BadValue(f"{describe(word)} is neither a CPU's number nor a range of them", CPUS_REMEDY)
    return range(first, last + 1)


def cpus_in_words(cpus: Iterable[int]) -> str:
    """CPUs in order as `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def shown(limits: Mapping[str, Pair]) -> dict[str, Any]:
    """Limits with the TOML's own words."""
    return {
        name: in_words(soft) if soft == hard else [in_words(soft), in_words(hard)]
        for name, (soft, hard) in limits.items()
    }


def in_words(limit: int) -> int | str:
    """A limit as one would write it."""
    return "unlimited" if limit == UNLIMITED else limit
