"""What the daemon's messages must be like: what passes here is carried out, or refused, without a surprise.

A message that is not as it should be costs the daemon its connection, and a launch is refused; a shim
that ended over one would be replaced by the next, to be told the same.
"""

from __future__ import annotations

import errno

from sagectl.shim.files import LARGEST
from sagectl.shim.launch import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def whole(value: object, low: int, high: int) -> bool:
    """An integer in these bounds; true and 1.0 are none."""
    return type(value) is int and low <= value <= high


def generation_of(message: dict[str, Any]) -> int:
    """The start that a message is about. Raises ValueError."""
    value = message.get("generation")
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise ValueError("no generation")
    return value


def signal_of(message: dict[str, Any]) -> int:
    """The signal to send. Raises ValueError."""
    value = message.get("signal")
    if type(value) is not int or not 0 <= value <= 64:
        raise ValueError("no signal")
    return value


def context_of(message: dict[str, Any]) -> dict[str, Any]:
    """What to keep for the daemon. Raises ValueError."""
    value = message.get("context")
    if not isinstance(value, dict):
        raise ValueError("no context")
    return value


def number_of(message: dict[str, Any]) -> int | None:
    """The number of a question. Raises ValueError."""
    value = message.get("id")
    if value is not None and (type(value) is not int or not 0 <= value <= LARGEST):
        raise ValueError("no number")
    return value


def check_launch(order: dict[str, Any]) -> None:
    """Raise LaunchError where `start` could not make sense of the order."""
    for key, (holds, what) in LAUNCH.items():
        if not holds(order.get(key)):
            raise LaunchError(f"cannot understand the order to start it: {key} must be {what}", errno.EINVAL)


def _is_argv(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def _is_env(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_user(value: object) -> bool:
    if not value:
        return value is None
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], list):
        return False
    return all(whole(number, 0, 0xFFFFFFFE) for number in (*value[:2], *value[2]))  # above: "as it is"


def _are_limits(value: object) -> bool:
    if not isinstance(value, dict):
        return value is None
    return all(_is_limit(pair) for pair in value.values())


def _is_limit(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(whole(number, -1, (1 << 63) - 1) for number in value)


def _are_cpus(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(whole(number, 0, 8191) for number in value)


LAUNCH: dict[str, tuple[Callable[[Any], bool], str]] = {
    "argv": (_is_argv, "a list of texts, with a program"),
    "env": (_is_env, "texts by name"),
    "cwd": (lambda value: isinstance(value, str), "a path"),
    "user": (_is_user, "a user, a group and a list of groups, by number"),
    "nice": (lambda value: value is None or whole(value, -20, 19), "from -20 to 19"),
    "oom_score_adjust": (lambda value: value is None or whole(value, -1000, 1000), "from -1000 to 1000"),
    "rlimits": (_are_limits, "pairs of a soft and a hard limit"),
    "nofile": (lambda value: value is None or _is_limit(value), "a soft and a hard limit"),
    "cpu_affinity": (lambda value: value is None or _are_cpus(value), "numbers of CPUs"),
    "memory_max": (lambda value: value is None or whole(value, 1, (1 << 63) - 1), "a number of bytes"),
    "cpu_weight": (lambda value: value is None or whole(value, 1, 10000), "from 1 to 10000"),
    "context": (lambda value: value is None or isinstance(value, dict), "an object"),
}
