"""Scenario 17: the places that the daemon keeps its files in fill up, fall ill, or are of another time.

What has to be refused is refused with the reason, and all the rest goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sagectl.errors import Unkept
from sagectl.system.processes import PR_SET_CHILD_SUBREAPER
from tests.acceptance.disks import disk_on
from tests.acceptance.harness import PROGRAMS, Daemon, free_port, kill, server_command
from tests.acceptance.listening import FollowedLog


def transient(daemon: Daemon, name: str) -> dict[str, Any]:
    """The definition of an HTTP engine."""
    env = {"MAIL": str(daemon.mailbox.path)}
    return {"kind": "exec", "name": name, "command": server_command(), "env": env, "port": free_port()}


def restarted(daemon: Daemon, name: str) -> dict[str, Any]:
    """Kill an engine's process and wait for the next one."""
    before = daemon.show(name)["pid"]
    assert before is not None
    kill(before)
    return dict(daemon.until(name, lambda e: e["substate"] == "ready" and e["pid"] != before, "another pid"))


def trouble(daemon: Daemon) -> str:
    """What the status says is wrong with the state, "" for nothing."""
    return daemon.client.status()["control_plane"]["trouble"] or ""


def kinds_of_events(daemon: Daemon) -> list[str]:
    return [event["kind"] for event in daemon.client.events(tail=1000)]


def test_a_full_state_directory_refuses_definitions_and_nothing_else(daemon: Daemon) -> None:
    """Scenario 17.1: the state directory has no byte left. An engine is killed; engines are stopped, started,
    defined and enabled. The daemon gets SIGKILL; the next one starts with the directory still full. Then
    there is room again.

    Result: engines restart, stop and start; a new definition and `disable` are refused, and leave no trace.
    Status, event and refusal name the reason. The next daemon adopts the engine with its counters and sets
    nothing aside. With room all is written by itself, and an event says so.
    """
    disk = disk_on(daemon, "state")
    daemon.web()
    daemon.start()
    daemon.until_ready("web")
    daemon.client.define(transient(daemon, "early"))
    daemon.until_ready("early")
    disk.fill()
    assert restarted(daemon, "web")["restart_count"] == 1
    said = daemon.expect_event("state-trouble")["text"]
    assert "database or disk is full" in said
    assert "make room on its file system" in said
    assert said in trouble(daemon)
    with pytest.raises(Unkept, match="database or disk is full") as refused:
        daemon.client.define(transient(daemon, "late"))
    assert "make room" in refused.value.remedy
    assert [e["name"] for e in daemon.client.engines()] == ["early", "web"]
    disabled = daemon.cli("disable", "web")
    assert disabled.returncode == 1
    assert "is full" in disabled.stderr
    assert daemon.show("web")["autostart"]
    assert daemon.cli("stop", "early").returncode == 0
    assert daemon.cli("start", "early").returncode == 0
    assert restarted(daemon, "web")["restart_count"] == 2
    before = {name: daemon.show(name) for name in ("web", "early")}
    daemon.kill()
    daemon.start()
    for name, engine in before.items():
        daemon.until_ready(name)
        after = daemon.show(name)
        for key in ("engine_id", "pid", "restart_count", "port", "transient"):
            assert after[key] == engine[key], key
    assert "is full" in trouble(daemon)
    assert restarted(daemon, "web")["restart_count"] == 3
    disk.free()
    daemon.expect_event("state-recovered")
    assert trouble(daemon) == ""
    assert daemon.cli("disable", "web").returncode == 0
    daemon.kill()
    daemon.start()
    assert not daemon.show("web")["autostart"]
    assert daemon.show("web")["restart_count"] == 3
    assert "state-recovered" in kinds_of_events(daemon)
    assert not list(disk.path.glob("*corrupt*"))


