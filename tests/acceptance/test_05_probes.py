"""Scenario 5: what hangs is restarted, what is busy or slow is left alone, what is not ready says so."""

from __future__ import annotations

import os
import signal
import socket

from tests.acceptance.harness import Daemon, free_port, get

QUICK = '{ http = "/health", interval = 0.1, timeout = 0.3, failures = 3 }'


def test_a_hung_engine_is_restarted_by_its_liveness_probe(daemon: Daemon) -> None:
    """Scenario 5.1: the server gets SIGSTOP; three probes in a row time out.

    Result: an event says which probe failed, and why; the hung process is gone although it could not
    answer SIGTERM; a new one is ready under the same id and port.
    """
    port = daemon.web(probe=QUICK, stop="{ drain = 0, timeout = 0.2 }")
    daemon.start()
    [before] = daemon.until_ready("web")
    os.kill(before["pid"] or 0, signal.SIGSTOP)
    event = daemon.expect_event("unhealthy", "web")
    assert "liveness probe failed 3 times" in event["text"]
    after = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"])
    assert (after["engine_id"], after["port"], after["restart_count"]) == (before["engine_id"], port, 1)
    assert daemon.tree("web") == [after["pid"]]
    assert "liveness" in daemon.cli("explain", "web").stdout


def test_a_busy_engine_is_not_killed_while_it_streams(daemon: Daemon) -> None:
    """Scenario 5.2: a server that does one thing at a time streams to a client for 2.5 s; probes that
    have 0.2 s time out meanwhile.

    Result: it goes on as the same process, for tokens advanced; the client gets its whole stream.
    """
    probe = '{ http = "/health", interval = 0.1, timeout = 0.2, failures = 3 }'
    port = daemon.web("web", "--serial", probe=probe, env={"STREAM_SECONDS": "2.5"})
    daemon.start()
    [before] = daemon.until_ready("web")
    assert get(port, "/stream").count(b"token ") > 50
    after = daemon.show("web")
    assert (after["pid"], after["restart_count"], after["state"]) == (before["pid"], 0, "active")
    assert not [event for event in daemon.client.events() if event["kind"] == "unhealthy"]


def test_a_server_that_answers_nobody_is_restarted_although_a_client_waits(daemon: Daemon) -> None:
    """Scenario 5.3: the same server is stuck in a request of which nothing comes.

    Result: nothing advances, so that it is restarted.
    """
    probe = '{ http = "/health", interval = 0.1, timeout = 0.2, failures = 3 }'
    port = daemon.web("web", "--serial", probe=probe)
    daemon.start()
    [before] = daemon.until_ready("web")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        daemon.mailbox.expect("holding")
        daemon.expect_event("unhealthy", "web")
        daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"])


def test_a_slow_load_that_logs_is_not_killed(daemon: Daemon) -> None:
    """Scenario 5.4: startup_timeout is 0.5 s; the engine loads for 2.5 s and writes a line now and then.

    Result: it becomes ready in its first process.
    """
    probe = '{ http = "/health", startup_timeout = 0.5, interval = 0.1 }'
    daemon.web("web", "--load", "2.5", probe=probe)
    daemon.start()
    [engine] = daemon.until_ready("web")
    assert engine["restart_count"] == 0
    assert (engine["uptime_seconds"] or 0) > 2.4


def test_a_silent_load_is_ended_after_the_startup_timeout(daemon: Daemon) -> None:
    """Scenario 5.5: as 5.4, but the engine says nothing, and listens to nothing, for a minute.

    Result: failed (timeout); the words say that there was no progress, for how long, and what the probe
    waits for.
    """
    probe = '{ http = "/health", startup_timeout = 0.5, interval = 0.1 }'
    keys = {"probe": probe, "restart": '{ policy = "no" }', "autostart": False}
    daemon.web("web", "--load", "60", "--silent", **keys)
    daemon.start()
    started = daemon.cli("start", "web")
    assert started.returncode == 1
    assert "failed (timeout)" in started.stderr
    assert "no sign of progress for 0.5 s" in started.stderr
    assert "refused" in started.stderr.lower()
    assert daemon.tree("web") == []


def test_readiness_goes_and_comes_without_a_restart(daemon: Daemon) -> None:
    """Scenario 5.6: an engine that speaks sd_notify says READY=1, later STOPPING=1, then READY=1 again.

    Result: active (ready) not before the first; active (unready), healthy false and `start`'s dependents
    told so after the second; ready again after the third; one process all the time.
    """
    go = daemon.home / "go"
    probe = "{ notify = true, interval = 0.1 }"
    port = daemon.web("web", "--late", str(go), "--notify", probe=probe)
    daemon.start()
    daemon.mailbox.expect("loading")
    starting = daemon.show("web")
    assert (starting["state"], starting["substate"], starting["healthy"]) == ("activating", "starting", None)
    assert "READY=1" in starting["reason"]
    go.touch()
    [ready] = daemon.until_ready("web")
    get(port, "/notify/STOPPING=1")
    unready = daemon.until_state("web", "unready")
    assert (unready["state"], unready["healthy"]) == ("active", False)
    assert "readiness probe failed 3 times" in unready["reason"]
    assert daemon.cli("status", "web").returncode == 0
    get(port, "/notify/READY=1")
    [again] = daemon.until_ready("web")
    assert (again["pid"], again["restart_count"], again["healthy"]) == (ready["pid"], 0, True)


def test_what_an_engine_said_by_sd_notify_outlives_the_daemon(daemon: Daemon) -> None:
    """Scenario 5.7: an engine said READY=1 once; the daemon gets SIGKILL, and the next one adopts it.

    Result: it is ready at once, and stays so although it never says it again.
    """
    daemon.web("web", "--notify", probe="{ notify = true, interval = 0.1 }")
    daemon.start()
    [engine] = daemon.until_ready("web")
    daemon.kill()
    daemon.start()
    assert daemon.show("web")["substate"] == "ready"
    get(engine["port"] or 0, "/notify/STATUS=busy")
    after = daemon.show("web")
    assert (after["substate"], after["pid"]) == ("ready", engine["pid"])


def test_probes_by_tcp_and_by_a_command(daemon: Daemon) -> None:
    """Scenario 5.8: one engine is probed by TCP, one by a command that looks for a file.

    Result: both are starting, with the probe's own words, until the file is there, and ready after.
    """
    go = daemon.home / "go"
    keys = {"probe": "{ tcp = true, interval = 0.1 }"}
    tcp = daemon.web_engine("tcp", free_port(), "--late", str(go), **keys)
    keys = {"probe": f'{{ exec = ["/bin/sh", "-c", "test -e {go} || {{{{ echo no file; exit 1; }}}}"] }}'}
    command = daemon.web_engine("command", free_port(), **keys)
    daemon.configure(tcp + command)
    daemon.start()
    daemon.mailbox.expect("loading")
    assert daemon.show("tcp")["substate"] == "starting"
    assert daemon.show("command")["substate"] == "starting"
    go.touch()
    daemon.until_ready("tcp", "command")
