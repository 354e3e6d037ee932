"""Reads a file of lines that another process appends to: all of it, or as many lines as are asked for."""

from __future__ import annotations

import os
import stat

MOST_BYTES = 4 << 20
_PIECES = 512


def read_lines(path: str, most: int = MOST_BYTES) -> str:
    """The file's whole lines; of a file of more than `most` bytes those of pieces all along it.

    The first and the last lines are among them. A line that is still being written is left out, and "" is
    the answer for whatever is no regular file of its own: a link could lead to one that its writer may not
    read. It reads up to `most` bytes: call it in a thread.
    """
    try:
        # Not to be held by a pipe, nor led elsewhere by a link.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (OSError, ValueError):
        return ""
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            return ""
        return b"".join(_pieces(descriptor, info.st_size, most)).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _pieces(descriptor: int, size: int, most: int) -> list[bytes]:
    if size <= most:
        return [_whole(os.pread(descriptor, size, 0), from_start=True)]
    length = max(1, most // _PIECES)
    count = max(2, most // length)
    # The last one ends where the file does.
    starts = [place * (size - length) // (count - 1) for place in range(count)]
    return [_whole(os.pread(descriptor, length, start), from_start=not start) for start in starts]


def _whole(piece: bytes, *, from_start: bool) -> bytes:
    """The whole lines of a piece."""
    begin = 0 if from_start else piece.find(b"\n") + 1
    return piece[begin : piece.rfind(b"\n") + 1]