def test_a_full_state_directory_hides_nothing_from_the_next_start(daemon: Daemon) -> None:
    """Scenario 17.2: the daemon ended in order, one engine disabled; then its state directory fills up, so
    that SQLite cannot even make the files that it reads with. The daemon starts.

    Result: the disabled engine stays down, ids are kept, nothing is set aside; with room the trouble ends.
    """
    disk = disk_on(daemon, "state")
    daemon.configure(daemon.web_engine("web", free_port()) + daemon.web_engine("off", free_port()))
    daemon.start()
    before = {e["name"]: e["engine_id"] for e in daemon.until_ready("web", "off")}
    daemon.client.disable("off")
    daemon.client.stop("off", wait=20)
    assert daemon.terminate() == 0
    disk.fill()
    daemon.start()
    [web] = daemon.until_ready("web")
    off = daemon.show("off")
    assert (off["autostart"], off["state"]) == (False, "inactive")
    assert {e["name"]: e["engine_id"] for e in (web, off)} == before
    assert "cannot be written" in trouble(daemon)
    assert "make room on its file system" in trouble(daemon)
    disk.free()
    daemon.expect_event("state-recovered")
    assert trouble(daemon) == ""
    daemon.kill()
    daemon.start()
    assert daemon.show("web")["pid"] == web["pid"]
    assert not list(disk.path.glob("*corrupt*"))


@pytest.mark.parametrize("ended", ["killed", "in order", "for the first time"])
def test_a_read_only_state_directory_is_read(daemon: Daemon, ended: str) -> None:
    """Scenario 17.3: the daemon was killed (or ended in order), and its state directory is read-only now: the
    file system was mounted so after an error, say. The daemon starts.

    Result: engines that run go on, those that shall run start, those that were disabled do not; a definition
    is refused with the reason. As soon as it can be written all is as ever.
    """
    disk = disk_on(daemon, "state")
    daemon.configure(daemon.web_engine("web", free_port()) + daemon.web_engine("off", free_port()))
    daemon.start()
    before = {e["name"]: e for e in daemon.until_ready("web", "off")}
    daemon.client.disable("off")
    daemon.client.stop("off", wait=20)
    daemon.kill() if ended == "killed" else daemon.terminate()
    if ended == "for the first time":
        for path in disk.path.glob("sagectl.*"):
            path.unlink()
    disk.read_only()
    daemon.start()
    [web] = daemon.until_ready("web")
    assert "cannot be written" in trouble(daemon)
    assert "its file system is read-only" in trouble(daemon)
    with pytest.raises(Unkept, match="cannot be written"):
        daemon.client.define(transient(daemon, "late"))
    if ended == "killed":
        assert web["pid"] == before["web"]["pid"]
    if ended != "for the first time":
        assert daemon.show("off")["state"] == "inactive"
        assert web["engine_id"] == before["web"]["engine_id"]
    assert restarted(daemon, "web")["restart_count"] == 1
    disk.read_only(False)
    daemon.expect_event("state-recovered")
    daemon.client.define(transient(daemon, "late"))
    daemon.until_ready("late")
    daemon.kill()
    daemon.start()
    assert daemon.show("web")["restart_count"] == 1
    assert daemon.show("late")["transient"]
    assert daemon.show("off")["state"] == ("active" if ended == "for the first time" else "inactive")


GAP = re.compile(rb"^\[sagectl: (\d+) bytes of log lost here\]\n", re.MULTILINE)


