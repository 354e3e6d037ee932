"""Scenario 9: the daemon's own start and end."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading

from sagectl.client import Event
from tests.acceptance.harness import Daemon, await_end, free_port, is_alive, server_command
from tests.acceptance.listening import PATIENCE


def test_a_second_daemon_on_the_same_directory_refuses_and_names_the_first(daemon: Daemon) -> None:
    """Scenario 9.1: `sagectld` runs; another one is started on the same SAGECTL_HOME. Then the first is
    killed and a third is started.

    Result: the second exits with 2 and names the first's pid and the ways out; the first and its engine
    notice nothing. The lock ends with its holder: the third one starts.
    """
    daemon.web()
    pid = daemon.start()
    [engine] = daemon.until_ready("web")
    first = daemon.process
    second = daemon.launch()
    assert second.wait(30) == 2
    assert f"process {pid}" in daemon.daemon_log()
    assert "sagectl shutdown" in daemon.daemon_log()
    daemon.process = first
    assert daemon.client.status()["control_plane"]["pid"] == pid
    assert daemon.show("web")["pid"] == engine["pid"]
    daemon.kill()
    assert daemon.start() != pid
    assert daemon.show("web")["pid"] == engine["pid"]


def test_sigterm_stops_the_engines_and_the_next_daemon_starts_them_again(daemon: Daemon) -> None:
    """Scenario 9.2: three engines run, without autostart one, one was stopped by the user, one has a
    grandchild that ignores SIGTERM. SIGTERM to the daemon; the next one starts.

    Result: exit 0 with no process left, shims and zygote included; what was asked for is kept: those that
    ran run again under their ids, the stopped one stays stopped.
    """
    daemon.configure(
        daemon.web_engine("asked", free_port(), autostart=False)
        + daemon.web_engine("stopped", free_port())
        + daemon.web_engine("orphan", free_port(), "--orphan")
    )
    daemon.start()
    daemon.until_ready("stopped", "orphan")
    assert daemon.cli("start", "asked").returncode == 0
    assert daemon.cli("stop", "stopped").returncode == 0
    before = {e["name"]: e for e in daemon.client.engines()}
    rest = [*daemon.children_of_daemon(), *(daemon.shim(name) for name in ("asked", "orphan"))]
    orphan = int(daemon.mailbox.expect("orphan"))
    assert daemon.terminate() == 0
    for name in before:
        assert daemon.tree(name) == []
    assert not is_alive(orphan)
    for pid in rest:
        await_end(pid, timeout=10)
    daemon.start()
    for engine in daemon.until_ready("asked", "orphan"):
        assert engine["engine_id"] == before[engine["name"]]["engine_id"]
        assert engine["port"] == before[engine["name"]]["port"]
        assert engine["restart_count"] == 0
    assert daemon.show("stopped")["state"] == "inactive"


def test_sagectl_shutdown_ends_engines_and_daemon(daemon: Daemon) -> None:
    """Scenario 9.3: `sagectl shutdown`.

    Result: it exits 0 when the daemon is gone, the daemon with 0; nothing is left; `status` exits 5.
    """
    daemon.web()
    daemon.start()
    daemon.until_ready("web")
    ended = daemon.cli("shutdown")
    assert ended.returncode == 0, ended.stderr
    assert daemon.process is not None
    assert daemon.process.wait(30) == 0
    assert daemon.tree("web") == []
    assert daemon.cli("status").returncode == 5


def test_sigterm_while_engines_start_ends_in_order(daemon: Daemon) -> None:
    """Scenario 9.4: one engine still loads, one waits for it, one waits between two restarts. SIGTERM.

    Result: exit 0, and nothing is left; the next daemon goes on with all three.
    """
    go = daemon.home / "go"
    slow = '{ policy = "on-failure", delay = "10min" }'
    daemon.configure(
        daemon.web_engine("loading", free_port(), "--late", str(go))
        + daemon.web_engine("waiting", free_port(), depends_on=["loading"])
        + daemon.engine("backoff", "crash.py", "1", restart=slow, probe="{ tcp = true }", port=free_port())
    )
    daemon.start()
    daemon.mailbox.expect("loading")
    daemon.until_state("backoff", "backoff")
    assert daemon.terminate() == 0
    assert [daemon.tree(name) for name in ("loading", "waiting", "backoff")] == [[], [], []]
    go.touch()
    daemon.start()
    daemon.until_ready("loading", "waiting")
    daemon.until_state("backoff", "backoff")


def test_a_daemon_killed_during_its_shutdown_leaves_the_rest_to_the_next(daemon: Daemon) -> None:
    """Scenario 9.5: SIGTERM; while an engine takes its time to stop, the daemon gets SIGKILL.

    Result: the next daemon finds what is left, and runs the engine once, as was asked for before.
    """
    daemon.web("web", "--ignore-term", stop="{ drain = 0, timeout = 1 }")
    daemon.start()
    [before] = daemon.until_ready("web")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.mailbox.expect("SIGTERM")
    daemon.kill()
    daemon.start()
    after = daemon.until("web", lambda e: e["substate"] == "ready" and e["desired"] == "running")
    assert after["engine_id"] == before["engine_id"]
    assert daemon.tree("web") == [after["pid"]]


def test_a_second_sigterm_does_not_wait_for_requests(daemon: Daemon) -> None:
    """Scenario 9.6: a request that never ends is in flight, drain is 10 min. SIGTERM twice.

    Result: the daemon ends with 0 without waiting for it.
    """
    port = daemon.web(stop="{ drain = 600, timeout = 10 }")
    daemon.start()
    daemon.until_ready("web")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        daemon.mailbox.expect("holding")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        daemon.until_state("web", "draining")
        assert daemon.terminate() == 0
    assert daemon.tree("web") == []


def test_a_broken_configuration_stops_the_first_start_with_all_errors(daemon: Daemon) -> None:
    """Scenario 9.7: nothing runs yet, and the configuration has two mistakes.

    Result: exit 1, both named with file, line and key; after they are mended the daemon starts.
    """
    file = daemon.configure('[engines.web]\nkind = "exec"\ncommand = []\nautostart = 1\n')
    process = daemon.launch()
    assert process.wait(30) == 1
    log = daemon.daemon_log()
    assert f"{file}:3: engines.web.command" in log
    assert f"{file}:4: engines.web.autostart" in log
    daemon.configure("")
    daemon.start()


def test_a_damaged_database_is_set_aside_and_rebuilt_from_what_runs(daemon: Daemon) -> None:
    """Scenario 9.8: the daemon gets SIGKILL and its database is overwritten by nonsense; a transient engine
    and a declared one run.

    Result: the next daemon adopts both with id, pid and counters, keeps the damaged file beside the new
    one, and says what was lost.
    """
    port = daemon.web()
    daemon.start()
    [declared] = daemon.until_ready("web")
    os.kill(declared["pid"] or 0, signal.SIGKILL)
    declared = daemon.until("web", lambda e: e["substate"] == "ready" and e["restart_count"] == 1)
    command = server_command()
    body = {"kind": "exec", "name": "loose", "command": command, "env": {"MAIL": str(daemon.mailbox.path)}}
    transient = daemon.client.define(body)
    [loose] = daemon.until_ready("loose")
    assert loose["port"] != port
    daemon.kill()
    for file in (daemon.home / "state").glob("sagectl.db*"):
        file.write_bytes(b"nonsense" * 1000)
    daemon.start()
    for before in (declared, loose):
        after = daemon.show(before["name"])
        for key in ("engine_id", "pid", "port", "restart_count", "started_at", "transient", "state"):
            assert after[key] == before[key], key
        assert daemon.tree(before["name"]) == [before["pid"]]
    assert daemon.show("loose")["engine_id"] == transient["engine_id"]
    assert list((daemon.home / "state").glob("*corrupt*"))
    assert "corrupt" in daemon.cli("status").stdout


def test_a_follower_of_events_misses_none_over_three_daemons(daemon: Daemon) -> None:
    """Scenario 9.9: a client follows the events; the daemon gets SIGKILL, the next one ends in order, and an
    engine is killed under each.

    Result: the client's stream goes on by itself, with every id once, in order, without a gap.
    """
    daemon.web()
    daemon.start()
    seen: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def follow() -> None:
        for event in daemon.client.events(follow=True, last_event_id=0):
            seen.put(event)

    threading.Thread(target=follow, daemon=True).start()
    for end in (daemon.kill, daemon.terminate, lambda: None):
        [engine] = daemon.until_ready("web")
        os.kill(engine["pid"] or 0, signal.SIGKILL)
        daemon.until("web", lambda e, pid=engine["pid"]: e["substate"] == "ready" and e["pid"] != pid)  # type: ignore[misc]
        end()
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
    daemon.client.stop("web", wait=20)
    newest = next(event["id"] for event in daemon.client.events(tail=1))
    ids = [seen.get(timeout=PATIENCE)["id"]]
    while ids[-1] != newest:
        ids.append(seen.get(timeout=PATIENCE)["id"])
    assert ids == list(range(1, len(ids) + 1))


def test_a_daemon_that_hangs_is_told_from_one_that_is_not_there(daemon: Daemon) -> None:
    """Scenario 9.10: the daemon is stopped with SIGSTOP. `sagectl list`.

    Result: within seconds exit 5, and words that say that it does not answer; after SIGCONT all is well.
    """
    pid = daemon.start()
    os.kill(pid, signal.SIGSTOP)
    try:
        listed = daemon.cli("list", timeout=30)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert listed.returncode == 5
    assert f"The daemon on {daemon.client.socket_path} does not answer" in listed.stderr
    assert daemon.cli("list").returncode == 0


def test_a_terminal_that_knows_few_characters_gets_all_the_same_an_answer(daemon: Daemon) -> None:
    """Scenario 9.11: an engine's label and log have characters that the terminal's encoding lacks.

    Result: question marks in their place, and no traceback.
    """
    daemon.configure(
        '[engines.web]\nkind = "exec"\ncommand = ["/bin/sleep", "1000"]\nlabels = { a = "→é" }\n'
    )
    daemon.start()
    for words in (["check"], ["cat", "web"], ["kinds"], ["status", "web"], ["events"]):
        told = daemon.cli(*words, PYTHONIOENCODING="ascii")
        assert "Traceback" not in told.stderr
        assert told.returncode in (0, 3)
