"""The engine's log: lossless rotation at newlines, and lines dropped rather than an engine blocked."""

from __future__ import annotations

import os
import time

from sagectl.shim.files import read_json, sound, write_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLOEXEC_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class Log:
    """Appends to PATH and rotates it at newlines to PATH.1 … PATH.keep; counts what it must drop.

    PATH.state holds `written`, the bytes ever logged before PATH's first, and PATH's inode.
    """

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        self.path, self.max_bytes, self.keep = path, max(max_bytes, 1), keep
        self.fd = -1
        self.base = self.size = self.dropped = self.lost = self.told = 0
        self.line_start = True
        self.trouble: str | None = None
        self.retry_at = 0.0
        self.report: Callable[[str], None] = lambda text: None
        self._attempt(self._open_first)

    @property
    def written(self) -> int:
        """Bytes ever logged, rotations included."""
        return self.base + self.size

    def write(self, data: bytes) -> None:
        """Append all of it; where that is impossible drop it and count. Never raises, never waits."""
        if self.trouble is not None:
            if time.monotonic() < self.retry_at or not self._attempt(self._resume):
                self._drop(len(data))
                return
        elif os.fstat(self.fd).st_nlink == 0:  # somebody removed the file
            self._attempt(self._open_next)
        while data and self.trouble is None:
            cut, rotate = self._split(data)
            self._append(data[:cut])
            if rotate and self.trouble is None:
                self._attempt(self._rotate)
            data = data[cut:]
        self._drop(len(data))

    def _split(self, data: bytes) -> tuple[int, bool]:
        """How much goes into the current file, and whether to rotate after that."""
        room = self.max_bytes - self.size
        if len(data) <= room:
            return len(data), False
        cut = data.rfind(b"\n", 0, max(room, 0)) + 1
        if cut:
            return cut, True
        if self.line_start and self.size:
            return 0, True
        cut = data.find(b"\n") + 1  # a line that is longer than what is left: rotate after it
        if cut:
            return cut, True
        return len(data), self.size + len(data) >= 2 * self.max_bytes  # no newlines: anywhere, then

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self.trouble is not None:
                self._drop(len(view))
                return
            try:
                count = os.write(self.fd, view)
            except OSError as error:
                self._fail(error)
                continue
            self.size += count
            self.line_start = view[count - 1] == 10
            view = view[count:]

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except OSError as error:
            self._fail(error)
            return False
        return True

    def _fail(self, error: OSError) -> None:
        text = f"cannot write {self.path}: {error.strerror}; log lines are dropped"
        if self.trouble is None:
            self.lost = self.told = 0
            self.trouble = text
            self.report(self.trouble)
        elif self.lost > 2 * self.told:  # not each time: the trouble may last for days
            self.told = self.lost
            self.trouble = f"{text}, {self.lost} bytes so far"
            self.report(self.trouble)
        self.retry_at = time.monotonic() + 1.0

    def _drop(self, count: int) -> None:
        self.dropped += count
        self.lost += count

    def _resume(self) -> None:
        if self.fd < 0:
            self._open_first()
        elif os.fstat(self.fd).st_nlink == 0:
            self._open_next()
        gap = f"{'' if self.line_start else chr(10)}[sagectl: {self.lost} bytes of log lost here]\n".encode()
        self.size += os.write(self.fd, gap)
        self.line_start = True
        self.trouble = None
        self.report(f"{self.path} is written again; {self.lost} bytes were lost")

    def _open_first(self) -> None:
        fd = os.open(self.path, CLOEXEC_APPEND, 0o640)
        self.fd, now = fd, os.fstat(fd)
        before = sound(read_json(self.path + ".state"), {"written": (int,), "inode": (int,)})
        self.base, self.size = before.get("written", 0), now.st_size
        self.line_start = not self.size or os.pread(fd, 1, self.size - 1) == b"\n"
        if before and before.get("inode") != now.st_ino:
            # the last shim was killed between rotating and noting it
            try:
                rotated = os.stat(self.path + ".1")
            except FileNotFoundError:
                rotated = now
            self.base += rotated.st_size if rotated.st_ino == before.get("inode") else 0
        write_json(self.path + ".state", {"written": self.base, "inode": now.st_ino})

    def _open_next(self) -> None:
        fd = os.open(self.path, CLOEXEC_APPEND, 0o640)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        now = os.fstat(self.fd)
        self.base, self.size, self.line_start = self.written - now.st_size, now.st_size, True
        write_json(self.path + ".state", {"written": self.base, "inode": now.st_ino})

    def _rotate(self) -> None:
        if self.keep:
            free = 1  # up to the first gap, so that a rotation cut short loses nothing
            while free < self.keep and os.path.lexists(f"{self.path}.{free}"):
                free += 1
            for number in range(free, 1, -1):
                os.rename(f"{self.path}.{number - 1}", f"{self.path}.{number}")
            os.rename(self.path, self.path + ".1")
        else:
            os.unlink(self.path)
        self._open_next()
