"""The engine's control group, where the daemon has a place for one: one kill for all of it, and limits.

A process is moved into it just after its start. What it forked before that is moved too, or found by the
walk over its descendants, which is never left out: the group only makes ends quicker and surer.
"""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

FILES = {"memory_max": "memory.max", "cpu_weight": "cpu.weight"}
"""Keys of a launch, and where they are written."""


class Group:
    """BASE/engines/NAME, or nothing.

    base: a directory of cgroup v2 that is ours to divide; None for none.
    """

    def __init__(self, base: str | None, name: str) -> None:
        self.path = f"{base}/engines/{name}" if base else ""
        self.joined = False

    def join(self, pids: Iterable[int], order: dict[str, Any]) -> None:
        """Make it, set its limits and move these processes into it; where that fails, do without."""
        if not self.path:
            return
        try:
            os.makedirs(self.path, exist_ok=True)
            for key, file in FILES.items():
                value = order.get(key)
                # A limit of the last start must not stay for this one.
                self._set(file, str(value) if value is not None else {"memory.max": "max"}.get(file, "100"))
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    _write(f"{self.path}/cgroup.procs", str(pid))
            self.joined = True
        except OSError:
            self.joined = False

    def _set(self, file: str, value: str) -> None:
        path = f"{self.path}/{file}"
        if os.path.exists(path):  # without its controller there is no such file; the daemon says so
            _write(path, value)

    def pids(self) -> list[int]:
        """Whoever is in it, below it included."""
        found: list[int] = []
        if self.path:
            for folder, _, _ in os.walk(self.path):
                with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", "rb", 0) as file:
                    found += map(int, file.read().split())
        return found

    def kill(self) -> bool:
        """SIGKILL everything in it at once, forks under way included. False where that cannot be."""
        if not self.path:
            return False
        try:
            _write(f"{self.path}/cgroup.kill", "1")
        except OSError:
            return False
        return True

    def oom_kills(self) -> int:
        """How often the kernel killed in it for memory; 0 where nobody counts."""
        try:
            with open(f"{self.path}/memory.events", "rb", 0) as file:
                counts = dict(line.split() for line in file.read().splitlines())
            return int(counts.get(b"oom_kill", 0))
        except (OSError, ValueError):
            return 0

    def leave(self) -> None:
        """Remove it, with what is below: they are empty."""
        if not self.path:
            return
        for folder, _, _ in os.walk(self.path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        self.joined = False


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
