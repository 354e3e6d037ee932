"""Scenario 11: the daemon speaks to systemd, and engines speak to the daemon."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.acceptance.harness import Daemon


def test_the_daemon_tells_systemd_how_it_is(daemon: Daemon) -> None:
    """Scenario 11.1: NOTIFY_SOCKET is set. Start, an engine's stop, SIGHUP, a broken reload, SIGTERM.

    Result: READY=1 with MAINPID and STATUS; STATUS again when an engine's state changes; RELOADING=1 with
    MONOTONIC_USEC and READY=1 around each reload, the broken one's READY=1 with the mistake in its status;
    STOPPING=1 at the end.
    """
    daemon.web()
    pid = daemon.start()
    ready = daemon.notified[-1].splitlines()
    assert f"MAINPID={pid}" in ready
    assert any(line.startswith("STATUS=1 engine") for line in ready)
    while "1 active" not in daemon.expect_notification("STATUS="):
        pass
    daemon.client.stop("web")
    while "1 inactive" not in daemon.expect_notification("STATUS="):
        pass
    os.kill(pid, signal.SIGHUP)
    assert "MONOTONIC_USEC=" in daemon.expect_notification("RELOADING=1")
    daemon.expect_notification("READY=1")
    daemon.configure("[engines.web\n")
    os.kill(pid, signal.SIGHUP)
    daemon.expect_notification("RELOADING=1")
    assert "broken" in daemon.expect_notification("READY=1")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.expect_notification("STOPPING=1")
    assert daemon.process.wait(30) == 0


def test_the_daemon_feeds_the_watchdog_that_systemd_asks_for(daemon: Daemon) -> None:
    """Scenario 11.2: WATCHDOG_USEC is 200 ms. The daemon is frozen by SIGSTOP and goes on.

    Result: WATCHDOG=1 comes, and comes again.
    """
    pid = daemon.start(WATCHDOG_USEC="200000")
    for _ in range(3):
        daemon.expect_notification("WATCHDOG=1")
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    daemon.expect_notification("WATCHDOG=1")


def test_an_engine_speaks_to_the_daemon_and_never_in_its_name(daemon: Daemon) -> None:
    """Scenario 11.3: an engine with `probe = { notify = true }` says READY=1 with a status. NOTIFY_SOCKET
    and WATCHDOG_USEC are set for the daemon.

    Result: the engine is ready when it says so; its NOTIFY_SOCKET is another one than the daemon's, and
    WATCHDOG_USEC is not handed on.
    """
    daemon.web("web", "--notify", probe="{ notify = true }")
    daemon.start(WATCHDOG_USEC="30000000")
    [engine] = daemon.until_ready("web")
    variables = dict(
        part.partition("=")[::2] for part in Path(f"/proc/{engine['pid']}/environ").read_text().split("\0")
    )
    assert variables["NOTIFY_SOCKET"] == str(daemon.home / "run" / "engines" / "web" / "notify.sock")
    assert "WATCHDOG_USEC" not in variables
    assert "SAGECTL_HOME" not in variables
