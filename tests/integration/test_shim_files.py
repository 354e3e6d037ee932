"""The shim's small files on a disk without room."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagectl.shim.files import read_json, write_file, write_json
from sagectl.shim.rehearsal import rehearse
from sagectl.system.start_zygote import PACKAGE_PARENT
from tests.acceptance.disks import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", "1m")
    yield made
    made.unmount()


def test_a_record_is_replaced_in_the_room_that_it_has(disk: Disk) -> None:
    path = str(disk.path / "started.json")
    write_json(path, {"generation": 1, "text": "x" * 100})
    disk.fill()
    write_json(path, {"generation": 2})
    assert read_json(path) == {"generation": 2}
    assert sorted(os.listdir(disk.path)) == ["filler", "started.json"]


def test_a_record_that_has_no_room_is_as_it_was(disk: Disk) -> None:
    path = str(disk.path / "started.json")
    write_json(path, {"generation": 1})
    disk.fill()
    with pytest.raises(OSError, match="No space left") as caught:
        write_json(path, {"generation": 2, "text": "x" * 5000})
    assert caught.value.errno == errno.ENOSPC
    assert read_json(path) == {"generation": 1}
    with pytest.raises(OSError, match="No space left"):
        write_file(str(disk.path / "other"), b"x")
    assert sorted(os.listdir(disk.path)) == ["filler", "started.json"]


def rehearsed(scratch: Path) -> bool:
    """Whether a rehearsal ends. It is lived in a process of its own, as it replaces signal handlers."""
    pid = os.fork()
    if pid == 0:
        try:
            rehearse(str(scratch))
        finally:
            os._exit(0)
    ended = os.pidfd_open(pid)
    try:
        if select.select([ended], [], [], 20)[0]:
            return True
        signal.pidfd_send_signal(ended, signal.SIGKILL)
        return False
    finally:
        os.close(ended)
        os.waitpid(pid, 0)


def test_a_rehearsal_without_room_leaves_nothing(disk: Disk) -> None:
    disk.fill()
    assert rehearsed(disk.path / "zygote-1")
    assert os.listdir(disk.path) == ["filler"]


COLLECTING = """import gc, os, select, sys
sys.path.append(sys.argv[1])
from sagectl.shim.rehearsal import rehearse
for threshold in range(27, 60):
    pid = os.fork()
    if pid == 0:
        gc.set_threshold(threshold)
        rehearse(f"{sys.argv[2]}/{threshold}")
        os._exit(0)
    ended = os.pidfd_open(pid)
    if not select.select([ended], [], [], 20)[0]:
        print(threshold)
        os.kill(pid, 9)
    os.waitpid(pid, 0)
"""


def test_a_rehearsal_ends_whenever_garbage_is_collected(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", COLLECTING, PACKAGE_PARENT, str(tmp_path)]
    hung = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert hung.stdout == ""
    assert os.listdir(tmp_path) == []
