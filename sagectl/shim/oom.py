"""Whom the kernel killed because memory ran out, as its log tells."""

from __future__ import annotations

import os
import re
import time
from typing import NamedTuple

RECORD = 8192  # bytes; no record is longer
WINDOW = 60.0  # seconds in which a process may end because of another's death
KILLED = re.compile(
    rb"(Memory cgroup out of memory|Out of memory)[^:]*: Killed process (\d+) \((.*)\)"
    rb"(?: total-vm:\d+kB, anon-rss:(\d+)kB, file-rss:(\d+)kB(?:, shmem-rss:(\d+)kB)?| )"
)
FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO: outside of it, the log's ids are not ours


class Victim(NamedTuple):
    """A process that was killed.

    kib: what it held; 0 where that is not told. grouped: its control group was full, not the machine.
    at: seconds of the kernel log's own clock, which is near the monotonic ones.
    """

    pid: int
    name: str
    kib: int
    grouped: bool
    at: float

    def __str__(self) -> str:
        text = f"process {self.pid} ({self.name})"
        if self.kib:
            mib = self.kib / 1024
            text += f" held {mib:.1f} MiB" if mib < 1024 else f" held {mib / 1024:.1f} GiB"
        if self.grouped:
            text += ", the limit of its control group" if self.kib else ", at the limit of its control group"
        return text

    @property
    def recent(self) -> bool:
        """Killed so lately that what ends now may end because of it."""
        clocks = (time.CLOCK_MONOTONIC, time.CLOCK_MONOTONIC_RAW)
        return min(abs(time.clock_gettime(clock) - self.at) for clock in clocks) < WINDOW


def victim_of(record: bytes) -> Victim | None:
    """The victim of whom a record of /dev/kmsg tells, if it is one of the kernel's own that does."""
    header, _, message = record.partition(b";")
    fields = header.split(b",")
    match = KILLED.match(message)
    if match is None or len(fields) < 3 or not fields[0].isdigit() or not fields[2].isdigit():
        return None
    if int(fields[0]) >> 3:
        return None  # the facility of what a program wrote there; the kernel's own is 0
    kib = sum(int(figure or 0) for figure in match.groups()[3:])
    name = match[3].decode(errors="replace")
    return Victim(int(match[2]), name, kib, match[1].startswith(b"Memory"), int(fields[2]) / 1e6)


def victims() -> list[Victim] | None:
    """Those that the kernel's log still has, oldest first; None where it cannot be read here."""
    try:
        if os.readlink("/proc/self/ns/pid") != FIRST_NAMESPACE:
            return None
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    found: list[Victim] = []
    try:
        while True:
            try:
                victim = victim_of(os.read(log, RECORD))
            except BrokenPipeError:
                continue  # overwritten while we read
            if victim:
                found.append(victim)
    except OSError:  # BlockingIOError: that was the last one; any other: what was read counts
        return found
    finally:
        os.close(log)
