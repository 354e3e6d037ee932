"""File systems that can be filled and made read-only, for real."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess

import pytest

from tests.acceptance.harness import Daemon


class Disk:
    """A tmpfs on one of a daemon's directories, until the daemon's end."""

    def __init__(self, daemon: Daemon, directory: str, size: str = "2m") -> None:
        self.path = daemon.home / directory
        self.path.mkdir(exist_ok=True)
        self._filler = self.path / "filler"
        made = self._mount("-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(self.path))
        if made.returncode:
            pytest.skip(f"a file system to fill cannot be mounted here: {made.stderr.strip()}")
        daemon.places.callback(subprocess.run, ["umount", "--lazy", str(self.path)], check=True)

    @staticmethod
    def _mount(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *words], capture_output=True, text=True, check=False)

    def fill(self) -> None:
        """Leave no byte free."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        assert os.statvfs(self.path).f_bfree == 0

    def free(self) -> None:
        """Give back what `fill` took."""
        self._filler.unlink()

    def read_only(self, yes: bool = True) -> None:
        """Remount it; with files open for writing a kernel refuses that, and the test is skipped."""
        done = self._mount("-o", f"remount,{'ro' if yes else 'rw'}", str(self.path))
        assert done.returncode == 0, done.stderr


def is_full(error: OSError) -> bool:
    """No space left on the device."""
    return error.errno == errno.ENOSPC
