"""Which process is it? PID files, the shims' records, and identities that survive PID reuse."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from sagectl.core.engine import Process
from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from sagectl.shim.engine import VERSION
from sagectl.shim.files import read_json, write_json

STARTED, EXIT = "started.json", "exit.json"


@cache
def boot_id() -> str:
    """The kernel's name for this boot."""
    return tree.boot_id()


def read_pid(path: Path) -> int | None:
    """The number in a PID file; None where there is none that makes sense."""
    try:
        text = path.read_text("ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and 0 < int(text) < 1 << 22 else None


def process_of(record: Mapping[str, Any] | None) -> Process | None:
    """The identity in a shim's record or message; None where it is incomplete."""
    if not record:
        return None
    try:
        return Process(
            pid=int(record["pid"]),
            starttime=int(record["starttime"]),
            boot_id=str(record["boot_id"]),
            started=float(record["started"]),
            started_wall=float(record["started_wall"]),
            log_position=int(record["log_position"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def exit_of(record: Mapping[str, Any] | None) -> ExitStatus | None:
    """The exit status in a shim's record or message; None for none."""
    if not record:
        return None
    return ExitStatus(record.get("code"), record.get("signal"), bool(record.get("oom")))


def read_started(directory: Path) -> dict[str, Any]:
    """What the shim noted before it started the engine; {} where nothing usable is there."""
    record = read_json(str(directory / STARTED))
    return record if process_of(record) and isinstance(record.get("generation"), int) else {}


def write_started(
    directory: Path, generation: int, process: Process, uid: int, ready: bool, context: Mapping[str, Any]
) -> None:
    """Note a living process as its shim would have. Raises OSError."""
    record = {
        **asdict(process),
        "v": VERSION,
        "generation": generation,
        "shim_pid": 0,
        "uid": uid,
        "ready": ready,
        "context": dict(context),
    }
    write_json(str(directory / STARTED), record)


def read_exit(directory: Path) -> dict[str, Any]:
    """What the shim noted of the engine's end; {} where nothing usable is there."""
    record = read_json(str(directory / EXIT))
    return record if isinstance(record.get("generation"), int) else {}


def open_verified(process: Process) -> int | None:
    """A pidfd of exactly this process (the caller closes it); None where it is gone.

    The descriptor comes first and the identity is verified after: then it cannot become another's.
    """
    if process.boot_id != boot_id():
        return None
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if tree.start_time(process.pid) == process.starttime:
        return fd
    os.close(fd)
    return None


def is_alive(process: Process) -> bool:
    """Whether exactly this process runs; a zombie does not."""
    fd = open_verified(process)
    if fd is None:
        return False
    try:
        return not tree.has_ended(fd)
    finally:
        os.close(fd)
