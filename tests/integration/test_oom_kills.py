"""The kernel kills for memory, in a control group of the test's own: who was killed is told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from tests.cgroups import MemoryGroup, log_is_readable, memory_group
from tests.integration.process_support import SLEEP, Machine, eventually, running

__all__ = ["memory_group"]

readable = pytest.mark.skipif(not log_is_readable(), reason="the kernel's log cannot be read here")

# Waits for a file, then takes memory until it is killed. With a second word its child does, which it
# reaps itself and then ends with code 3, or goes on for so many seconds before.
HOG = """
import os, sys, time
def grow():
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.005)
    held = []
    while True:
        held.append(bytearray(b"x" * (1 << 20)))
if len(sys.argv) < 3:
    print("up", flush=True)
    grow()
child = os.fork()
if child == 0:
    grow()
print("child", child, flush=True)
_, status = os.waitpid(child, 0)
print("the child ended with", status, flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(3)
"""


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with running(tmp_path) as it:
        yield it


async def hog(machine: Machine, go: Path, *words: str) -> int:
    process = await machine.start(sys.executable, "-I", "-S", "-c", HOG, str(go), *words)
    await machine.wrote("child" if words else "up")
    return process.pid


async def exited(machine: Machine) -> ExitStatus:
    status: ExitStatus = (await machine.events.until("exited"))[1]
    return status


async def test_an_engine_that_the_kernel_kills_for_memory_is_told_so(
    machine: Machine, tmp_path: Path, memory_group: MemoryGroup
) -> None:
    pid = await hog(machine, tmp_path / "go")
    memory_group.add(pid)
    (tmp_path / "go").touch()
    status = await exited(machine)
    assert (status.signal, status.oom_kill) == (signal.SIGKILL, True)
    if log_is_readable():
        assert status.oom_detail.startswith(f"process {pid} (python")
        assert status.oom_detail.endswith("iB, the limit of its control group")


@readable
async def test_a_child_that_was_killed_for_memory_is_named_when_the_main_process_ends_of_it(
    machine: Machine, tmp_path: Path, memory_group: MemoryGroup
) -> None:
    pid = await hog(machine, tmp_path / "go", "0")
    (child,) = tree.children(pid)
    memory_group.add(child)
    await machine.processes.measure("chat", 1)  # as the daemon does while an engine starts
    (tmp_path / "go").touch()
    status = await exited(machine)
    assert (status.code, status.oom_kill) == (3, True)
    assert status.oom_detail.startswith(f"process {child} (python")


@readable
async def test_a_child_is_known_by_what_it_was_seen_to_write(
    machine: Machine, tmp_path: Path, memory_group: MemoryGroup
) -> None:
    """Nobody measures, and the main process reaps its child itself: the shim has looked when it wrote."""
    pid = await hog(machine, tmp_path / "go", "0")
    (child,) = tree.children(pid)
    memory_group.add(child)
    (tmp_path / "go").touch()
    assert (await exited(machine)).oom_kill


@readable
async def test_an_orphan_that_was_killed_for_memory_is_named(
    machine: Machine, tmp_path: Path, memory_group: MemoryGroup
) -> None:
    """The main process is killed before it can reap its child: the shim, being their reaper, does."""
    pid = await hog(machine, tmp_path / "go", "0")
    (child,) = tree.children(pid)
    memory_group.add(child)
    os.kill(pid, signal.SIGSTOP)
    (tmp_path / "go").touch()
    await eventually(lambda: (fields := tree.process_stat(child)) and fields[0] == b"Z")
    os.kill(pid, signal.SIGABRT)
    os.kill(pid, signal.SIGCONT)
    status = await exited(machine)
    assert (status.signal, status.oom_kill) == (signal.SIGABRT, True)
    assert f"process {child} " in status.oom_detail


@readable
async def test_a_kill_of_somebody_else_for_memory_is_not_taken_for_the_engines(
    machine: Machine, tmp_path: Path, memory_group: MemoryGroup
) -> None:
    process = await machine.start(*SLEEP)
    before = tree.oom_kills()
    machine.processes.launch(
        "other", machine.order(sys.executable, "-I", "-S", "-c", HOG, str(tmp_path / "go"))
    )
    await machine.events.until("spawned")
    (other,) = [pid for pid in await machine.processes.pids("other")]
    memory_group.add(other)
    (tmp_path / "go").touch()
    assert (await exited(machine)).oom_kill
    assert tree.oom_kills() > before
    os.kill(process.pid, signal.SIGKILL)
    assert await exited(machine) == ExitStatus(signal=9)
    machine.processes.release("other")


@readable
async def test_an_engine_that_we_kill_was_not_killed_for_memory(
    machine: Machine, tmp_path: Path, memory_group: MemoryGroup
) -> None:
    """A worker of it was, it went on, and then it is stopped."""
    pid = await hog(machine, tmp_path / "go", "1000")
    (child,) = tree.children(pid)
    memory_group.add(child)
    (tmp_path / "go").touch()
    await machine.wrote("the child ended with 9")
    machine.processes.signal("chat", 1, signal.SIGKILL)
    assert await exited(machine) == ExitStatus(signal=9)


@readable
async def test_it_is_told_of_an_engine_whose_end_nobody_saw(
    machine: Machine, tmp_path: Path, memory_group: MemoryGroup
) -> None:
    """Its shim had been killed too."""
    pid = await hog(machine, tmp_path / "go")
    memory_group.add(pid)
    shim = machine.shim()
    os.kill(shim, signal.SIGSTOP)
    await machine.lose_daemon()
    (tmp_path / "go").touch()
    await eventually(lambda: (fields := tree.process_stat(pid)) and fields[0] == b"Z")
    os.kill(shim, signal.SIGKILL)
    (found,) = await machine.new_daemon()
    assert found.exit is not None
    assert found.exit.oom_kill
    assert f"process {pid} " in found.exit.oom_detail


@readable
async def test_a_worker_that_was_killed_long_ago_is_no_reason(
    machine: Machine, tmp_path: Path, memory_group: MemoryGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagectl.shim.oom import victims

    pid = await hog(machine, tmp_path / "go", "1000")
    (child,) = tree.children(pid)
    memory_group.add(child)
    (tmp_path / "go").touch()
    await machine.wrote("the child ended with 9")
    (victim,) = [one for one in victims() or () if one.pid == child]
    assert victim.recent
    assert not victim._replace(at=victim.at - 61).recent
    assert not victim._replace(at=victim.at + 61).recent
