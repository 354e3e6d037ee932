"""Scenario 3: a stop lets requests finish, and leaves no process of the tree."""

from __future__ import annotations

import threading

import pytest

from tests.acceptance.harness import Daemon, await_end, get, is_alive, kill
from tests.acceptance.listening import FollowedLog


@pytest.fixture
def stubborn(daemon: Daemon) -> Daemon:
    """An engine with a grandchild in a session of its own, orphaned, that ignores SIGTERM."""
    daemon.web("web", "--orphan")
    daemon.start()
    daemon.until_ready("web")
    return daemon


def test_stop_ends_a_grandchild_that_left_the_session_and_ignores_sigterm(stubborn: Daemon) -> None:
    """Scenario 3.1: the engine has forked twice; the grandchild called setsid and ignores SIGTERM. Stop.

    Result: the engine is told by SIGTERM; when `sagectl stop` returns, neither of them exists.
    """
    orphan = int(stubborn.mailbox.expect("orphan"))
    main = stubborn.show("web")["pid"] or 0
    assert sorted(stubborn.tree("web")) == sorted([main, orphan])
    stopped = stubborn.cli("stop", "web")
    assert stopped.returncode == 0, stopped.stderr
    assert "inactive (stopped)" in stopped.stdout
    assert not is_alive(orphan)
    assert stubborn.tree("web") == []
    assert stubborn.mailbox.expect("SIGTERM") == str(main)


def test_stop_ends_that_grandchild_after_the_shim_and_the_daemon_were_killed(stubborn: Daemon) -> None:
    """Scenario 3.2: as 3.1, but shim and daemon get SIGKILL, and a new daemon adopts before the stop.

    Result: the new shim, to which nobody of the tree is a child, ends both.
    """
    orphan = int(stubborn.mailbox.expect("orphan"))
    assert stubborn.process is not None
    kill(stubborn.shim("web"), stubborn.process.pid)
    stubborn.process.wait()
    stubborn.start()
    assert stubborn.cli("stop", "web").returncode == 0
    assert not is_alive(orphan)
    assert stubborn.tree("web") == []


def test_a_crash_leaves_no_grandchild_beside_the_next_start(stubborn: Daemon) -> None:
    """Scenario 3.3: the main process ends with code 3 while its grandchild lives.

    Result: the old grandchild is gone before the next main process is there.
    """
    first = stubborn.show("web")
    orphan = int(stubborn.mailbox.expect("orphan"))
    with pytest.raises((OSError, AssertionError)):
        get(first["port"] or 0, "/exit/3")
    after = stubborn.until("web", lambda e: e["substate"] == "ready" and e["pid"] != first["pid"])
    assert not is_alive(orphan)
    assert after["last_exit"] == {"code": 3, "signal": None, "oom_kill": False}
    assert sorted(stubborn.tree("web")) == sorted([after["pid"] or 0, int(stubborn.mailbox.expect("orphan"))])


def test_an_engine_that_ignores_sigterm_gets_sigkill_at_the_deadline(daemon: Daemon) -> None:
    """Scenario 3.4: the engine ignores SIGTERM; stop.timeout is 0.3 s.

    Result: it is asked, an event says that it was killed, and `stop` succeeds with nothing left.
    """
    daemon.web("web", "--ignore-term", stop="{ drain = 0, timeout = 0.3 }")
    daemon.start()
    [engine] = daemon.until_ready("web")
    assert daemon.cli("stop", "web").returncode == 0
    daemon.mailbox.expect(f"SIGTERM {engine['pid']}")
    event = daemon.expect_event("stop-timeout", "web")
    assert "killing it" in event["text"]
    after = daemon.until_state("web", "inactive")
    assert after["substate"] == "stopped"
    assert after["last_exit"] == {"code": None, "signal": 9, "oom_kill": False}
    assert daemon.tree("web") == []


def test_a_request_in_flight_is_finished_before_sigterm(daemon: Daemon) -> None:
    """Scenario 3.5: a request takes its time; meanwhile the engine is stopped with a drain of 30 s.

    Result: the engine drains without SIGTERM until the request is answered, and stops then, not 30 s later.
    """
    port = daemon.web(stop="{ drain = 30, timeout = 10 }")
    daemon.start()
    [engine] = daemon.until_ready("web")
    answers: list[bytes] = []
    asking = threading.Thread(target=lambda: answers.append(get(port, "/hold")))
    asking.start()
    daemon.mailbox.expect("holding")
    daemon.client.stop("web")
    daemon.until_state("web", "draining")
    with pytest.raises(AssertionError, match="nobody said"):
        daemon.mailbox.expect("SIGTERM", timeout=0.4)
    assert daemon.show("web")["substate"] == "draining"
    get(port, "/release")
    asking.join()
    assert answers == [b"%d" % (engine["pid"] or 0)]
    daemon.until_state("web", "stopped", timeout=15)
    daemon.mailbox.expect("SIGTERM")


def test_a_request_that_never_ends_delays_a_stop_until_the_drain_deadline(daemon: Daemon) -> None:
    """Scenario 3.6: as 3.5, but the request never ends, and drain is 0.5 s.

    Result: an event says that requests were in flight, SIGTERM follows, the engine is stopped.
    """
    port = daemon.web(stop="{ drain = 0.5, timeout = 10 }")
    daemon.start()
    daemon.until_ready("web")

    def ask() -> None:
        with pytest.raises((OSError, AssertionError)):
            get(port, "/hold")

    asking = threading.Thread(target=ask)
    asking.start()
    daemon.mailbox.expect("holding")
    assert daemon.cli("stop", "web").returncode == 0
    asking.join()
    assert "in flight" in daemon.expect_event("drain-timeout", "web")["text"]
    daemon.mailbox.expect("SIGTERM")
    assert daemon.tree("web") == []


def test_a_stop_in_the_middle_of_a_start_leaves_nothing(daemon: Daemon) -> None:
    """Scenario 3.7: the engine still loads its model when it is stopped, and is started again at once.

    Result: the stop ends it, the start that came during the stop wins: one process, ready.
    """
    daemon.web("web", "--late", str(daemon.home / "go"), autostart=False)
    daemon.start()
    daemon.client.start("web")
    daemon.mailbox.expect("loading")
    first = daemon.show("web")["pid"] or 0
    daemon.client.stop("web")
    daemon.client.start("web")
    (daemon.home / "go").touch()
    [engine] = daemon.until_ready("web")
    await_end(first)
    assert engine["pid"] != first
    assert daemon.tree("web") == [engine["pid"]]
    assert engine["restart_count"] == 0
    FollowedLog(daemon.client, "web").expect(b"server %d starts" % (engine["pid"] or 0))
