"""Shims and engines that the runtime directory does not account for, because somebody removed its files."""

from __future__ import annotations

import os
from pathlib import Path

from sagectl.shim import tree

_SHIM = b"sagectl-shim "
_DELETED = " (deleted)"

Identity = tuple[int, int]
"""A process's id, and the clock tick at which it began."""


def find(engines: Path) -> dict[str, Identity | None]:
    """Every engine of this home of which a process lives, and its shim, None where that is dead.

    Shims are told by their title and working directory, engines by their mark, so that no process of
    another home, or of somebody else, is ever among them. One look at /proc.

    Args:
        engines: RUN/engines, absolute.
    """
    found: dict[str, Identity | None] = {}
    home = os.fspath(engines)
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        name, shim = shim_of(int(entry), os.fsencode(home)), True
        if name is None:
            name, shim = marked(int(entry), os.fsencode(home)), False
        fields = tree.process_stat(int(entry)) if name else None
        if name is None or fields is None or not tree.alive(fields):
            continue
        if shim:
            found[name] = (int(entry), int(fields[19]))
        else:
            found.setdefault(name, None)
    return found


def shim_of(pid: int, home: bytes) -> str | None:
    """The engine of this home whose shim a process is.

    Args:
        home: RUN/engines, absolute.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb", 0) as file:
            if file.read(len(_SHIM)) != _SHIM:
                return None
        cwd = os.fsencode(os.readlink(f"/proc/{pid}/cwd").removesuffix(_DELETED))
    except OSError:
        return None
    directory, name = os.path.split(cwd)
    return os.fsdecode(name) if directory == home else None


def marked(pid: int, home: bytes) -> str | None:
    """The engine of this home whose mark a process has in its environment.

    Args:
        home: RUN/engines, absolute.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb", 0) as file:
            text = b"\0" + file.read()
    except OSError:
        return None
    mark = text.partition(b"\0" + tree.MARKER + b"=")[2].partition(b"\0")[0]
    directory, _, name = mark.rpartition(b"/")
    return os.fsdecode(name) if directory.endswith(b":" + home) else None
