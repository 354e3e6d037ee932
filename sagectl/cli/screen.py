"""A picture that fills the terminal and is drawn anew in place; what was there before comes back."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_USUAL_ROWS = 24
_ENDS = (signal.SIGTERM, signal.SIGHUP)


class Screen:
    """The terminal on standard output while it shows a picture.

    Whatever ends or suspends the program restores the terminal first: Ctrl-C, Ctrl-Z, SIGTERM, SIGHUP.
    """

    def __init__(self, resized: Callable[[], None]) -> None:
        """
        Args:
            resized: called, in a signal handler, where the picture has to be drawn again.
        """
        self._resized = resized
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Screen:
        for number in _ENDS:
            self._before[number] = signal.signal(number, self._end)
        self._before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        self._before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: self._resized())
        self._write(_ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(_LEAVE)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def rows(self) -> int:
        """How many lines it has now."""
        try:
            # 0 where nobody told the terminal its size, as on a serial line.
            return max(2, os.get_terminal_size(sys.stdout.fileno()).lines or _USUAL_ROWS)
        except (OSError, ValueError):
            return _USUAL_ROWS

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, which are not wider than the terminal; of too many the last are left off."""
        rows = self.rows
        if len(lines) > rows:
            lines = [*lines[: rows - 1], f"({len(lines) - rows + 1} more lines: make the terminal higher)"]
        # Each line erases what was behind it: a screen that is wiped first flickers.
        self._write("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")

    def _end(self, number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        self._write(_LEAVE)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # here it stops, until `fg`
        signal.signal(signal.SIGTSTP, self._suspend)
        self._write(_ENTER)
        self._resized()

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
