"""A program on a terminal of its own, and what it writes there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE = 20.0


class Terminal:
    """`text` is what was written so far."""

    def __init__(self, process: subprocess.Popen[bytes], primary: int) -> None:
        self.process = process
        self.text = ""
        self._primary = primary

    def until(self, pattern: str, since: int = 0) -> int:
        """Read until this was written after `since`; the position behind it."""
        end = time.monotonic() + PATIENCE
        while (found := re.compile(pattern).search(self.text, since)) is None:
            left = end - time.monotonic()
            assert left > 0, f"{pattern} was not written: {self.text[since:][-2000:]!r}"
            assert self._read(left), (
                f"{pattern} was not written before the end: {self.text[since:][-2000:]!r}"
            )
        return found.end()

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal itself makes it: to every process on it."""
        os.write(self._primary, b"\x03")

    def ended(self) -> int:
        """Read what is left; the exit code."""
        while self._read(PATIENCE):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._primary], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self._primary, 65536)
        except OSError:  # Linux ends a terminal that nobody has open with EIO
            return False
        self.text += piece.decode()
        return bool(piece)


@contextmanager
def terminal(
    command: Sequence[str], env: Mapping[str, str], columns: int = 80, rows: int = 40
) -> Iterator[Terminal]:
    """Run a command on a terminal that controls it; it is killed with the block."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    variables = {**env, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    for name in ("NO_COLOR", "COLUMNS"):
        variables.pop(name, None)
    # setsid makes it the terminal's own, so that Ctrl-C and its like are signals.
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], env=variables, stdin=secondary, stdout=secondary, stderr=secondary
    )
    os.close(secondary)
    try:
        yield Terminal(process, primary)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(primary)
