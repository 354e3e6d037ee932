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
from sagectl.system.shim_messages import EXIT, GENERATION, IDENTITY, fits


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
    if not record or not fits(record, IDENTITY):
        return None
    return Process(
        pid=record["pid"],
        starttime=record["starttime"],
        boot_id=record["boot_id"],
        started=float(record["started"]),
        started_wall=float(record["started_wall"]),
        log_position=record["log_position"],
    )


def exit_of(record: Mapping[str, Any] | None) -> ExitStatus | None:
    """The exit status in a shim's record or message; None for none."""
    if not record or not fits(record, EXIT):
        return None
    detail = record.get("oom_detail")
    detail = detail if isinstance(detail, str) else ""  # an earlier version's shim tells none
    return ExitStatus(record["code"], record["signal"], record["oom"], detail)


def read_started(directory: Path) -> dict[str, Any]:
    """What the shim noted before it started the engine; {} where nothing usable is there."""
    record = read_json(str(directory / "started.json"))
    if not process_of(record) or not fits(record, GENERATION):
        return {}
    context = record.get("context")
    return {**record, "context": context if isinstance(context, dict) else {}}


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
    write_json(str(directory / "started.json"), record)


def read_exit(directory: Path) -> dict[str, Any]:
    """What the shim noted of the engine's end; {} where nothing usable is there."""
    record = read_json(str(directory / "exit.json"))
    return record if fits(record, GENERATION) else {}


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