def test_a_full_log_directory_costs_log_lines_and_says_how_many(daemon: Daemon) -> None:
    """Scenario 17.4: the log directory fills up while an engine writes without pause; the daemon gets SIGKILL
    meanwhile; then there is room again.

    Result: the engine never waits and is never restarted. Events tell the reason, how much is lost so far,
    and in the end how much was; the log has a line in place of what is missing, and the count is exact.
    """
    disk = disk_on(daemon, "log", "4m")
    count = 60_000
    engine = daemon.engine("chatter", "chatter.py", str(count), "100", "0.01")
    daemon.configure(f'[daemon]\nlog_max_size = "256KiB"\nlog_keep = 1000\n{engine}')
    disk.fill(leave=1_000_000)
    daemon.start()
    said = daemon.expect_event("log-trouble", "chatter")["text"]
    assert said.endswith("chatter.log: No space left on device; log lines are dropped")
    said = daemon.expect_event("log-trouble", "chatter")["text"]
    assert re.search(r"; log lines are dropped, \d+ bytes so far$", said)
    daemon.kill()
    daemon.mailbox.expect(f"wrote {count // 2}")
    daemon.start()
    assert "No space left" in daemon.expect_event("log-trouble", "chatter")["text"]
    disk.free()
    while "is written again" not in daemon.expect_event("log-trouble", "chatter")["text"]:
        pass
    daemon.mailbox.expect(f"wrote {count}")
    FollowedLog(daemon.client, "chatter").expect(b"line %07d" % (count - 1))
    text = b"".join(daemon.client.logs("chatter"))
    gaps = [int(number) for number in GAP.findall(text)]
    told = [re.search(r"; (\d+) bytes were lost$", event["text"]) for event in daemon.client.events(tail=999)]
    assert gaps == [int(match[1]) for match in told if match]
    written = sum(len("line 0000000 \n") + number % 90 for number in range(count))
    newlines = len(GAP.sub(b"", text)) - (written - sum(gaps))
    assert 0 <= newlines <= len(gaps)  # of lines that were cut off there
    assert daemon.show("chatter")["restart_count"] == 0


def test_a_full_runtime_directory_refuses_new_engines_and_keeps_the_old(daemon: Daemon) -> None:
    """Scenario 17.5: the runtime directory has no byte left. An engine is killed; one that never ran is
    started; the daemon gets SIGKILL and the next one starts. Then there is room again.

    Result: the engine restarts and is adopted with its counters; the new one fails with the reason, and
    starts once there is room. Nothing is left lying about.
    """
    disk = disk_on(daemon, "run", "1m")
    late = daemon.web_engine("late", free_port(), autostart=False, restart='{ policy = "no" }')
    daemon.configure(daemon.web_engine("web", free_port()) + late)
    daemon.start()
    daemon.until_ready("web")
    disk.fill()
    before = restarted(daemon, "web")
    assert before["restart_count"] == 1
    started = daemon.cli("start", "late")
    assert started.returncode == 1
    assert f"its shim cannot use {disk.path}/engines/late: No space left on device" in started.stderr
    daemon.kill()
    daemon.start()
    [after] = daemon.until_ready("web")
    assert (after["pid"], after["restart_count"]) == (before["pid"], 1)
    assert daemon.tree("web") == [before["pid"]]
    assert restarted(daemon, "web")["restart_count"] == 2
    disk.free()
    assert daemon.cli("start", "late").returncode == 0
    assert daemon.terminate() == 0
    assert sorted(os.listdir(disk.path)) == ["engines", "sagectl.lock"]
    assert os.listdir(disk.path / "engines") == []


