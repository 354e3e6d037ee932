"""A step that does not end is an event: a disk or a network that hangs says nothing by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LEAST = 600.0
"""Seconds without a sign that are no stall, however quick the steps are."""
TIMES = 20
"""As many steps could have been done meanwhile."""


class Watch:
    """Calls `stalled` with the seconds that nothing happened, once for each stall."""

    def __init__(self, stalled: Callable[[float], None], *, least: float = LEAST) -> None:
        self._stalled, self._least = stalled, least
        self._last = time.monotonic()
        self._longest = 0.0
        self._told = False
        self._ended = threading.Event()

    def start(self) -> None:
        """Look from now on, in a thread of its own."""
        self._last = time.monotonic()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def sign(self) -> None:
        """Something was done: a step, a batch of an evaluation, a checkpoint."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last)
        self._last, self._told = now, False

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(min(10.0, self._least / 4)):
            idle = time.monotonic() - self._last
            if not self._told and idle > max(self._least, TIMES * self._longest):
                self._told = True
                self._stalled(idle)
