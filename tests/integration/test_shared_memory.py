"""What a killed tree leaves in /dev/shm goes with it, and nothing else does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from sagectl.shim import shared
from tests.integration.process_support import Machine, eventually, running

FOLDER = Path("/dev/shm")
# A segment of Python's, and its tracker; a second process that maps it too.
OWNER = """
import multiprocessing, sys, time
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(create=True, size=4096)
def use(name):
    other = shared_memory.SharedMemory(name=name)
    open(sys.argv[1], "w").write(name)
    time.sleep(1000)
process = multiprocessing.get_context("fork").Process(target=use, args=(block.name,))
process.start()
time.sleep(1000)
"""


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with running(tmp_path) as it:
        yield it


@pytest.fixture
def foreign() -> Iterator[shared_memory.SharedMemory]:
    """A segment of somebody else."""
    block = shared_memory.SharedMemory(create=True, size=4096)
    yield block
    block.close()
    block.unlink()


async def up(machine: Machine, tmp_path: Path) -> tuple[int, Path]:
    """Start the owner; its pid and its segment."""
    told = tmp_path / "name"
    process = await machine.start(sys.executable, "-c", OWNER, str(told))
    await eventually(lambda: told.exists() and bool(told.read_text()))
    return process.pid, FOLDER / told.read_text()


async def test_a_killed_tree_leaves_no_shared_memory(machine: Machine, tmp_path: Path) -> None:
    _, segment = await up(machine, tmp_path)
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    assert not segment.exists()


async def test_what_the_main_process_leaves_behind_goes_when_its_tree_is_killed(
    machine: Machine, tmp_path: Path
) -> None:
    pid, segment = await up(machine, tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert (await machine.events.until("exited"))[2] > 0
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    assert not segment.exists()


async def test_it_goes_even_where_the_tracker_was_killed(machine: Machine, tmp_path: Path) -> None:
    _, segment = await up(machine, tmp_path)
    trackers = [pid for pid in await machine.processes.pids("chat") if shared.is_tracker(pid)]
    assert trackers
    for tracker in trackers:
        os.kill(tracker, signal.SIGKILL)
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    assert not segment.exists()


async def test_what_another_process_maps_stays(
    machine: Machine, tmp_path: Path, foreign: shared_memory.SharedMemory
) -> None:
    reader = (
        "import mmap, sys, time; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0);"
        "open(sys.argv[2], 'w').write('up'); time.sleep(1000)"
    )
    told = tmp_path / "up"
    path = FOLDER / foreign.name.lstrip("/")
    path.touch()  # as if it had been made after the engine's start
    process = await machine.start(sys.executable, "-c", reader, str(path), str(told))
    await eventually(told.exists)
    os.utime(path)
    assert os.fsencode(path) in shared.mapped([process.pid], 0.0)
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    assert path.exists()
