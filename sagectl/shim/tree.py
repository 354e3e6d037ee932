"""Processes as /proc shows them: identity, descent, use, and the end of those that are not our children."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MARKER = b"SAGECTL_ENGINE"  # NAME:GENERATION:DIRECTORY in the environment of every engine
PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info of 64 bytes), Linux 6.13
PIDFD_INFO_EXIT = 8  # Linux 6.15


def boot_id() -> str:
    """The kernel's name for this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def process_stat(pid: int) -> list[bytes] | None:
    """/proc/PID/stat from the state on (field N of proc(5) is [N - 3]); None where there is none."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 4096).rpartition(b") ")[2].split()
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which the process began."""
    fields = process_stat(pid)
    return int(fields[19]) if fields else None


def alive(fields: list[bytes]) -> bool:
    """Not a zombie. A leader that ended before its threads looks like one, but is none."""
    return fields[0] not in (b"Z", b"X") or int(fields[17]) > 1


def children(pid: int) -> list[int]:
    """Its direct children, zombies included. May miss one while others are ending."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb", 0) as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def living(pids: Iterable[int]) -> dict[int, int]:
    """Of these and all below them, the living, as {pid: starttime}."""
    found: dict[int, int] = {}
    waiting, seen = list(pids), set[int]()
    while waiting:
        pid = waiting.pop()
        fields = process_stat(pid) if pid not in seen else None
        seen.add(pid)
        if fields:
            if alive(fields):
                found[pid] = int(fields[19])
            waiting += children(pid)
    return found


def marked(directory: str, session: int, since: int) -> dict[int, int]:
    """Processes that belong to the engine of this directory, as {pid: generation, or 0}.

    By the mark in their environment; else by being of the main process's session, or by holding
    tree.lock. Only the living, and none that began before `since`.
    """
    found = {}
    for entry in os.listdir("/proc"):
        fields = process_stat(int(entry)) if entry.isdigit() else None
        if not fields or int(fields[19]) < since or not alive(fields):
            continue
        generation = _generation(entry, os.fsencode(f":{directory}"))
        if generation or int(fields[3]) == session or _holds(entry, f"{directory}/tree.lock"):
            found[int(entry)] = generation
    found.pop(os.getpid(), None)
    return found


def _generation(entry: str, ending: bytes) -> int:
    try:
        with open(f"/proc/{entry}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return 0
    for variable in variables:
        if variable.startswith(MARKER + b"=") and variable.endswith(ending):
            number = variable[: -len(ending)].rpartition(b":")[2]
            return int(number) if number.isdigit() else 0
    return 0


def _holds(entry: str, path: str) -> bool:
    try:
        held = (os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd"))
        return any(link.removesuffix(" (deleted)") == path for link in held)
    except OSError:
        return False


def kill_verified(pid: int, started: int, number: int) -> None:
    """Signal the process only if it is still the one that began then."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if start_time(pid) == started:
            signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        os.close(fd)


def foreign_status(pid: int, started: int, pidfd: int) -> int | None:
    """The wait status of an ended process that is not our child; None where it cannot be known."""
    fields = process_stat(pid)
    if fields and int(fields[19]) == started and fields[0] in (b"Z", b"X"):
        # a zombie that its reaper has not looked at yet; the kernel answers 0 to those who may not know
        try:
            owner = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            owner = -1
        if os.geteuid() in (0, owner) and len(fields) > 49:
            return int(fields[49])
    info = bytearray(struct.pack("Q", PIDFD_INFO_EXIT) + bytes(56))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
    except OSError:
        return None
    known = struct.unpack_from("Q", info)[0] & PIDFD_INFO_EXIT
    return int(struct.unpack_from("i", info, 60)[0]) if known else None


def oom_kills() -> int:
    """How often the kernel killed for memory since boot."""
    try:
        with open("/proc/vmstat", "rb", 0) as file:
            return int(file.read(65536).partition(b"\noom_kill ")[2].partition(b"\n")[0] or 0)
    except (OSError, ValueError):
        return 0


def usage(pids: Iterable[int]) -> dict[str, float]:
    """Memory, processor time and bytes read of these processes together."""
    ticks, rss, read = 0, 0, 0
    for pid in pids:
        fields = process_stat(pid)
        if not fields:
            continue
        ticks += sum(map(int, fields[11:15]))
        rss += int(fields[21]) * resource.getpagesize()
        try:
            with open(f"/proc/{pid}/io", "rb") as file:
                counters = dict(line.split(b": ") for line in file.read().splitlines())
            read += max(int(counters[b"rchar"]), int(counters[b"read_bytes"]))
        except (OSError, KeyError, ValueError):
            continue
    seconds = ticks / os.sysconf("SC_CLK_TCK")
    return {"rss_bytes": rss, "cpu_seconds": seconds, "read_bytes": read}


def has_ended(pidfd: int) -> bool:
    """Whether the process is over (all of its threads), reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
