"""Which engine a process on a GPU belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sagectl.shim import tree
from sagectl.system import strays

_DEPTH = 64


class Owners:
    """Finds them by the mark in their environment, or in that of the process that started them.

    A mark cannot be lost by a fork, by a session of its own or by the death of a parent; a process that
    cleared its environment is told by its parents, of which the engine's shim is the last. What was found
    is kept as long as the process lives.
    """

    def __init__(self, engines: Path) -> None:
        """
        Args:
            engines: RUN/engines, absolute.
        """
        self._home = os.fsencode(engines)
        self._known: dict[tuple[int, int], str | None] = {}

    def of(self, pids: Iterable[int]) -> dict[str, set[int]]:
        """Engine → those of these processes that are its own. Others are somebody else's."""
        found: dict[str, set[int]] = {}
        seen: dict[tuple[int, int], str | None] = {}
        for pid in pids:
            fields = tree.process_stat(pid)
            if fields is None:
                continue
            key = (pid, int(fields[19]))
            seen[key] = self._known[key] if key in self._known else self._owner(pid)
            if seen[key] is not None:
                found.setdefault(str(seen[key]), set()).add(pid)
        self._known = seen
        return found

    def _owner(self, pid: int) -> str | None:
        for _ in range(_DEPTH):
            if pid <= 1:
                return None
            name = strays.marked(pid, self._home) or strays.shim_of(pid, self._home)
            if name is not None:
                return name
            fields = tree.process_stat(pid)
            if fields is None:
                return None
            pid = int(fields[1])
        return None
