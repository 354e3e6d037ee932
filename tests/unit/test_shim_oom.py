"""Kills for memory as the kernel's log tells them."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sagectl.shim import oom, tree
from sagectl.shim.channel import Loop
from sagectl.shim.engine import Engine
from sagectl.shim.group import Group
from sagectl.shim.log import Log
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


# --- What an engine's end is put down to, where the log is as no test machine has it ---------------

FAILED = 3 << 8  # wait statuses: exit code 3, and signals
KILLED_BY = int(signal.SIGKILL)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One whose process 100 has a worker 101, and during whose life the kernel killed once for memory."""
    monkeypatch.chdir(tmp_path)
    log = Log(str(tmp_path / "log"), 1 << 20, 1)
    made = Engine("chat", str(tmp_path), Loop(), log, lambda **message: None, Group(None, "chat"))
    made.main, made.seen, made.oom_before, made.oom_lately = 100, {101}, 4, (4, 5)
    monkeypatch.setattr(tree, "oom_kills", lambda: 5)
    return made


def ended(engine: Engine, status: int | None, log: list[Victim] | None, patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(oom, "victims", lambda: log)
    return engine._for_memory(status)


COLLECTED = time.monotonic()


def killed(pid: int, ago: float = 1.0) -> Victim:
    return Victim(pid, "x", 1024, False, time.monotonic() - ago)


@pytest.mark.parametrize(
    ("status", "log", "found"),
    [
        (KILLED_BY, [killed(100)], True),
        (KILLED_BY, [killed(100, 9000.0)], True),  # the clocks differ after a long time
        (None, [killed(100)], True),
        (FAILED, [killed(101)], True),
        (FAILED, [killed(101), killed(999)], True),
        (FAILED, [killed(101, 90.0)], False),
        (FAILED, [killed(999)], False),
        (FAILED, [], False),
        (KILLED_BY, [], False),
        (0, [killed(101)], False),
    ],
)
def test_the_log_decides_where_it_can_be_read(
    engine: Engine, status: int | None, log: list[Victim], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = time.monotonic() - COLLECTED  # the whole run may take longer than a kill counts
    log = [one._replace(at=one.at + passed) for one in log]
    verdict = ended(engine, status, log, monkeypatch)
    assert verdict["oom"] is found
    assert bool(verdict.get("oom_detail")) is found


@pytest.mark.parametrize(("status", "found"), [(KILLED_BY, True), (FAILED, False), (None, False), (0, False)])
def test_without_the_log_only_a_kill_that_nobody_sent_counts(
    engine: Engine, status: int | None, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(engine, status, None, monkeypatch) == {"oom": found}


def test_without_the_log_an_old_kill_is_not_taken_for_this_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.oom_lately = (5, 5)
    assert ended(engine, KILLED_BY, None, monkeypatch) == {"oom": False}


def test_what_we_kill_was_not_killed_for_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.kill_sent = True
    assert ended(engine, KILLED_BY, [killed(100)], monkeypatch) == {"oom": False}


def test_without_a_new_kill_the_log_is_not_asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.oom_before = 5
    assert ended(engine, KILLED_BY, [killed(100)], monkeypatch) == {"oom": False}
