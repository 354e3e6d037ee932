"""What a shim's messages and records must be like before anything of the daemon's relies on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sagectl.shim.engine import LATEST
from sagectl.shim.orders import whole

Check = Callable[[Any], bool]


def is_whole(value: object, low: int = 0, high: int = 1 << 62) -> bool:
    """An integer in these bounds; true and 1.0 are none."""
    return whole(value, low, high)


def _is_number(value: object) -> bool:
    return is_whole(value, -1 << 62)


def _is_pid(value: object) -> bool:
    return is_whole(value, 1, (1 << 31) - 1)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < LATEST


def _are_pids(value: object) -> bool:
    return isinstance(value, list) and all(_is_pid(pid) for pid in value)


def _are_fields(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _object(shape: Mapping[str, Check]) -> Check:
    return lambda value: isinstance(value, dict) and fits(value, shape)


def fits(message: Mapping[str, Any], shape: Mapping[str, Check]) -> bool:
    """Whether each key of the shape is there, with a value that passes its check."""
    return all(key in message and check(message[key]) for key, check in shape.items())


IDENTITY: Mapping[str, Check] = {
    "pid": _is_pid,
    "starttime": is_whole,
    "boot_id": _is_text,
    "started": _is_time,
    "started_wall": _is_time,
    "log_position": _is_number,  # below 0 where somebody cut the log meanwhile
}
EXIT: Mapping[str, Check] = {
    "code": _or_none(_is_number),
    "signal": _or_none(_is_number),
    "oom": lambda value: isinstance(value, bool),
}
GENERATION: Mapping[str, Check] = {"generation": is_whole}
_ANSWER: Mapping[str, Check] = {"id": _or_none(is_whole)}

SHAPES: Mapping[str, Mapping[str, Check]] = {
    "hello": {
        **GENERATION,
        "shim_pid": _is_pid,
        "engine": _or_none(_object(IDENTITY)),
        "exit": _or_none(_object(EXIT)),
        "left": is_whole,
        "ready": lambda value: isinstance(value, bool),
        "log": _object({"trouble": _or_none(_is_text)}),
    },
    "fatal": {"text": _is_text},
    "started": {**GENERATION, **IDENTITY},
    "refused": {**GENERATION, "text": _is_text},
    "exited": {**GENERATION, **EXIT, "left": is_whole},
    "tree-empty": GENERATION,
    "stubborn": {**GENERATION, "pids": _are_pids},
    "notify": {**GENERATION, "fields": _are_fields},
    "log-trouble": {"text": _is_text},
    "measured": {
        **GENERATION,
        **_ANSWER,
        "processes": is_whole,
        "log_written": _is_number,
        "rss_bytes": is_whole,
        "read_bytes": is_whole,
        "cpu_seconds": _is_time,
    },
    "pids": {**_ANSWER, "pids": _are_pids},
}


def is_known(message: Mapping[str, Any]) -> bool:
    """Whether a daemon of this version has a use for it; a newer shim may say more.

    Raises ValueError where it has a use for the message, but not as it is.
    """
    op = message.get("op")
    if not isinstance(op, str):
        raise ValueError("a message without a word for what it is")
    shape = SHAPES.get(op)
    if shape is not None and not fits(message, shape):
        raise ValueError(f'a message "{op}" that lacks something or has it wrong')
    return shape is not None
