"""Scenario 17: the places that the daemon keeps its files in fill up, fall ill, or are of another time.

What has to be refused is refused with the reason, and all the rest goes on.
"""

from __future__ import annotations

from typing import Any

import pytest

from sagectl.errors import Unkept
from tests.acceptance.disks import Disk
from tests.acceptance.harness import Daemon, free_port, kill, server_command


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
    disk = Disk(daemon, "state")
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
    disk = Disk(daemon, "state")
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
    disk = Disk(daemon, "state")
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
