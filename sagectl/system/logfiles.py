"""Reads engine logs across their rotations: NAME.log, then older ones as NAME.log.1, NAME.log.2, …

The shim writes and rotates them (at newlines); nothing here blocks or delays it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from sagectl.system.inotify import Changes

_CHUNK = 65536
MAX_TAIL = 16 << 20
_LOOKS = 5  # at files that are being rotated, for a look at which they are not
_MISSED = b"[sagectl: %d bytes of log were rotated away before they could be shown]\n"


@contextmanager
def _opened(path: str) -> Iterator[list[FileIO]]:
    """The current log and the older ones, newest first.

    Opened in ascending order: a rotation meanwhile makes one file appear twice, never one missing.
    """
    with ExitStack() as stack:
        files: list[FileIO] = []
        seen: set[int] = set()
        number, missing = 0, 0
        while missing < 2:  # one may be missing for a moment, in the middle of a rotation
            try:
                file = stack.enter_context(FileIO(_numbered(path, number)))
            except FileNotFoundError:
                missing += 1
            else:
                missing = 0
                inode = os.fstat(file.fileno()).st_ino
                if inode not in seen:
                    seen.add(inode)
                    files.append(file)
            number += 1
        yield files


def _numbered(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def tail(path: str | Path, lines: int, max_bytes: int = MAX_TAIL) -> bytes:
    """The last `lines` lines (an unfinished one counts), at most their last `max_bytes` bytes.

    b"" where there is no log. It reads files: call it in a thread where that may take long.
    """
    with _opened(str(path)) as files:
        index, offset = _locate(files, lines)
        parts: list[bytes] = []
        wanted = max_bytes
        for number, file in enumerate(files[: index + 1]):
            size = _size(file)
            begin = max(offset if number == index else 0, size - wanted)
            parts.append(os.pread(file.fileno(), size - begin, begin))
            wanted -= len(parts[-1])
        return b"".join(reversed(parts))


def _locate(files: list[FileIO], lines: int) -> tuple[int, int]:
    """Where the last `lines` lines begin: index into `files` (newest first) and offset in that file."""
    if lines <= 0 or not files:
        return (0, _size(files[0])) if files else (0, 0)
    wanted = lines
    at_end = True
    for index, file in enumerate(files):
        end = _size(file)
        while end > 0:
            begin = max(0, end - _CHUNK)
            block = os.pread(file.fileno(), end - begin, begin)
            if at_end and block:
                # The newline at the very end closes the last line, it does not begin another.
                block, at_end = block[:-1], False
            newlines = block.count(b"\n")
            if newlines >= wanted:
                cut = len(block)
                for _ in range(wanted):
                    cut = block.rfind(b"\n", 0, cut)
                return index, begin + cut + 1
            wanted -= newlines
            end = begin
    return len(files) - 1, 0


def last_lines_since(
    path: str | Path, position: int, max_lines: int = 50, max_bytes: int = _CHUNK
) -> tuple[str, ...]:
    """The last lines that were logged after `position`, oldest first, decoded, without newlines.

    Of a line that redraws itself with carriage returns (a progress bar) only the last state is
    kept. Where the shim's note of the position is missing, the newest file counts as the range.

    Args:
        position: bytes that the log had received before, rotations included (`log_position`).
    """
    path = str(path)
    with _opened(path) as files:
        starts = _starts(path, files) or [position]
        parts: list[bytes] = []
        wanted = max_bytes
        cut = False
        for file, start in zip(files, starts, strict=False):
            size = _size(file)
            first = max(0, position - start)
            begin = max(first, size - wanted)
            cut = begin > first
            if begin < size:
                parts.append(os.pread(file.fileno(), size - begin, begin))
                wanted -= len(parts[-1])
            if cut or wanted <= 0 or start <= position:
                break
    lines = b"".join(reversed(parts)).decode(errors="replace").split("\n")
    if cut and len(lines) > 2:
        del lines[0]
    if lines[-1] == "":
        lines.pop()
    return tuple(line.rstrip("\r").rpartition("\r")[2] for line in lines[-max_lines:])


def _starts(path: str, files: list[FileIO], *, certain: bool = False) -> list[int]:
    """The position of each file's first byte, in the order of `files`; [] where nobody noted it.

    The note names the inode it is about: in the middle of a rotation that is no longer the newest.

    Args:
        certain: [] also where it is about none of `files`, because the log was rotated since.
    """
    try:
        note = json.loads(Path(f"{path}.state").read_bytes())
        written, inode = int(note["written"]), note.get("inode")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    inodes = [os.fstat(file.fileno()).st_ino for file in files]
    if certain and inode not in inodes:
        return []
    known = inodes.index(inode) if inode in inodes else 0
    starts = [0] * len(files)
    for index in range(known, len(files)):
        starts[index] = written if index == known else starts[index - 1] - _size(files[index])
    for index in range(known - 1, -1, -1):
        starts[index] = starts[index + 1] + _size(files[index + 1])
    return starts


async def follow(path: str | Path, lines: int | None = 0) -> AsyncIterator[bytes]:
    """What is logged from now on, as it comes, after the last `lines` lines (None: everything kept).

    Endless; waits for a log that does not exist yet. Across rotations nothing is lost or repeated,
    unless the reader is so slow that a file is deleted before its turn: then a line says how much
    is missing. Close it with `aclose`.
    """
    path = str(path)
    changes = Changes()
    file = None
    try:
        file, start = await asyncio.to_thread(_begin, path, lines)
        if file is None:
            file = await _appeared(path, changes)
        changes.watch_file(file.fileno())
        data = b""
        while True:
            if start is None:  # of a log that has just appeared its shim is about to note it
                start = _start_of(path, file)
            rotated = not _is_current(path, file)
            # Read after that look: what was written before the rotation is all there.
            while piece := file.read(_CHUNK):
                yield (data := piece)
                await asyncio.sleep(0)
            if rotated:
                end = None if start is None else start + _size(file)
                following, start = await _next(path, file, end, changes)
                file.close()
                file = following
                if start is not None and end is not None and start > end:
                    yield (b"\n" if data[-1:] != b"\n" else b"") + _MISSED % (start - end)
                changes.watch_file(file.fileno())
            elif _size(file) < file.tell():
                file.seek(0)  # somebody truncated it
            else:
                await changes.wait()
    finally:
        if file is not None:
            file.close()
        changes.close()


async def _appeared(path: str, changes: Changes) -> FileIO:
    """Open the current log, once it is there."""
    changes.watch_directory(os.path.dirname(path) or ".")
    while True:
        try:
            return FileIO(path)
        except FileNotFoundError:
            await changes.wait()


async def _next(path: str, file: FileIO, end: int | None, changes: Changes) -> tuple[FileIO, int | None]:
    """The file that was begun after this one, once it is there, and the position of its first byte."""
    changes.watch_directory(os.path.dirname(path) or ".")
    while (following := _newer(path, file, end)) is None:
        if _inode(path) is not None:
            await asyncio.sleep(0)  # it moved while we looked: look again
        else:
            await changes.wait()
    return following


def _begin(path: str, lines: int | None) -> tuple[FileIO | None, int | None]:
    """The file in which the last `lines` lines begin, positioned there; None where there is no log.

    And the position of the file's first byte, None where nobody can tell.
    """
    for look in range(_LOOKS):
        with _opened(path) as files:
            if not files:
                return None, None
            starts = _starts(path, files, certain=True)
            if not starts and look + 1 < _LOOKS:
                continue
            index, offset = (len(files) - 1, 0) if lines is None else _locate(files, lines)
            file = FileIO(os.dup(files[index].fileno()))
            file.seek(offset)
            return file, starts[index] if starts else None
    raise AssertionError("the last look takes what it sees")


def _is_current(path: str, file: FileIO) -> bool:
    return _inode(path) == os.fstat(file.fileno()).st_ino


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def _newer(path: str, file: FileIO, end: int | None) -> tuple[FileIO, int | None] | None:
    """The file that was begun after this one, and the position of its first byte; None: look again.

    Args:
        end: the position of the byte after this file's last one, None where it is not known.
    """
    mine = os.fstat(file.fileno())
    number, missing = 1, 0
    while missing < 2:
        inode = _inode(_numbered(path, number))
        if inode == mine.st_ino:
            following = _open_before(path, number, mine.st_ino)
            return None if following is None else (following, end)
        missing = missing + 1 if inode is None else 0
        number += 1
    # It was deleted: go on with the oldest one that was begun later.
    found = None if end is None else _begun_at(path, end)
    return found or _written_since(path, number, mine.st_mtime_ns)


def _begun_at(path: str, position: int) -> tuple[FileIO, int] | None:
    """The oldest file that begins there or later, and where it begins; None where nobody can tell."""
    for _ in range(_LOOKS):
        with _opened(path) as files:
            starts = _starts(path, files, certain=True)
            later = [(start, file) for start, file in zip(starts, files, strict=False) if start >= position]
            if later:
                start, file = min(later, key=lambda found: found[0])
                return FileIO(os.dup(file.fileno())), start
    return None


def _written_since(path: str, number: int, mtime: int) -> tuple[FileIO, None] | None:
    for older in range(number, 0, -1):
        try:
            if os.stat(_numbered(path, older)).st_mtime_ns >= mtime:
                return FileIO(_numbered(path, older)), None
        except FileNotFoundError:
            continue
    try:
        return FileIO(path), None
    except FileNotFoundError:
        return None


def _start_of(path: str, file: FileIO) -> int | None:
    """The position of this file's first byte; None where nobody can tell."""
    mine = os.fstat(file.fileno()).st_ino
    for _ in range(_LOOKS):
        with _opened(path) as files:
            for start, one in zip(_starts(path, files, certain=True), files, strict=False):
                if os.fstat(one.fileno()).st_ino == mine:
                    return start
    return None


def _open_before(path: str, number: int, inode: int) -> FileIO | None:
    """Open the file before `number`, which was found to be `inode`, unless a rotation moved them."""
    try:
        following = FileIO(_numbered(path, number - 1))
    except FileNotFoundError:
        return None
    # A rotation moves the higher numbers first, so if this one did not move, neither did the other.
    if _inode(_numbered(path, number)) == inode:
        return following
    following.close()
    return None
