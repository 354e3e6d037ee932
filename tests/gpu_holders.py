"""Real processes that hold memory of simulated GPUs, told what to do line by line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import sagectl.simulated_device

MODULE = Path(sagectl.simulated_device.__file__)
MIB = 1 << 20

PROGRAM = f"""
import os, runpy, sys, signal
device = runpy.run_path({str(MODULE)!r})
kept = []
def say(text):
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()
def obey(stream):
    for line in stream:
        verb, *numbers = line.split()
        if verb == "hold":
            try:
                kept.append(device["allocate"](int(numbers[0]), int(numbers[1])))
                say("held")
            except (MemoryError, RuntimeError) as error:
                say(f"{{type(error).__name__}}: {{error}}")
        elif verb == "free":
            device["free"](kept.pop())
            say("freed")
        elif verb == "fork":
            child = os.fork()
            if child == 0:
                signal.pause()
            say(str(child))
say("up")
obey(sys.stdin)
"""


class Holder:
    """One process, in the engine's way: an interpreter of its own that imports nothing of ours."""

    def __init__(self, directory: Path, visible: str | None = None) -> None:
        environ = {**os.environ, "SAGECTL_SIMULATED_GPUS": str(directory)}
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            environ["CUDA_VISIBLE_DEVICES"] = visible
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._children: list[int] = []
        assert self._line() == "up"

    def hold(self, index: int, size: int) -> str:
        """Allocate; `held`, or the error."""
        return self._tell(f"hold {index} {size}")

    def free(self) -> None:
        """Give back what was allocated last."""
        assert self._tell("free") == "freed"

    def fork(self) -> int:
        """Start a child by fork alone. Its pid."""
        self._children.append(int(self._tell("fork")))
        return self._children[-1]

    def kill(self) -> None:
        """SIGKILL, and wait for its death. Children live on."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End all of it."""
        self.kill()
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _tell(self, line: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def holders(directory: Path, count: int = 1, visible: str | None = None) -> Iterator[list[Holder]]:
    """Some of them, ended with the block."""
    made: list[Holder] = []
    try:
        for _ in range(count):
            made.append(Holder(directory, visible))
        yield made
    finally:
        for holder in made:
            holder.close()
