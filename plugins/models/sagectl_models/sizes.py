"""Sizes of memory as users write them."""

from __future__ import annotations

import re

_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def size_in_bytes(text: str | int, *, key: str = "kv_cache_memory") -> int:
    """`"4GiB"`, `"500MB"` or a number of bytes. Raises ValueError that names the key."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip(), re.ASCII)
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ValueError(f'{key}: "{text}" is not a size; write one such as "4GiB" or "500MB"')
    return round(float(match[1]) * _UNITS[match[2]])
