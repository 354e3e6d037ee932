"""File systems that can be filled and made read-only, for real."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.harness import Daemon


class Disk:
    """A tmpfs of `size` on a directory. Skips the test where that may not be mounted."""

    def __init__(self, path: Path, size: str = "2m") -> None:
        self.path = path
        self._filler = path / "filler"
        path.mkdir(exist_ok=True)
        made = self._mount("-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(path))
        if made.returncode:
            pytest.skip(f"a file system to fill cannot be mounted here: {made.stderr.strip()}")

    @staticmethod
    def _mount(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *words], capture_output=True, text=True, check=False)

    def unmount(self) -> None:
        """Take it away, also while somebody still uses it."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes free and no more; without `leave`, none at all."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while self.room > leave:
                file.write(bytes(4096))
        assert self.room <= leave

    @property
    def room(self) -> int:
        """Bytes that are free."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def free(self) -> None:
        """Give back what `fill` took."""
        self._filler.unlink()

    def read_only(self, yes: bool = True) -> None:
        """Remount it. The kernel refuses that while a file is open for writing."""
        done = self._mount("-o", f"remount,{'ro' if yes else 'rw'}", str(self.path))
        assert done.returncode == 0, done.stderr


def disk_on(daemon: Daemon, directory: str, size: str = "2m") -> Disk:
    """A file system of its own for one of a daemon's directories, until the daemon's end."""
    disk = Disk(daemon.home / directory, size)
    daemon.places.callback(disk.unmount)
    return disk
