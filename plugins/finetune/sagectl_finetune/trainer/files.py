"""Files that are whole or absent, whenever the process or the machine ends."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_BLOCK = 1 << 20


def sync(path: Path) -> None:
    """Bring a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write JSON in place of the file, atomically. durable: it also survives a power cut."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(scratch, path)
    if durable:
        sync(path.parent)


def load(path: Path) -> Any:
    """The JSON of a file; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def digest(path: Path, *, durable: bool = False) -> str:
    """sha256 of a file, in hex. durable: it is on the disk afterwards."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
        if durable:
            os.fsync(file.fileno())
    return found.hexdigest()


def size_below(directory: Path) -> int:
    """Bytes of the files of a directory and its subdirectories; 0 where it is not there."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name), follow_symlinks=False).st_size
            except OSError:
                continue  # it was replaced meanwhile
    return total


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the kernel or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOENT):
        return False
    raise OSError(number, os.strerror(number), str(other))
