"""Scenario 10: engines without a configuration: `run` and `engine start`."""

from __future__ import annotations

import re
import signal
import subprocess

from tests.acceptance.harness import BIN, Daemon, free_port, get, kill, server_command
from tests.acceptance.listening import PATIENCE


def words(daemon: Daemon, port: int, *more: str) -> list[str]:
    """Options that define an HTTP engine."""
    settings = ["-o", f"env.MAIL={daemon.mailbox.path}", "-o", 'probe.http="/health"', "-o", "stop.drain=0"]
    options = ["--engine-kind", "exec", "--port", str(port), *settings, *more]
    return [*options, "--", *server_command()]


def test_engine_start_prints_the_id_and_the_engine_survives_daemons(daemon: Daemon) -> None:
    """Scenario 10.1: `sagectl engine start … -- COMMAND`; the daemon gets SIGKILL; the next one ends in
    order; the third starts.

    Result: stdout is the id alone; the second daemon adopts the same process, the third starts the engine
    again under its id and port. `engine stop --port` stops it, `prune` forgets it, and it stays forgotten.
    """
    port = free_port()
    daemon.start()
    started = daemon.cli("engine", "start", *words(daemon, port))
    assert started.returncode == 0, started.stderr
    assert re.fullmatch(r"engine-[0-9a-f]{8}\n", started.stdout)
    engine_id = started.stdout.strip()
    before = daemon.show(engine_id)
    assert (before["name"], before["port"], before["transient"]) == (engine_id, port, True)
    assert get(port) == b"%d" % (before["pid"] or 0)
    assert engine_id in daemon.cli("engine", "list").stdout

    daemon.kill()
    daemon.start()
    assert daemon.show(engine_id)["pid"] == before["pid"]
    assert daemon.terminate() == 0
    daemon.start()
    [again] = daemon.until_ready(engine_id)
    assert (again["engine_id"], again["port"]) == (engine_id, port)
    assert again["pid"] != before["pid"]

    refused = daemon.cli("enable", engine_id)
    assert refused.returncode == 1
    assert daemon.cli("engine", "stop", "--port", str(port)).returncode == 0
    assert daemon.tree(engine_id) == []
    assert daemon.cli("engine", "stop", "--port", str(free_port())).returncode == 4
    assert daemon.cli("engine", "prune").stdout.strip() == engine_id
    assert daemon.cli("status", engine_id).returncode == 4
    daemon.kill()
    daemon.start()
    assert daemon.client.engines() == []


def test_engine_start_says_why_it_failed_on_standard_error(daemon: Daemon) -> None:
    """Scenario 10.2: the command crashes at once; another definition is wrong in two keys.

    Result: the first: exit 1, the id on stdout, reason and log on stderr. The second: exit 1, both keys
    named, nothing defined.
    """
    daemon.start()
    script = "echo cannot load; exit 9"
    settings = ["-o", "probe.tcp=true", "-o", 'restart.policy="no"', "--port", str(free_port())]
    failed = daemon.cli("engine", "start", "--engine-kind", "exec", *settings, "--", "sh", "-c", script)
    assert failed.returncode == 1
    assert re.fullmatch(r"engine-[0-9a-f]{8}\n", failed.stdout)
    assert "cannot load" in failed.stderr
    wrong = daemon.cli(
        "engine",
        "start",
        "--engine-kind",
        "exec",
        "-o",
        "autostrat=1",
        "-o",
        "restart.limit=-1",
        "--",
        "true",
    )
    assert wrong.returncode == 1
    assert wrong.stdout == ""
    assert "autostrat" in wrong.stderr
    assert "restart.limit" in wrong.stderr
    assert len(daemon.client.engines()) == 1


def test_a_transient_engine_takes_the_defaults_of_its_kind(daemon: Daemon) -> None:
    """Scenario 10.4: `[defaults.exec]` sets two variables; an engine is started that sets one of them itself.

    Result: it sees the other from the configuration, and `cat` says where that one came from.
    """
    daemon.configure('[defaults.exec]\nenv = { ONE = "configured", TWO = "configured" }\n')
    daemon.start()
    says = "echo $ONE $TWO; exec sleep 60"
    words = ["-o", 'env.TWO="own"', "-o", "name=greeter", "--", "sh", "-c", says]
    started = daemon.cli("engine", "start", "--engine-kind", "exec", *words)
    assert started.returncode == 0, started.stderr
    assert b"configured own" in next(daemon.client.logs("greeter", follow=True))
    shown = daemon.client.definition("greeter")
    assert shown["env.ONE"]["origin"].endswith("sagectl.toml:2 [defaults.exec]")
    assert shown["env.TWO"]["origin"] == "given over the API"


def test_run_in_the_foreground_shows_the_log_and_ctrl_c_stops_it(daemon: Daemon) -> None:
    """Scenario 10.3: `sagectl run … -- COMMAND` in the foreground; the engine writes; Ctrl-C.

    Result: its log is on stdout; after SIGINT the command exits with 0, the engine is stopped and forgotten.
    """
    port = free_port()
    daemon.start()
    with _foreground(daemon, port) as running:
        assert running.stdout is not None
        assert "listens" in _read_until(running, "listens")
        daemon.until_ready("loose")
        get(port, "/log/hello-from-the-engine")
        assert "hello-from-the-engine" in _read_until(running, "hello")
        running.send_signal(signal.SIGINT)
        said = _said(running)
    assert running.returncode == 0, said
    assert daemon.tree("loose") == []
    assert daemon.client.engines() == []


def test_run_tells_of_a_daemon_that_is_killed_and_the_engine_goes_on(daemon: Daemon) -> None:
    """Scenario 10.4: the daemon gets SIGKILL while `sagectl run` waits in the foreground.

    Result: exit code 5, it says that the engine goes on, and so it is.
    """
    port = free_port()
    daemon.start()
    with _foreground(daemon, port) as running:
        _read_until(running, "listens")
        [engine] = daemon.until_ready("loose")
        daemon.kill()
        said = _said(running)
    assert running.returncode == 5
    assert "goes on without it" in said
    assert get(port) == b"%d" % (engine["pid"] or 0)


def test_run_detached_leaves_the_engine_and_its_restart_rules(daemon: Daemon) -> None:
    """Scenario 10.5: `sagectl run --detach`; the engine is killed.

    Result: the id on stdout; it is restarted like a declared one.
    """
    port = free_port()
    daemon.start()
    detached = daemon.cli("run", "--detach", *words(daemon, port, "-o", "restart.delay=0"))
    assert detached.returncode == 0, detached.stderr
    engine_id = detached.stdout.strip()
    [before] = daemon.until_ready(engine_id)
    kill(before["pid"] or 0)
    after = daemon.until(engine_id, lambda e: e["substate"] == "ready" and e["pid"] != before["pid"])
    assert (after["restart_count"], after["port"]) == (1, port)


def _foreground(daemon: Daemon, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BIN / "sagectl", "run", "--name", "loose", *words(daemon, port)],
        env=daemon.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C is ignored in what a shell starts in the background, such as this test.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _said(running: subprocess.Popen[str]) -> str:
    """What it wrote to standard error until its end, which must come."""
    try:
        return running.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        running.kill()  # `with` would wait for it for ever
        raise


def _read_until(running: subprocess.Popen[str], text: str) -> str:
    """The line of standard output that holds `text`; fails where the output ends before."""
    assert running.stdout is not None
    for line in running.stdout:
        if text in line:
            return line
    raise AssertionError(f"its output ended without {text!r}: {running.communicate()}")
