"""A stop that saves: the signal sets a flag, whoever trains looks at it at the end of the step.

Python's own handlers wait until the main thread runs Python again, which while weights are read takes long.
So a thread of its own reads the pipe that the interpreter writes a signal's number to, and where there is
nothing to save it ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Literal

from sagectl_finetune.trainer import notify
from sagectl_finetune.trainer.files import size_below
from sagectl_finetune.trainer.settings import STOPPED

Phase = Literal["idle", "training", "done"]
LOOK = 2.0
"""Seconds between looks at whether a checkpoint grows."""
GRACE = 60.0
"""Seconds for which a sign of life is good."""


class Stop:
    """Whether the job was asked to stop.

    In the phase `idle` all that was done is on the disk, and a signal ends the process at once with exit
    code 75. In `training` it sets `requested`. In `done` it is too late: it only sets `requested`.
    """

    def __init__(self, directory: Path, leave: Callable[[int], None] = os._exit) -> None:
        """
        Args:
            directory: of the checkpoints; while it grows, the end is put off.
            leave: ends the process.
        """
        self.requested = False
        self.step_seconds = 0.0
        self._phase: Phase = "idle"
        self._directory = directory
        self._leave = leave
        self._lock = threading.Lock()

    def install(self) -> None:
        """Catch SIGTERM and SIGINT from now on. To be called once, in the main thread."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        threading.Thread(target=self._watch, args=(reader,), name="stop", daemon=True).start()

    def enter(self, phase: Phase) -> None:
        """Go to another phase."""
        with self._lock:
            self._phase = phase
            if self.requested and phase == "idle":
                self._end()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        """Nothing: `_watch` has the number from the pipe, and says what comes before it sets the flag."""

    def _watch(self, reader: int) -> None:
        os.read(reader, 1)
        with self._lock:
            if self._phase == "idle":
                self._end()
            if self._phase == "training":
                sys.stderr.write("asked to stop: saving a checkpoint at the end of this step\n")
                sys.stderr.flush()
            notify.extend(max(GRACE, 10 * self.step_seconds))
            self.requested = True
        before = self._signs()
        while True:
            time.sleep(LOOK)
            now = self._signs()
            if now != before:
                notify.extend(GRACE)
            before = now

    def _end(self) -> None:
        sys.stderr.write("asked to stop: there is nothing to save, ending\n")
        sys.stderr.flush()
        self._leave(STOPPED)

    def _signs(self) -> tuple[int, str]:
        """What changes while a checkpoint is written or hashed."""
        try:
            read = Path("/proc/self/io").read_text(encoding="ascii").partition("\n")[0]
        except OSError:
            read = ""
        # Less what reading this file adds by itself: blocks of a checkpoint are far larger.
        return size_below(self._directory), str(int(read.rpartition(" ")[2] or 0) >> 20)
