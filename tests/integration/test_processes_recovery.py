"""Whatever dies, in whatever order: one instance, nothing lost that could be known, nobody else hurt."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from sagectl.system import pidfile, processes, shim_keeper
from tests.integration.process_support import (
    HOSTILE,
    SLEEP,
    Machine,
    eventually,
    is_gone,
    processes_of,
    running,
)

COUNTING = "i=0; while :; do i=$((i+1)); echo line $i; done"


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with running(tmp_path) as it:
        yield it


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours and must live."""
    process = subprocess.Popen(SLEEP)
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


def numbers(text: str) -> list[int]:
    """Of all complete lines of COUNTING's log."""
    return [int(line[5:]) for line in text.splitlines()[:-1] if line.startswith("line ")]


# --- The shim ------------------------------------------------------------------------------------------


async def test_a_killed_shim_is_replaced_under_the_living_engine(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    for _ in range(5):
        os.kill(machine.shim(), signal.SIGKILL)
        await machine.events.next("shim_replaced")
        assert await machine.processes.pids("chat") == (process.pid,)
    assert pidfile.is_alive(process)
    assert processes_of(machine) == [process.pid]
    machine.processes.signal("chat", 1, signal.SIGTERM)
    assert await machine.events.next("exited") == (1, ExitStatus(signal=15), 0)
    await machine.start(*SLEEP)


async def test_the_exit_code_of_an_adopted_engine_is_known(machine: Machine) -> None:
    go = machine.home / "go"
    process = await machine.start("/bin/sh", "-c", f"until [ -e {go} ]; do sleep 0.01; done; exit 23")
    os.kill(machine.shim(), signal.SIGKILL)
    await machine.events.next("shim_replaced")
    go.touch()
    assert await machine.events.next("exited") == (1, ExitStatus(code=23), 0)
    assert tree.process_stat(process.pid) is None  # and no zombie is left


async def test_the_log_goes_on_under_the_next_shim(tmp_path: Path) -> None:
    async with running(tmp_path, log_max_bytes=50 << 20, log_keep=50) as machine:
        await machine.start("/bin/sh", "-c", COUNTING)
        for _ in range(4):
            size = len(machine.text())
            await eventually(lambda size=size: len(machine.text()) > size + 100_000)
            os.kill(machine.shim(), signal.SIGKILL)
            await machine.events.next("shim_replaced")
        size = len(machine.text())
        await eventually(lambda: len(machine.text()) > size + 100_000)
        machine.processes.kill_tree("chat", 1)
        await machine.events.until("tree_empty")
    found = numbers(machine.text())
    assert found == sorted(found)
    gaps = [later - earlier - 1 for earlier, later in itertools.pairwise(found) if later > earlier + 1]
    assert len(gaps) <= 4
    assert sum(gaps) * 9 <= 4 * 65536  # at most what each killed shim had read and not yet written


async def test_a_shim_that_dies_after_its_directory_was_removed_leaves_the_engine(machine: Machine) -> None:
    """All at once, so that nobody could put the files back before. The engine is neither lost nor doubled."""
    process = await machine.start(*SLEEP)
    shim = machine.shim()
    shutil.rmtree(machine.run / "engines" / "chat")
    os.kill(shim, signal.SIGKILL)
    await machine.events.next("shim_replaced")
    assert await machine.processes.pids("chat") == (process.pid,)
    assert (await machine.processes.measure("chat", 1)) is not None
    machine.processes.signal("chat", 1, signal.SIGTERM)
    assert (await machine.events.next("exited"))[::2] == (1, 0)
    await machine.start(*SLEEP)
    assert len(processes_of(machine)) == 1


async def test_what_an_ended_engine_left_is_found_without_shim_and_directory(machine: Machine) -> None:
    process = await machine.start("/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait")
    await machine.grown(3)
    os.kill(process.pid, signal.SIGKILL)
    assert (await machine.events.next("exited"))[::2] == (1, 2)
    shim = machine.shim()
    shutil.rmtree(machine.run / "engines" / "chat")
    os.kill(shim, signal.SIGKILL)
    await machine.events.next("shim_replaced")
    machine.processes.launch("chat", machine.order(*SLEEP))
    assert "busy" in (await machine.events.until("spawn_failed"))[1]
    machine.processes.kill_tree("chat", 2)
    await machine.events.until("tree_empty")
    assert processes_of(machine) == []


async def test_shim_and_engine_killed_together_start_again(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    os.kill(process.pid, signal.SIGKILL)
    os.kill(machine.shim(), signal.SIGKILL)
    generation, status, left = await machine.events.until("exited")
    assert (generation, left) == (1, 0)
    assert status in (ExitStatus(signal=9), ExitStatus())
    await machine.start(*SLEEP)
    assert len(processes_of(machine)) == 1


async def test_kill_tree_reaches_the_orphans_of_a_killed_shim(machine: Machine) -> None:
    process = await machine.start(sys.executable, "-c", HOSTILE)
    pids = await machine.grown(100)
    os.kill(machine.shim(), signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    _, _, left = await machine.events.until("exited")
    assert left > 30
    machine.processes.launch("chat", machine.order(*SLEEP))
    assert "busy" in (await machine.events.until("spawn_failed"))[1]
    machine.processes.kill_tree("chat", 2)
    await machine.events.until("tree_empty")
    assert all(is_gone(pid) for pid in pids)


async def test_a_kill_that_the_dead_shim_did_not_carry_out_is_carried_out(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    os.kill(machine.shim(), signal.SIGKILL)
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    assert is_gone(process.pid)


async def test_a_launch_that_meets_a_dead_shim_starts_once(machine: Machine) -> None:
    machine.processes.launch("chat", machine.order("/bin/true"))
    await machine.events.until("exited")
    os.kill(machine.shim(), signal.SIGKILL)
    process = await machine.start(*SLEEP)
    assert processes_of(machine) == [process.pid]


async def test_a_shim_that_was_stopped_is_continued(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    stopped = machine.shim()
    await machine.lose_daemon()
    os.kill(stopped, signal.SIGSTOP)
    (found,) = await machine.new_daemon()
    assert found.process == process
    assert machine.shim() == stopped


async def test_a_shim_that_hangs_is_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim_keeper, "HUNG", 1.0)  # the next one must be up within it, under load too
    kill_verified = shim_keeper.tree.kill_verified

    def kill_alone(pid: int, started: int, number: int) -> None:
        if number == signal.SIGKILL:  # as if it stood still for another reason than a signal
            kill_verified(pid, started, number)

    monkeypatch.setattr(shim_keeper.tree, "kill_verified", kill_alone)
    process = await machine.start(*SLEEP)
    hung = machine.shim()
    await machine.lose_daemon()
    os.kill(hung, signal.SIGSTOP)
    (found,) = await machine.new_daemon()
    assert found.process == process
    assert is_gone(hung)


async def test_a_connection_that_breaks_is_made_again(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    shim = machine.shim()
    link = machine.processes._engines["chat"].shim._link
    assert link
    link._sock.shutdown(2)
    machine.processes.signal("chat", 1, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    assert await machine.events.next("exited") == (1, ExitStatus(signal=9), 0)
    assert machine.shim() == shim


# --- The zygote ------------------------------------------------------------------------------------------


async def test_a_killed_zygote_is_replaced_and_its_shims_stay(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    zygote = machine.processes.zygote_pid
    assert zygote
    os.kill(zygote, signal.SIGKILL)
    machine.processes.launch("other", machine.order(*SLEEP))
    other = (await machine.events.next("spawned"))[1]
    assert machine.processes.zygote_pid not in (None, zygote)
    assert pidfile.is_alive(process)
    os.kill(machine.shim("other"), signal.SIGKILL)
    os.kill(machine.shim("chat"), signal.SIGKILL)
    await machine.events.next("shim_replaced")
    await machine.events.next("shim_replaced")
    assert pidfile.is_alive(other)


async def test_a_zygote_that_hangs_is_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim_keeper, "HUNG", 0.3)
    monkeypatch.setattr(processes, "HUNG", 0.3)
    process = await machine.start(*SLEEP)
    zygote = machine.processes.zygote_pid
    assert zygote
    os.kill(zygote, signal.SIGSTOP)
    for name in ("one", "two", "three"):
        machine.processes.launch(name, machine.order(*SLEEP))
    for _ in range(3):
        await machine.events.next("spawned")
    assert machine.processes.zygote_pid not in (None, zygote)
    assert is_gone(zygote)
    assert pidfile.is_alive(process)


# --- The daemon ------------------------------------------------------------------------------------------


async def test_the_next_daemon_finds_everything_as_it_was(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    machine.processes.update_context("chat", {"restarts": 3})
    await machine.processes.pids("chat")
    for _ in range(20):
        await machine.lose_daemon()
        (found,) = await machine.new_daemon()
        assert found.process == process
        assert (found.name, found.generation, found.exit, found.left) == ("chat", 1, None, 0)
        assert found.context == {"restarts": 3}
        assert found.same_boot
    assert processes_of(machine) == [process.pid]
    machine.processes.signal("chat", 1, signal.SIGTERM)
    assert await machine.events.next("exited") == (1, ExitStatus(signal=15), 0)


async def test_an_exit_that_no_daemon_saw_is_known_to_the_next(machine: Machine) -> None:
    process = await machine.start("/bin/sh", "-c", "sleep 1000; exit 9")
    await machine.grown(2)
    await machine.lose_daemon()
    os.kill(tree.children(process.pid)[0], signal.SIGKILL)
    await eventually(lambda: pidfile.read_exit(machine.run / "engines/chat"))
    (found,) = await machine.new_daemon()
    assert (found.process, found.exit, found.left) == (None, ExitStatus(code=9), 0)
    machine.generation = found.generation
    await machine.start(*SLEEP)


async def test_the_engine_goes_on_while_there_is_no_daemon(machine: Machine) -> None:
    await machine.start("/bin/sh", "-c", "while :; do echo tick; sleep 0.01; done")
    await machine.lose_daemon()
    size = len(machine.text())
    await eventually(lambda: len(machine.text()) > size + 50)


async def test_daemon_and_shim_killed_with_the_engine_alive(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    shim = machine.shim()
    await machine.lose_daemon()
    os.kill(shim, signal.SIGKILL)
    (found,) = await machine.new_daemon()
    assert found.process == process
    assert found.context == {"of": "a test"}
    assert machine.shim() != shim
    assert processes_of(machine) == [process.pid]


async def test_daemon_shim_and_engine_all_killed(machine: Machine) -> None:
    process = await machine.start("/bin/sh", "-c", "setsid sleep 1000 & sleep 1000")
    await machine.grown(3)
    shim = machine.shim()
    await machine.lose_daemon()
    os.kill(shim, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    (found,) = await machine.new_daemon()
    assert (found.generation, found.process, found.left) == (1, None, 2)
    assert found.exit in (ExitStatus(signal=9), ExitStatus())
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    machine.generation = 1
    await machine.start(*SLEEP)


# --- Records that cannot be trusted ------------------------------------------------------------------------


async def forge(machine: Machine, record: str, pid: int) -> None:
    """An engine's directory as it is after a crash of everything, with this started.json."""
    await machine.lose_daemon()
    directory = machine.run / "engines/chat"
    directory.mkdir(parents=True)
    (directory / "started.json").write_text(record)
    machine.pid_file().write_text(f"{pid}\n")


def record_of(pid: int, **changes: object) -> str:
    record = {
        "v": 1,
        "generation": 4,
        "pid": pid,
        "starttime": tree.start_time(pid),
        "boot_id": pidfile.boot_id(),
        "started": 1.0,
        "started_wall": 1.0,
        "log_position": 0,
        "context": {},
    }
    return json.dumps(record | changes)


async def test_a_recycled_pid_is_never_signalled(
    machine: Machine, bystander: subprocess.Popen[bytes]
) -> None:
    await forge(machine, record_of(bystander.pid, starttime=12), bystander.pid)
    (found,) = await machine.new_daemon()
    assert (found.generation, found.process, found.exit, found.left) == (4, None, ExitStatus(), 0)
    machine.processes.signal("chat", 4, signal.SIGKILL)
    machine.processes.kill_tree("chat", 4)
    await machine.events.until("tree_empty")
    machine.generation = 4
    await machine.start(*SLEEP)


async def test_a_record_of_another_boot_is_only_read(
    machine: Machine, bystander: subprocess.Popen[bytes]
) -> None:
    await forge(machine, record_of(bystander.pid, boot_id="another", context={"a": 1}), bystander.pid)
    (found,) = await machine.new_daemon()
    assert (found.process, found.same_boot, found.context) == (None, False, {"a": 1})
    assert not machine.pid_file().exists()
    machine.processes.kill_tree("chat", 4)
    await machine.events.until("tree_empty")
    machine.generation = 4
    await machine.start(*SLEEP)


@pytest.mark.parametrize("length", [0, 1, 30, 90])
async def test_a_truncated_record_is_no_record(
    machine: Machine, bystander: subprocess.Popen[bytes], length: int
) -> None:
    await forge(machine, record_of(bystander.pid)[:length], bystander.pid)
    assert await machine.new_daemon() == []
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    await machine.start(*SLEEP)


async def test_an_engine_without_a_record_of_its_start_is_never_doubled(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    shim = machine.shim()
    await machine.lose_daemon()
    os.kill(shim, signal.SIGKILL)
    (machine.run / "engines/chat/started.json").write_text("{")
    (found,) = await machine.new_daemon()
    assert (found.generation, found.process, found.exit, found.left) == (1, None, ExitStatus(), 1)
    machine.processes.launch("chat", machine.order(*SLEEP))
    assert "busy" in (await machine.events.next("spawn_failed"))[1]
    machine.processes.kill_tree("chat", 2)
    await machine.events.until("tree_empty")
    assert is_gone(process.pid)
    await machine.start(*SLEEP)
    assert len(processes_of(machine)) == 1


async def test_pid_files_without_an_engine_go(machine: Machine) -> None:
    await machine.lose_daemon()
    (machine.run / "engines/gone.pid").write_text("1\n")
    assert await machine.new_daemon() == []
    assert not (machine.run / "engines/gone.pid").exists()


@pytest.mark.parametrize("text", ["", "x\n", "-1\n", "0\n", "99999999999999999999\n", "12 13\n", "\0\0\0"])
def test_a_pid_file_that_makes_no_sense_is_no_pid(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pid").write_text(text)
    assert pidfile.read_pid(tmp_path / "a.pid") is None


async def test_orphans_of_dead_shims_do_not_stay_zombies(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SWEEP", 0.02)
    process = await machine.start("/bin/sh", "-c", "(setsid sleep 1000 &); sleep 1000")
    pids = await machine.grown(3)
    os.kill(machine.shim(), signal.SIGKILL)
    await machine.events.next("shim_replaced")
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    machine.processes.reap()
    await asyncio.sleep(0.02)
    machine.processes.reap()
    assert all(tree.process_stat(pid) is None for pid in (process.pid, *pids))
