from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from sagectl.system import pidfile
from sagectl.system.supervised import Phase
from tests.integration.process_support import HOSTILE, SLEEP, Machine, eventually, is_gone, running


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with running(tmp_path) as it:
        yield it


async def test_a_process_is_told_with_its_identity_and_its_exit_code(machine: Machine) -> None:
    process = await machine.start("/bin/sh", "-c", "read line; exit 7")
    assert process.boot_id == pidfile.boot_id()
    assert 0 <= time.monotonic() - process.started < 5
    generation, status, left = await machine.events.next("exited")
    assert (generation, status, left) == (1, ExitStatus(code=7), 0)


async def test_the_pid_file_holds_one_number_while_the_tree_lives(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    assert machine.pid_file().read_bytes() == b"%d\n" % process.pid
    assert pidfile.read_started(machine.run / "engines/chat")["starttime"] == process.starttime
    machine.processes.signal("chat", 1, signal.SIGTERM)
    assert await machine.events.next("exited") == (1, ExitStatus(signal=15), 0)
    assert not machine.pid_file().exists()
    assert pidfile.read_exit(machine.run / "engines/chat")["signal"] == 15


async def test_a_killed_engine_starts_again_under_the_same_shim(machine: Machine) -> None:
    first = await machine.start(*SLEEP)
    shim = machine.shim()
    os.kill(first.pid, signal.SIGKILL)
    assert await machine.events.next("exited") == (1, ExitStatus(signal=9), 0)
    second = await machine.start(*SLEEP)
    assert second.pid != first.pid
    assert machine.shim() == shim


@pytest.mark.parametrize(
    ("argv", "cwd", "text"),
    [
        (("/nonexistent/program",), "/", "cannot run /nonexistent/program: No such file or directory"),
        (("no-such-program",), "/", "cannot run no-such-program: No such file or directory on its PATH"),
        (("/etc/passwd",), "/", "cannot run /etc/passwd: Permission denied"),
        (
            SLEEP,
            "/no/such/place",
            "cannot enter the working directory /no/such/place: No such file or directory",
        ),
        (("/bin/echo", "a\0b"), "/", "cannot run /bin/echo: embedded null byte"),
    ],
)
async def test_a_start_that_cannot_work_says_why(
    machine: Machine, argv: tuple[str, ...], cwd: str, text: str
) -> None:
    machine.processes.launch("chat", machine.order(*argv, cwd=cwd))
    assert await machine.events.next("spawn_failed") == (1, text)
    await machine.start(*SLEEP)  # and the next one works


async def test_nothing_starts_while_a_descendant_lives(machine: Machine) -> None:
    process = await machine.start("/bin/sh", "-c", "setsid sleep 1000 & sleep 1000")
    await eventually(lambda: len(tree.children(process.pid)) == 2)
    os.kill(process.pid, signal.SIGKILL)
    assert await machine.events.next("exited") == (1, ExitStatus(signal=9), 2)
    machine.processes.launch("chat", machine.order(*SLEEP))
    generation, text = await machine.events.next("spawn_failed")
    assert (generation, text) == (2, "busy: processes of its last start are alive")
    machine.processes.kill_tree("chat", 2)
    assert await machine.events.next("tree_empty") == (2,)
    await machine.start(*SLEEP)


async def test_nothing_starts_while_somebody_holds_the_tree_lock(machine: Machine) -> None:
    machine.processes.launch("chat", machine.order("/bin/true"))
    await machine.events.until("exited")
    lock = os.open(machine.run / "engines/chat/tree.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    machine.processes.launch("chat", machine.order(*SLEEP))
    _, text = await machine.events.next("spawn_failed")
    os.close(lock)
    assert "busy: a process holds" in text


async def test_the_end_of_the_last_descendant_is_told(machine: Machine) -> None:
    process = await machine.start("/bin/sh", "-c", "sleep 1000 & sleep 1000")
    child = (await eventually(lambda: len(tree.children(process.pid)) == 2 and tree.children(process.pid)))[0]
    others = [pid for pid in await machine.processes.pids("chat") if pid not in (process.pid, child)]
    os.kill(process.pid, signal.SIGKILL)
    assert (await machine.events.next("exited"))[2] == 2
    for pid in (child, *others):
        os.kill(pid, signal.SIGKILL)
    assert await machine.events.next("tree_empty") == (1,)


async def test_kill_tree_leaves_nothing_of_a_hostile_tree(machine: Machine) -> None:
    await machine.start(sys.executable, "-c", HOSTILE)
    await machine.wrote("up")

    pids = await machine.grown(100)
    machine.processes.signal("chat", 1, signal.SIGTERM)
    machine.processes.kill_tree("chat", 1)
    assert (await machine.events.next("exited"))[1] == ExitStatus(signal=9)
    assert await machine.events.next("tree_empty") == (1,)
    assert all(is_gone(pid) for pid in pids)
    assert await machine.processes.pids("chat") == ()
    assert not machine.pid_file().exists()


async def test_kill_tree_outruns_processes_that_keep_forking(machine: Machine) -> None:
    forking = "while :; do sleep 0.01 & wait; done"
    script = f"f() {{ (setsid sh -c '{forking}' &) ; }}; f; f; f; while :; do f; sleep 0.02; done"
    await machine.start("/bin/sh", "-c", script)
    await machine.grown(20)
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    assert await machine.processes.pids("chat") == ()


async def test_killing_an_empty_tree_is_answered_at_once(machine: Machine) -> None:
    machine.processes.kill_tree("chat", 1)
    assert await machine.events.next("tree_empty") == (1,)
    machine.processes.launch("chat", machine.order("/bin/true"))
    await machine.events.until("exited")
    machine.processes.kill_tree("chat", 1)
    assert await machine.events.next("tree_empty") == (1,)


async def test_signals_of_another_generation_are_dropped(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    machine.processes.signal("chat", 7, signal.SIGKILL)
    machine.processes.kill_tree("chat", 7)
    assert await machine.processes.pids("chat") == (process.pid,)


async def test_the_engine_gets_a_clean_process(machine: Machine) -> None:
    script = (
        "cat /proc/self/status; cd /proc/$$/fd; echo fds: $(readlink 0 1 2); readlink *;"
        " echo marked $SAGECTL_ENGINE; [ $(ps -o sid= -p $$) -eq $$ ] && echo leader"
    )
    await machine.start("/bin/bash", "-c", script, cwd=str(machine.home))
    await machine.events.next("exited")
    text, directory = machine.text(), machine.run / "engines/chat"
    blocked, ignored = (
        int(re.search(rf"{name}:\s(\w+)$", text, re.M)[1], 16) for name in ("SigBlk", "SigIgn")
    )  # type: ignore[index]
    assert blocked == 0
    assert ignored & 0x7FFFFFFF == 0
    fifo, lock = f"{directory}/log.fifo", f"{directory}/tree.lock"
    assert f"fds: /dev/null {fifo} {fifo}\n" in text
    assert set(text.partition("fds:")[2].partition("marked")[0].splitlines()[1:]) == {"/dev/null", fifo, lock}
    assert f"marked chat:1:{directory}\nleader\n" in text


async def test_limits_reach_the_engine(machine: Machine) -> None:
    limits = {"nofile": (77, 1000), "core": (0, 0)}
    await machine.start("/bin/sh", "-c", "ulimit -n; ulimit -c; sleep 0.1; nice", rlimits=limits, nice=5)
    await machine.events.next("exited")
    assert machine.text() == "77\n0\n5\n"


NOTIFY = (
    "{python} -I -S -c '"
    "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
    'a = os.environ["NOTIFY_SOCKET"];'
    's.sendto(b"{fields}", "\\0" + a[1:] if a[0] == "@" else a)'
    "'"
)


SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin:/bin")  # ours may lie where only root can go


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of another user")
@pytest.mark.skipif(SYSTEM_PYTHON is None, reason="needs a python3 that every user can run")
async def test_an_engine_runs_as_its_user_and_can_still_notify(machine: Machine) -> None:
    for parent in [machine.home, *machine.home.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o111)
    script = "id -u; id -g; id -G; echo again > /dev/stdout; grep Cap /proc/self/status; sleep 1000"
    notify = NOTIFY.format(python=SYSTEM_PYTHON, fields="READY=1")
    user = (65534, 65534, (65534, 4))
    await machine.start("/bin/sh", "-c", f"{script.replace('sleep', notify + '; sleep')}", user=user)
    assert (await machine.events.next("notified"))[1] == {"READY": "1"}
    text = machine.text()
    assert text.startswith("65534\n65534\n65534 4\nagain\n")
    assert re.search(r"CapPrm:\s0+$", text, re.M)
    assert re.search(r"CapEff:\s0+$", text, re.M)
    machine.processes.kill_tree("chat", 1)
    await machine.events.until("tree_empty")
    await machine.start("/bin/sh", "-c", "echo now $(id -u)")  # the shim itself is who it was
    await machine.events.until("exited")
    assert "now 0\n" in machine.text()


async def test_notifications_of_the_tree_arrive_and_readiness_is_kept(machine: Machine) -> None:
    script = (
        NOTIFY.format(python=sys.executable, fields="STATUS=half way\\nEXTEND_TIMEOUT_USEC=5\\nREADY=1")
        + "; sleep 1000"
    )
    await machine.start("/bin/sh", "-c", script)
    assert await machine.events.next("notified") == (
        1,
        {"STATUS": "half way", "EXTEND_TIMEOUT_USEC": "5", "READY": "1"},
    )
    os.kill(machine.shim(), signal.SIGKILL)
    await machine.events.next("shim_replaced")
    await machine.lose_daemon()
    (found,) = await machine.new_daemon()
    assert found.ready


async def test_notifications_of_strangers_are_ignored(machine: Machine) -> None:
    await machine.start(*SLEEP)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.sendto(b"READY=1", str(machine.run / "engines/chat/notify.sock"))
    sock.close()
    assert await machine.processes.pids("chat")  # asked after it, answered after it
    assert machine.events.queue.empty()


async def test_a_directory_too_long_for_a_socket_address_works(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    home.mkdir()
    async with running(home) as machine:
        await machine.start(
            "/bin/sh", "-c", NOTIFY.format(python=sys.executable, fields="READY=1") + "; sleep 1000"
        )
        assert (await machine.events.next("notified"))[1] == {"READY": "1"}
        await machine.lose_daemon()
        assert [found.ready for found in await machine.new_daemon()] == [True]


async def test_a_tree_is_measured_as_a_whole(machine: Machine) -> None:
    process = await machine.start("/bin/sh", "-c", "echo hello; sleep 1000 & sleep 1000")
    await machine.wrote("hello")
    await eventually(lambda: len(tree.children(process.pid)) == 2)
    measured = await machine.processes.measure("chat", 1)
    assert measured is not None
    assert (measured.processes, measured.log_written) == (3, 6)
    assert measured.rss_bytes > 1000
    assert await machine.processes.measure("chat", 2) is None
    assert await machine.processes.measure("other", 1) is None


async def test_release_takes_the_shim_and_its_directory_away(machine: Machine) -> None:
    machine.processes.launch("chat", machine.order("/bin/true"))
    await machine.events.until("exited")
    shim = machine.shim()
    machine.processes.release("chat")
    machine.processes.launch("chat", machine.order(*SLEEP))  # at once again: waits for the old shim's end
    await machine.events.next("spawned")
    assert machine.shim() != shim
    assert is_gone(shim)


async def test_a_release_ends_what_the_daemon_had_taken_for_gone(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    shim = machine.shim()
    (engine,) = machine.processes._engines.values()
    engine.phase = Phase.IDLE  # as after an end that was told too early
    machine.processes.release("chat")
    await eventually(lambda: is_gone(process.pid) and is_gone(shim))
    await eventually(lambda: not (machine.run / "engines" / "chat").exists())


async def test_a_release_of_something_alive_is_no_release(machine: Machine) -> None:
    process = await machine.start(*SLEEP)
    machine.processes.release("chat")
    assert await machine.processes.pids("chat") == (process.pid,)


async def test_many_engines_start_side_by_side(machine: Machine) -> None:
    names = [f"e{number}" for number in range(20)]
    for name in names:
        machine.processes.launch(name, machine.order(*SLEEP))
    pids = set()
    for _ in names:
        pids.add((await machine.events.next("spawned"))[1].pid)
    assert len(pids) == 20
    machine.generation = 0
    for number, name in enumerate(names):
        machine.processes.kill_tree(name, number + 1)
    for _ in names:
        await machine.events.until("tree_empty")


async def test_what_the_engine_wrote_is_in_the_log_when_its_end_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, log_max_bytes=300_000, log_keep=1000) as machine:
        script = "i = 0\nwhile i < 400_000: print('line', i); i += 1"
        await machine.start(sys.executable, "-I", "-S", "-c", script)
        await machine.events.next("exited")
        numbers = range(len(list(machine.log.glob("chat.log.[0-9]*"))), 0, -1)
        parts = [(machine.log / f"chat.log.{number}").read_bytes() for number in numbers]
        assert len(parts) > 10
        assert all(part.endswith(b"\n") for part in parts)
        expected = b"".join(b"line %d\n" % number for number in range(400_000))
        assert b"".join(parts) + (machine.log / "chat.log").read_bytes() == expected


async def test_a_full_disk_never_blocks_the_engine(machine: Machine) -> None:
    machine.log.mkdir(exist_ok=True)
    (machine.log / "chat.log").symlink_to("/dev/full")
    machine.processes.launch("chat", machine.order("/bin/sh", "-c", "head -c 3000000 /dev/zero; exit 4"))
    assert "No space left on device" in (await machine.events.until("log_trouble"))[0]
    assert (await machine.events.until("exited"))[1] == ExitStatus(code=4)
