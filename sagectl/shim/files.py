"""Small JSON files that are replaced in one step, and read with care."""

from __future__ import annotations

import errno
import json
import os

TYPE_CHECKING = False  # as typing's, without the price of importing it into every shim
if TYPE_CHECKING:
    from typing import Any


def write_json(path: str, value: object) -> None:
    """Replace a file in one step. Not synced: it is void after a reboot anyway."""
    data = json.dumps(value).encode()
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)
    os.rename(path + ".new", path)


def read_json(path: str) -> dict[str, Any]:
    """The object in a file; {} where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
