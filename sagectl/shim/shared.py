"""What a killed tree leaves in /dev/shm: POSIX shared memory outlives the processes that made it.

Python's resource tracker removes it, if it is left alone for a moment; `is_tracker` tells which one that
is. Where it was killed too, the files that the tree had mapped are removed here.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = b"/dev/shm/"


def is_tracker(pid: int) -> bool:
    """A Python resource tracker: it ends by itself once the processes that it serves are gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"multiprocessing.resource_tracker" in file.read(4096)
    except OSError:
        return False


def in_use() -> bool:
    """Whether anybody has anything there: a cheap look before a dear one."""
    try:
        return bool(os.listdir(FOLDER))
    except OSError:
        return False


def mapped(pids: Iterable[int], since: float) -> dict[bytes, tuple[int, int]]:
    """The files there that these processes map and that are no older than `since` (Unix seconds).

    As {path: (device, inode)}. Only direct entries of the folder: it is sticky, so that nobody can
    have another's path lead elsewhere.
    """
    found = {}
    for pid in pids:
        for path, identity in _maps(pid):
            if path not in found and path.rfind(b"/") == len(FOLDER) - 1 and _is(path, identity, since):
                found[path] = identity
    return found


def remove(files: dict[bytes, tuple[int, int]]) -> None:
    """Remove those of the files that no process has mapped or open any more."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or not files:
            continue
        pid = int(entry)
        used = {path for path, _ in _maps(pid)} | _open(pid)
        files = {path: identity for path, identity in files.items() if path not in used}
    for path, identity in files.items():
        try:
            # Who may open it besides its owner we could not see among our own processes alone.
            private = os.geteuid() == 0 or not os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            if private and _is(path, identity, 0.0):
                os.unlink(path)
        except OSError:
            continue


def _maps(pid: int) -> Iterable[tuple[bytes, tuple[int, int]]]:
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            lines = [line for line in file if FOLDER in line]
    except OSError:
        return
    for line in lines:
        fields = line.rstrip(b"\n").split(None, 5)
        if len(fields) == 6 and fields[5].startswith(FOLDER):
            major, _, minor = fields[3].partition(b":")
            yield fields[5], (os.makedev(int(major, 16), int(minor, 16)), int(fields[4]))


def _open(pid: int) -> set[bytes]:
    folder = f"/proc/{pid}/fd"
    found = set()
    try:
        for fd in os.listdir(folder):
            target = os.readlink(f"{folder}/{fd}")
            if target.startswith("/dev/shm/"):
                found.add(os.fsencode(target))
    except OSError:
        pass
    return found


def _is(path: bytes, identity: tuple[int, int], since: float) -> bool:
    try:
        info = os.lstat(path)
    except OSError:
        return False
    same = (info.st_dev, info.st_ino) == identity and stat.S_ISREG(info.st_mode)
    return same and info.st_ctime >= since
