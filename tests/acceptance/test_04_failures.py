"""Scenario 4: a start that fails says why in words that a user can act on."""

from __future__ import annotations

import json
import os
import socket

from tests.acceptance.harness import Daemon, free_port

ONCE = '{ policy = "no" }'


def test_a_missing_program_is_refused_before_anything_runs(daemon: Daemon) -> None:
    """Scenario 4.1: `command` names a program that does not exist. `sagectl start`.

    Result: exit 1 at once; standard error names the program and what to do; `status` exits 3 and says
    failed (preflight); it is not tried again.
    """
    daemon.configure('[engines.web]\nkind = "exec"\ncommand = ["no-such-server", "--port", "{port}"]\n')
    daemon.start()
    started = daemon.cli("start", "web")
    assert started.returncode == 1
    assert "no-such-server" in started.stderr
    assert "install it, write its absolute path" in started.stderr
    status = daemon.cli("status", "web")
    assert status.returncode == 3
    assert "failed (preflight)" in status.stdout
    assert daemon.show("web")["restart_count"] == 0


def test_a_taken_port_is_refused_and_its_holder_named(daemon: Daemon) -> None:
    """Scenario 4.2: another process listens on the engine's port.

    Result: `start` exits 1 and names port, pid and program of the holder; when the port is free again, a
    second `start` works.
    """
    port = daemon.web(autostart=False, restart=ONCE)
    daemon.start()
    with socket.create_server(("127.0.0.1", port)):
        started = daemon.cli("start", "web")
        assert started.returncode == 1
        assert f"port {port} is held by pid {os.getpid()} (" in started.stderr
        assert daemon.tree("web") == []
    assert daemon.cli("start", "web").returncode == 0


def test_a_crash_at_the_start_is_shown_with_the_last_log_lines(daemon: Daemon) -> None:
    """Scenario 4.3: the engine writes 30 lines and ends with code 7. `sagectl start`.

    Result: exit 1; standard error has the exit code and the last lines of this start's log.
    """
    lines = [f"loading shard {n}" for n in range(30)] + ["RuntimeError: the checkpoint is damaged"]
    keys = {"autostart": False, "restart": ONCE, "probe": '{ http = "/health" }', "port": free_port()}
    daemon.configure(daemon.engine("web", "crash.py", "7", *lines, **keys))
    daemon.start()
    started = daemon.cli("start", "web")
    assert started.returncode == 1
    assert "RuntimeError: the checkpoint is damaged" in started.stderr
    assert "loading shard 29" in started.stderr
    assert "failed (exit-code)" in started.stderr
    assert "7" in started.stderr.partition("loading shard")[0]
    assert daemon.show("web")["last_exit_code"] == 7
    status = daemon.cli("status", "web")
    assert "RuntimeError: the checkpoint is damaged" in status.stdout
    # An exit 0 that nobody asked for is a failure of a kind that serves.
    daemon.configure(daemon.engine("web", "crash.py", "0", **keys))
    daemon.client.reload()
    assert daemon.cli("start", "web").returncode == 1
    assert daemon.show("web")["state"] == "failed"


def test_the_start_limit_ends_a_crash_loop_and_reset_failed_clears_it(daemon: Daemon) -> None:
    """Scenario 4.4: an engine that always crashes, with restart.limit = 3 and no delay.

    Result: it is restarted three times, then failed (start-limit), the last log line in `start`'s output;
    the count outlives SIGKILL of the daemon; `reset-failed` makes it inactive, `start` tries anew.
    """
    restart = "{ delay = 0, limit = 3, window = 600 }"
    keys = {"restart": restart, "probe": "{ tcp = true }", "port": free_port(), "autostart": False}
    daemon.configure(daemon.engine("web", "crash.py", "1", "out of luck", **keys))
    daemon.start()
    started = daemon.cli("start", "web")
    assert started.returncode == 1
    failed = daemon.until_state("web", "failed")
    assert failed["substate"] == "start-limit"
    assert failed["restart_count"] == 3
    explained = daemon.cli("explain", "web")
    assert "3 restarts" in explained.stdout
    daemon.kill()
    daemon.start()
    after = daemon.show("web")
    assert (after["state"], after["substate"], after["restart_count"]) == ("failed", "start-limit", 3)
    assert "out of luck" in daemon.cli("status", "web").stdout
    assert daemon.cli("reset-failed", "web").returncode == 0
    assert daemon.show("web")["state"] == "inactive"
    assert daemon.show("web")["consecutive_failures"] == 0
    assert daemon.cli("start", "web", "--no-wait").returncode == 0
    daemon.until("web", lambda e: e["state"] == "failed" and e["restart_count"] == 6)


