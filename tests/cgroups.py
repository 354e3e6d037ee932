"""A memory control group of a test's own, so that the kernel really kills for memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
_numbers = itertools.count()


class MemoryGroup:
    """A control group with a limit; `add` moves a process into it, what it had before does not count."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        path.mkdir()
        self.limit(limit)

    def limit(self, limit: int) -> None:
        """Another limit, in bytes."""
        path = self.path
        settings = (
            {"memory.limit_in_bytes": str(limit), "memory.swappiness": "0"}
            if (path / "memory.limit_in_bytes").exists()
            else {"memory.max": str(limit), "memory.swap.max": "0"}
        )
        for name, value in settings.items():
            if (path / name).exists() or name in ("memory.limit_in_bytes", "memory.max"):
                (path / name).write_text(value)

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                self.path.rmdir()
            except OSError:  # the last process of it is not quite gone
                time.sleep(0.01)
            else:
                return


@pytest.fixture
def memory_group() -> Iterator[MemoryGroup]:
    """A group of 64 MiB; without the rights to make one the test is left out."""
    name = f"sagectl-test-{os.getpid()}-{next(_numbers)}"
    group = None
    for parent in (ROOT / "memory", ROOT):
        if (parent / "cgroup.procs").exists():
            with contextlib.suppress(OSError):
                if parent == ROOT:
                    (ROOT / "cgroup.subtree_control").write_text("+memory")
                group = MemoryGroup(parent / name, 64 << 20)
                break
            with contextlib.suppress(OSError):
                (parent / name).rmdir()
    if group is None:
        pytest.skip("no memory control group can be made here")
    yield group
    group.remove()


def log_is_readable() -> bool:
    """The kernel's log can be read, and names processes by the ids that they have here."""
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"