def cut_in_half(state: Path) -> None:
    for file in state.glob("sagectl.db*"):
        os.truncate(file, file.stat().st_size // 2)


def emptied(state: Path) -> None:
    os.truncate(state / "sagectl.db", 0)


def without_the_newest(state: Path) -> None:
    os.truncate(state / "sagectl.db-wal", 0)


def torn(state: Path) -> None:
    for file in state.glob("sagectl.db*"):
        whole = file.read_bytes()
        file.write_bytes(whole[:3000] + os.urandom(len(whole) - 3000))


@pytest.mark.parametrize("damage", [cut_in_half, emptied, without_the_newest, torn])
def test_a_database_that_lost_a_part_costs_no_engine(daemon: Daemon, damage: Callable[[Path], None]) -> None:
    """Scenario 17.6: the daemon is killed, and its database loses a part, as in a crash of the machine. A
    declared engine, which was restarted once, and a transient one run.

    Result: the next daemon adopts both with their counters. It says what became of the database, which it
    keeps, unless what is left of it is whole; and it answers as ever.
    """
    daemon.web()
    daemon.start()
    daemon.until_ready("web")
    daemon.client.define(transient(daemon, "loose"))
    daemon.until_ready("loose")
    before = [restarted(daemon, "web"), daemon.show("loose")]
    daemon.kill()
    damage(daemon.home / "state")
    daemon.start()
    for engine in before:
        after = daemon.show(engine["name"])
        for key in ("engine_id", "pid", "port", "restart_count", "transient", "state"):
            assert after[key] == engine[key], key
        assert daemon.tree(engine["name"]) == [engine["pid"]]
    aside = list((daemon.home / "state").glob("*corrupt*"))
    assert bool(aside) == ("it was set aside as" in trouble(daemon))
    assert bool(aside) or damage is without_the_newest
    daemon.client.define(transient(daemon, "late"))
    daemon.until_ready("late")


def removed(state: Path) -> None:
    for file in state.glob("sagectl.db*"):
        file.unlink()


def removed_as_a_whole(state: Path) -> None:
    shutil.rmtree(state)


@pytest.mark.parametrize("damage", [removed, removed_as_a_whole, emptied])
def test_a_database_lost_under_a_living_daemon_is_made_again(
    daemon: Daemon, damage: Callable[[Path], None]
) -> None:
    """Scenario 17.7: somebody removes or truncates the database while the daemon runs; then an engine is
    killed. Later the daemon is killed, another one starts.

    Result: an event says what happened; the next daemon knows everything: counters, transient engines, what
    was disabled and stopped.
    """
    daemon.configure(daemon.web_engine("web", free_port()) + daemon.web_engine("off", free_port()))
    daemon.start()
    daemon.until_ready("web", "off")
    daemon.client.define(transient(daemon, "loose"))
    daemon.until_ready("loose")
    daemon.client.disable("off")
    daemon.client.stop("off", wait=20)
    damage(daemon.home / "state")
    assert restarted(daemon, "web")["restart_count"] == 1
    said = daemon.expect_event("state-trouble")["text"]
    assert "truncated under the daemon" in said or "removed under the daemon" in said
    assert trouble(daemon) == said
    before = {e["name"]: e["engine_id"] for e in daemon.client.engines()}
    daemon.client.stop("loose", wait=20)
    daemon.kill()
    daemon.start()
    daemon.until_ready("web")
    assert trouble(daemon) == ""
    assert {e["name"]: e["engine_id"] for e in daemon.client.engines()} == before
    assert daemon.show("web")["restart_count"] == 1
    off, loose = daemon.show("off"), daemon.show("loose")
    assert (off["autostart"], off["state"], loose["state"]) == (False, "inactive", "inactive")
    assert "state-trouble" in kinds_of_events(daemon)


def power_loss(daemon: Daemon) -> None:
    """End all that runs at once, as if the machine had no power: nobody notes anything."""
    assert daemon.process is not None
    daemon.process.kill()
    while left := daemon.pids(daemon.is_ours):
        kill(*left)
    daemon.process.wait()


def another_boot(daemon: Daemon) -> None:
    """Have the next daemon, and all that it starts, live in another boot."""
    file = daemon.home / "boot_id"
    file.write_text("00000000-1111-2222-3333-444444444444\n")
    bind = ["unshare", "--mount", "sh", "-ec", 'mount --bind "$0" /proc/sys/kernel/random/boot_id; exec "$@"']
    tried = subprocess.run([*bind, str(file), "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"another boot cannot be feigned here: {tried.stderr.strip()}")
    daemon.program = [*bind, str(file), *daemon.program]


def recycled(pid: int) -> subprocess.Popen[bytes]:
    """A process of somebody else that has the number of one that is gone.

    Needs `bystanders`: the number of a process is free only when that was reaped.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    try:
        for _ in range(100):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
            process = subprocess.Popen(["/bin/sleep", "1000"])
            if process.pid == pid:
                return process
            process.kill()
            process.wait()
    except OSError as error:
        pytest.skip(f"nobody may choose process ids here: {error}")
    pytest.skip("others start so many processes that a certain id cannot be had")


@pytest.fixture
def bystanders() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that must live to the end. Meanwhile orphans are ours to reap."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    found: list[subprocess.Popen[bytes]] = []
    yield found
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    ended = [process.pid for process in found if process.poll() is not None]
    for process in found:
        process.kill()
        process.wait()
    assert ended == []


@pytest.mark.parametrize("runtime", ["is gone", "is of the last boot"])
def test_a_reboot_starts_what_shall_run_and_touches_nobody(
    daemon: Daemon, runtime: str, bystanders: list[subprocess.Popen[bytes]]
) -> None:
    """Scenario 17.8: the machine loses power and boots again, with the runtime directory gone (a tmpfs) or as
    it was. Process ids of the last boot belong to others now.

    Result: what is wanted runs, once, and transient engines too; what a user started only for that boot, or
    disabled, does not; start limits and backoffs of the last boot are void. Ids stay; nobody is signalled.
    """
    slow = '{ policy = "on-failure", delay = "10min", max_delay = "10min" }'
    once = '{ policy = "on-failure", delay = 0, limit = 1 }'
    manual = daemon.web_engine("manual", free_port(), autostart=False)
    crashing = {"probe": "{ tcp = true }", "port": free_port()}
    daemon.configure(
        daemon.web_engine("web", free_port())
        + manual
        + daemon.web_engine("off", free_port())
        + daemon.engine("waiting", "crash.py", "1", restart=slow, **crashing)
        + daemon.engine("limited", "crash.py", "1", restart=once, **{**crashing, "port": free_port()})
    )
    daemon.start()
    daemon.client.start("manual")
    daemon.client.define(transient(daemon, "loose"))
    daemon.until_ready("web", "off", "manual", "loose")
    daemon.client.disable("off")
    daemon.until_state("waiting", "backoff")
    daemon.until_state("limited", "start-limit")
    restarted(daemon, "web")
    before = {e["name"]: e for e in daemon.client.engines()}
    power_loss(daemon)
    for name in ("web", "loose", "manual"):
        bystanders.append(recycled(before[name]["pid"] or 0))
    if runtime == "is gone":
        shutil.rmtree(daemon.home / "run")
    another_boot(daemon)
    daemon.start()
    for engine in daemon.until_ready("web", "loose"):
        assert engine["pid"] != before[engine["name"]]["pid"]
        assert engine["uptime_seconds"] < 30
        assert daemon.tree(engine["name"]) == [engine["pid"]]
        number = (daemon.home / "run" / "engines" / f"{engine['name']}.pid").read_text()
        assert int(number) == engine["pid"]
    assert daemon.until_state("waiting", "backoff")["consecutive_failures"] == 1  # it was tried again, once
    daemon.until_state("limited", "start-limit")
    after = {e["name"]: e for e in daemon.client.engines()}
    assert {name: e["engine_id"] for name, e in after.items()} == {
        name: e["engine_id"] for name, e in before.items()
    }
    for name in ("manual", "off"):
        assert (after[name]["state"], after[name]["pid"]) == ("inactive", None)
        assert not (daemon.home / "run" / "engines" / f"{name}.pid").exists()
    assert trouble(daemon) == ""
    assert daemon.cli("start", "manual").returncode == 0
    daemon.kill()
    daemon.start()
    assert daemon.show("manual")["state"] == "active"
    assert daemon.terminate() == 0


def test_a_recycled_process_id_is_nobody_of_ours(
    daemon: Daemon, bystanders: list[subprocess.Popen[bytes]]
) -> None:
    """Scenario 17.9: the daemon, a shim and its engine are killed, and processes of somebody else get their
    numbers. Another daemon starts, the engine is restarted and stopped.

    Result: an end that nobody saw, counted as a failure; one new process; the strangers live.
    """
    daemon.web()
    first = daemon.start()
    [before] = daemon.until_ready("web")
    assert before["pid"] is not None
    shim = daemon.shim("web")
    daemon.kill()
    kill(shim, before["pid"])
    bystanders += [recycled(pid) for pid in (before["pid"], shim, first)]
    daemon.start()
    after = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"], "a new one")
    assert after["restart_count"] == 1
    assert after["last_exit"] == {"code": None, "signal": None, "oom_kill": False}
    assert daemon.tree("web") == [after["pid"]]
    assert daemon.cli("restart", "web").returncode == 0
    assert daemon.cli("stop", "web").returncode == 0
    assert daemon.tree("web") == []
    assert daemon.terminate() == 0


YEAR = 365 * 86400


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_wall_clock_that_jumps_moves_nothing_but_what_people_read(daemon: Daemon, jump: int) -> None:
    """Scenario 17.10: the wall clock jumps by a year while one engine is ready, one loads, one waits between
    two restarts, and one is near its start limit. The daemon is killed and started; then an engine is stopped
    that ignores SIGTERM.

    Result: uptime, backoff, start limit, startup and stop timeouts are as ever; only times of day are others.
    """
    clock = daemon.home / "clock"
    clock.write_text("0")
    daemon.environ["CLOCK"] = str(clock)
    daemon.program = [sys.executable, str(PROGRAMS / "shifted_clock.py")]
    go = daemon.home / "go"
    late = '{ http = "/health", interval = 0.2, timeout = 2, startup_timeout = 60 }'
    limit = "{ delay = 0, limit = 2, window = 600 }"
    daemon.configure(
        daemon.web_engine("web", free_port(), "--ignore-term", stop="{ drain = 0, timeout = 2 }")
        + daemon.web_engine("loading", free_port(), "--late", str(go), probe=late)
        + daemon.web_engine("waiting", free_port(), restart="{ delay = 4, limit = 0 }")
        + daemon.web_engine("limited", free_port(), restart=limit)
    )
    daemon.start()
    [web, waiting, _] = daemon.until_ready("web", "waiting", "limited")
    daemon.until_state("loading", "starting")
    restarted(daemon, "limited")
    kill(waiting["pid"] or 0)
    daemon.until_state("waiting", "backoff")
    began = time.monotonic()

    clock.write_text(str(jump))
    daemon.until("waiting", lambda e: e["substate"] == "ready", "the end of the backoff")
    assert 2.5 < time.monotonic() - began < 15
    assert restarted(daemon, "limited")["restart_count"] == 2
    kill(daemon.show("limited")["pid"] or 0)
    assert "2 restarts within 600 s" in daemon.until_state("limited", "start-limit")["reason"]
    assert daemon.show("loading")["substate"] == "starting"
    after = daemon.show("web")
    assert (after["pid"], after["restart_count"], after["substate"]) == (web["pid"], 0, "ready")
    elapsed = time.monotonic() - began
    assert elapsed < (after["uptime_seconds"] or 0) < elapsed + 30
    assert daemon.client.status()["control_plane"]["uptime_seconds"] < elapsed + 30
    newest = next(daemon.client.events(tail=1))["at"]
    assert abs(datetime.fromisoformat(newest).timestamp() - time.time() - jump) < 3600
    assert daemon.cli("status", "web").returncode == 0
    ids = [event["id"] for event in daemon.client.events(tail=999)]
    assert ids == list(range(1, len(ids) + 1))

    daemon.kill()
    daemon.start()
    [adopted] = daemon.until_ready("web")
    assert adopted["pid"] == web["pid"]
    assert adopted["started_at"] == web["started_at"]
    elapsed = time.monotonic() - began
    assert elapsed < (adopted["uptime_seconds"] or 0) < elapsed + 30
    assert daemon.show("limited")["substate"] == "start-limit"
    go.touch()
    daemon.until_ready("loading")
    began = time.monotonic()
    daemon.client.stop("web", wait=30)
    assert 1.5 < time.monotonic() - began < 15
    assert daemon.tree("web") == []
    assert daemon.terminate() == 0
