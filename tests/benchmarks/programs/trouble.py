"""Engines that put a supervisor to the test: `trouble.py stubborn FIFO` and `trouble.py chatty FIFO COUNTER`.

Both write "PID NANOSECONDS\n" into FIFO when they are ready to be looked at, as `engine.c` does.

stubborn: ends at SIGTERM itself, but has two children that ignore it, as workers do that wait for their GPU:
one in its process group, one that called setsid.

chatty: from the first SIGUSR1 to the next it writes 900 kB a second in numbered lines to its standard output,
and keeps in COUNTER.ID how many of them the kernel took. ID says when the instance began and leads each line.
A closed pipe ends it by SIGPIPE, as it does most programs.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time

FILL = b"x" * 870


def announce(fifo: str) -> None:
    """Say that all is ready."""
    with open(fifo, "w") as channel:
        channel.write(f"{os.getpid()} {time.monotonic_ns()}\n")


def stubborn(fifo: str) -> None:
    """One that ends, and two that do not."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready, started = os.pipe()
    for leave in (False, True):
        if os.fork() == 0:
            if leave:
                os.setsid()
            os.write(started, b".")
            while True:
                signal.pause()
    for _ in range(2):
        os.read(ready, 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    announce(fifo)
    signal.pause()


def chatty(fifo: str, counter: str) -> None:
    """Lines, as long as they are wanted and somebody takes them."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    wanted = False

    def toggle(*_: object) -> None:
        nonlocal wanted
        wanted = not wanted

    signal.signal(signal.SIGUSR1, toggle)
    instance = b"%020d" % time.monotonic_ns()
    with open(f"{counter}.{instance.decode()}", "w+b") as file:
        file.truncate(8)
        count = mmap.mmap(file.fileno(), 8)
    announce(fifo)
    number = 0
    while True:
        while wanted:
            for _ in range(10):
                os.write(1, b"%s %08d %s\n" % (instance, number, FILL))
                number += 1
                count[:8] = number.to_bytes(8, "little")
            time.sleep(0.01)
        time.sleep(0.02)


if __name__ == "__main__":
    {"stubborn": stubborn, "chatty": chatty}[sys.argv[1]](*sys.argv[2:])
