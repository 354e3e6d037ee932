"""Kills for memory as the kernel's log tells them."""

from __future__ import annotations

import pytest

from sagectl.shim.oom import Victim, victim_of

TAIL = b" oom_score_adj:0\n SUBSYSTEM=memory\n"
KILLED = (
    b"Killed process 19030 (python3) total-vm:58712kB, anon-rss:48512kB, file-rss:6628kB, shmem-rss:4kB, "
    b"UID:0 pgtables:156kB"
)


def record(message: bytes, priority: int = 3) -> bytes:
    return b"%d,418,26384189199,-;%s" % (priority, message)


@pytest.mark.parametrize(
    ("message", "grouped"),
    [
        (b"Memory cgroup out of memory: " + KILLED + TAIL, True),
        (b"Out of memory: " + KILLED + TAIL, False),
        (b"Out of memory (oom_kill_allocating_task): " + KILLED + TAIL, False),
    ],
)
def test_a_victim_is_read_with_what_it_held(message: bytes, grouped: bool) -> None:
    assert victim_of(record(message)) == Victim(19030, "python3", 55144, grouped, 26384.189199)


def test_a_name_may_be_anything() -> None:
    message = b"Out of memory: Killed process 7 (a) total-vm:1kB, (b) \\x0a)"
    found = victim_of(record(message + b" total-vm:9kB, anon-rss:1kB, file-rss:0kB"))
    assert found is not None
    assert (found.pid, found.name, found.kib) == (7, "a) total-vm:1kB, (b) \\x0a", 1)


def test_without_figures_it_is_a_victim_all_the_same() -> None:
    found = victim_of(record(b"Out of memory: Killed process 7 (x) by magic"))
    assert found == Victim(7, "x", 0, False, 26384.189199)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        record(b"Killed process 7 (x) total-vm:1kB"),
        record(b"said: Out of memory: Killed process 7 (x) total-vm:1kB"),
        record(b"Out of memory: Kill process 7 (x) score 9 or sacrifice child"),
        record(b"oom_reaper: reaped process 7 (x), now anon-rss:0kB"),
        record(b"Out of memory: " + KILLED, priority=14),  # what a program wrote there, not the kernel
        b"x,y,z,-;Out of memory: " + KILLED,
        b"3;Out of memory: " + KILLED,
    ],
)
def test_anything_else_is_none(text: bytes) -> None:
    assert victim_of(text) is None


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        (Victim(7, "x", 55144, True, 0.0), "process 7 (x) held 53.9 MiB, the limit of its control group"),
        (Victim(7, "x", 31 << 20, False, 0.0), "process 7 (x) held 31.0 GiB"),
        (Victim(7, "x", 0, False, 0.0), "process 7 (x)"),
        (Victim(7, "x", 0, True, 0.0), "process 7 (x), at the limit of its control group"),
    ],
)
def test_a_victim_in_words(victim: Victim, words: str) -> None:
    assert str(victim) == words