def test_an_interpreter_that_is_missing_is_refused_by_the_llm_kind(daemon: Daemon) -> None:
    """Scenario 4.5: an llm engine's `python` does not exist; another's lacks transformers.

    Result: `start` exits 1, failed (preflight), the reason names the path, the remedy what to install.
    """
    daemon.configure(
        '[engines.chat]\nkind = "llm"\nmodel = "org/model"\npython = "/nowhere/bin/python"\n'
        '[engines.bare]\nkind = "llm"\nmodel = "org/model"\npython = "/usr/bin/env"\n'
    )
    daemon.start()
    started = daemon.cli("start", "chat")
    assert started.returncode == 1
    assert "/nowhere/bin/python" in started.stderr
    assert "failed (preflight)" in started.stderr
    diagnosis = daemon.show("chat")["diagnosis"]
    assert diagnosis is not None
    assert diagnosis["remedy"]
    assert daemon.cli("start", "bare").returncode == 1


def test_exit_codes_say_how_it_went(daemon: Daemon) -> None:
    """Scenario 4.6: the exit codes of the command line.

    Result: 0 success and active, 1 failure, 2 usage, 3 not active, 4 unknown engine, 5 no daemon and how
    to start one; with --json the error is JSON on standard error.
    """
    daemon.configure(
        daemon.web_engine("web", free_port())
        + daemon.engine("broken", "crash.py", "1", autostart=False, restart=ONCE)
    )
    absent = daemon.cli("status")
    assert absent.returncode == 5
    assert "sagectld" in absent.stderr
    assert json.loads(daemon.cli("--json", "list").stderr)["detail"]
    daemon.start()
    daemon.until_ready("web")
    assert daemon.cli("status").returncode == 0
    assert daemon.cli("status", "web").returncode == 0
    assert daemon.cli("stop", "web").returncode == 0
    assert daemon.cli("status", "web").returncode == 3
    for verb in ("status", "start", "stop", "restart", "logs", "show", "cat", "explain", "enable"):
        unknown = daemon.cli(verb, "wbe")
        assert unknown.returncode == 4, verb
        assert "wbe" in unknown.stderr
    assert daemon.cli("start", "no such option", "--wat").returncode == 2
    daemon.configure("[engines.web]\nkind = 3\n")
    assert daemon.cli("check").returncode == 1
    assert daemon.cli("reload").returncode == 1


def test_an_engine_without_a_probe_that_ends_at_once_has_not_started(daemon: Daemon) -> None:
    """Scenario 4.7: a command that ends by itself after 0.2 s, with no probe and no port. `sagectl start`.

    Result: exit 1 and its exit code, though it was up for a moment; one that stays up is a success.
    """
    daemon.configure(
        f"""
        [engines.brief]
        kind = "exec"
        command = ["/bin/sh", "-c", "sleep 0.2; exit 3"]
        restart = {ONCE}
        [engines.long]
        kind = "exec"
        command = ["/bin/sleep", "1000"]
        """
    )
    daemon.start()
    started = daemon.cli("start", "brief")
    assert started.returncode == 1
    assert "exited with code 3" in started.stderr
    assert daemon.cli("start", "long").returncode == 0
    assert daemon.show("long")["probed"] is False
