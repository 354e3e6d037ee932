"""Small files that are replaced in one step and read with care, and lock files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time

TYPE_CHECKING = False  # as typing's, without the price of importing it into every shim
if TYPE_CHECKING:
    from typing import Any

LARGEST = 1 << 60  # numbers beyond are none that we wrote


def write_json(path: str, value: object) -> None:
    """Replace a file in one step. Not synced: it is void after a reboot anyway."""
    write_file(path, json.dumps(value).encode())


def write_file(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step, or where there is no room for that, in the room that it has."""
    try:
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        os.rename(path + ".new", path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path + ".new")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _overwrite(path, data):
            raise


def _overwrite(path: str, data: bytes) -> bool:
    """Write into the blocks that a file has. A crash just then leaves a torn file, which is no record."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_blocks * 512 < len(data) or os.pwrite(fd, data, 0) != len(data):
            return False
        os.ftruncate(fd, len(data))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def read_json(path: str) -> dict[str, Any]:
    """The object in a file; {} where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sound(record: dict[str, Any], kinds: dict[str, tuple[type, ...]]) -> dict[str, Any]:
    """The record, if each of these keys is of one of these types (true is no integer); else {}."""
    for key, types in kinds.items():
        value = record.get(key)
        if type(value) not in types or (type(value) is int and abs(value) > LARGEST):
            return {}
    return record


def lock_alone(path: str, wait: float = 0.0) -> int:
    """A descriptor of `path` that holds its lock. Raises BlockingIOError where another keeps it."""
    deadline = time.monotonic() + wait
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise
            time.sleep(0.005)
        except FileNotFoundError:
            pass  # its last owner has just removed it
        os.close(fd)
