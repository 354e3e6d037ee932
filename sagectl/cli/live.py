"""Lines on a terminal that are replaced in place while something is awaited."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PLAIN_FRAMES = "|/-\\"
INTERVAL = 0.1
"""Seconds between two frames."""


class Live:
    """Owns the last lines of the terminal on standard error."""

    def __init__(self, *, unicode: bool = True) -> None:
        self._frames = itertools.cycle(FRAMES if unicode else PLAIN_FRAMES)
        self._height = 0

    def frame(self) -> str:
        """The next picture of the spinner."""
        return next(self._frames)

    def draw(self, lines: Sequence[str]) -> None:
        """Replace what was drawn last; the lines must not be wider than the terminal."""
        self._write(self._erase() + "".join(line + "\n" for line in lines))
        self._height = len(lines)

    def clear(self) -> None:
        """Take away what was drawn."""
        self._write(self._erase())
        self._height = 0

    def _erase(self) -> str:
        # The carriage return is for the ^C that the terminal itself may have written.
        return f"\r\x1b[{self._height}A\x1b[J" if self._height else ""

    def _write(self, text: str) -> None:
        if text:
            sys.stderr.write(text)
            sys.stderr.flush()
