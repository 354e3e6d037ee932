"""inotify(7), as much of it as following a log needs."""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress

_MODIFY, _ATTRIB, _MOVED_TO, _CREATE = 0x2, 0x4, 0x80, 0x100
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_FILE = _MODIFY | _ATTRIB | _DELETE_SELF | _MOVE_SELF
_DIRECTORY = _CREATE | _MOVED_TO
_WITHOUT_INOTIFY = 0.25
"""Seconds between looks where the user's inotify instances or watches are used up."""

_libc = ctypes.CDLL(None, use_errno=True)


class Changes:
    """Wakes its one waiter when the file or the directory that it watches changes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._watch = -1
        self._fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)

    def watch_file(self, fd: int) -> None:
        """From now on watch the file that is open here: written, renamed, removed."""
        self._set_watch(f"/proc/self/fd/{fd}", _FILE)

    def watch_directory(self, path: str) -> None:
        """From now on watch for names that appear in this directory."""
        self._set_watch(path, _DIRECTORY)

    def _set_watch(self, path: str, mask: int) -> None:
        if self._fd < 0:
            return
        if self._watch >= 0:
            _libc.inotify_rm_watch(self._fd, self._watch)
        self._watch = int(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask))
        self._changed.set()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 65536)
        self._changed.set()

    async def wait(self) -> None:
        """Return when something changed since the last `wait` returned, or a watch was set."""
        if self._watch < 0:
            await asyncio.sleep(_WITHOUT_INOTIFY)
            return
        await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        """Watch nothing any more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
