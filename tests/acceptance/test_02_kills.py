"""Scenario 2: whatever is killed, there is one engine, and it is the same one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.acceptance.harness import Daemon, await_end, free_port, get, is_alive, kill, server_command
from tests.acceptance.listening import FollowedLog

TIMES = 20


class Requests:
    """A client that asks one engine again and again, and notes every answer and failure."""

    def __init__(self, port: int) -> None:
        self.answers: list[bytes] = []
        self.failures: list[BaseException] = []
        self._port = port
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._ending.wait(0.002):
            try:
                self.answers.append(get(self._port, timeout=5))
            except (OSError, AssertionError) as error:
                self.failures.append(error)

    @contextmanager
    def going_on(self) -> Iterator[Requests]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            self._thread.join()


def test_sigkill_of_an_engine_brings_the_same_engine_back(daemon: Daemon) -> None:
    """Scenario 2.1: an engine serves; its process gets SIGKILL, three times.

    Result: each time it is ready again with the same id, name and port, a new pid, one restart more,
    and `last_exit` says signal 9. One instance runs.
    """
    port = daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    for count in (1, 2, 3):
        pid = before["pid"]
        assert pid is not None
        kill(pid)
        after = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != pid, "a new process")  # noqa: B023
        assert (after["engine_id"], after["name"], after["port"]) == (before["engine_id"], "web", port)
        assert after["restart_count"] == count
        assert after["last_exit"] == {"code": None, "signal": 9, "oom_kill": False}
        assert after["last_exit_code"] == -9
        assert daemon.tree("web") == [after["pid"]]
        assert get(port) == b"%d" % (after["pid"] or 0)
        before = after


def test_an_engine_never_notices_that_its_daemon_is_killed_twenty_times(daemon: Daemon) -> None:
    """Scenario 2.2: a client asks without pause; `sagectld` gets SIGKILL and is started again, 20 times.

    Result: no request fails and all are answered by one process; each daemon adopts the engine with id,
    pid, counters, start time and uptime as they were; nothing is ever doubled.
    """
    port = daemon.web()
    daemon.start()
    [first] = daemon.until_ready("web")
    kill(first["pid"] or 0)
    engine = daemon.until("web", lambda e: e["substate"] == "ready" and e["restart_count"] == 1)
    pid, shim = engine["pid"], daemon.shim("web")
    uptime = engine["uptime_seconds"] or 0.0
    with Requests(port).going_on() as requests:
        for _ in range(TIMES):
            daemon.kill()
            daemon.start()
            now = daemon.show("web")
            for key in ("engine_id", "pid", "port", "restart_count", "started_at", "last_exit", "state"):
                assert now[key] == engine[key], key
            assert now["substate"] == "ready"
            assert (now["uptime_seconds"] or 0.0) >= uptime
            uptime = now["uptime_seconds"] or 0.0
            assert daemon.tree("web") == [pid]
            assert daemon.shim("web") == shim
    assert not requests.failures
    assert set(requests.answers) == {b"%d" % (pid or 0)}
    assert len(requests.answers) > TIMES


def test_daemon_and_engine_killed_together_are_both_back_with_the_next_daemon(daemon: Daemon) -> None:
    """Scenario 2.3: daemon and engine get SIGKILL in one breath; later the engine while there is no daemon.

    Result: the next daemon starts the engine with the same id and port, once, and knows how it ended:
    signal 9.
    """
    port = daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    for count, together in ((1, True), (2, False)):
        pid = daemon.show("web")["pid"] or 0
        assert daemon.process is not None
        if together:
            kill(pid, daemon.process.pid)
            daemon.process.wait()
        else:
            daemon.kill()
            kill(pid)
        daemon.start()
        [after] = daemon.until_ready("web")
        assert (after["engine_id"], after["port"]) == (before["engine_id"], port)
        assert after["last_exit"] == {"code": None, "signal": 9, "oom_kill": False}
        assert after["restart_count"] == count
        assert daemon.tree("web") == [after["pid"]]
        assert get(port) == b"%d" % (after["pid"] or 0)


def test_an_engine_outlives_its_shim_and_its_log_goes_on(daemon: Daemon) -> None:
    """Scenario 2.4: the shim gets SIGKILL while its engine serves.

    Result: a new shim, the same process, no restart; what the engine writes goes on in its log, and when
    the engine is then killed, it is restarted and the signal is known.
    """
    port = daemon.web()
    daemon.start()
    [engine] = daemon.until_ready("web")
    pid, shim = engine["pid"] or 0, daemon.shim("web")
    get(port, "/log/before")
    log = FollowedLog(daemon.client, "web")
    log.expect(b"before\n")  # what SIGKILL finds in the shim's hand, read and not yet written, is lost
    kill(shim)
    get(port, "/log/meanwhile")
    daemon.expect_event("shim-replaced", "web")
    get(port, "/log/after")
    log.expect(b"before\nmeanwhile\nafter\n")
    now = daemon.show("web")
    assert (now["pid"], now["restart_count"], now["substate"]) == (pid, 0, "ready")
    assert daemon.tree("web") == [pid]
    assert daemon.shim("web") != shim

    kill(pid)
    after = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != pid)
    assert after["last_exit"] == {"code": None, "signal": 9, "oom_kill": False}
    assert daemon.tree("web") == [after["pid"]]


def test_an_engine_outlives_its_shim_and_its_daemon(daemon: Daemon) -> None:
    """Scenario 2.5: shim and daemon get SIGKILL together while the engine serves and writes to its log.

    Result: it answers throughout; the next daemon adopts the same process with its counters, and the log
    has every line.
    """
    port = daemon.web()
    daemon.start()
    [engine] = daemon.until_ready("web")
    pid, shim = engine["pid"] or 0, daemon.shim("web")
    assert daemon.process is not None
    with Requests(port).going_on() as requests:
        kill(shim, daemon.process.pid)
        daemon.process.wait()
        get(port, "/log/alone")
        daemon.start()
        get(port, "/log/adopted")
    assert not requests.failures
    FollowedLog(daemon.client, "web").expect(b"alone\nadopted\n")
    now = daemon.show("web")
    assert (now["engine_id"], now["pid"], now["restart_count"]) == (engine["engine_id"], pid, 0)
    assert now["started_at"] == engine["started_at"]
    assert daemon.tree("web") == [pid]
    assert daemon.cli("stop", "web").returncode == 0
    assert not is_alive(pid)


def test_an_engine_killed_together_with_its_shim_is_restarted_once(daemon: Daemon) -> None:
    """Scenario 2.9: engine and shim get SIGKILL in one breath; the daemon lives.

    Result: one new process under the old id and port; the end was seen as signal 9, or is unknown.
    """
    port = daemon.web("web", "--orphan")
    daemon.start()
    [engine] = daemon.until_ready("web")
    orphan = int(daemon.mailbox.expect("orphan"))
    kill(daemon.shim("web"), engine["pid"] or 0)
    after = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != engine["pid"])
    assert (after["engine_id"], after["port"]) == (engine["engine_id"], port)
    assert after["restart_count"] == 1
    assert after["last_exit"] is not None
    assert after["last_exit"]["signal"] in (9, None)
    assert not is_alive(orphan)
    assert sorted(daemon.tree("web")) == sorted([after["pid"] or 0, int(daemon.mailbox.expect("orphan"))])


def test_a_daemon_killed_during_a_start_or_a_stop_leaves_it_to_the_next(daemon: Daemon) -> None:
    """Scenario 2.10: one engine still loads, another one was asked to stop and ignores SIGTERM for now. The
    daemon gets SIGKILL; the next one starts.

    Result: the first goes on loading as the same process and becomes ready; the second is ended at its
    deadline and stays stopped.
    """
    go = daemon.home / "go"
    stop = "{ drain = 0, timeout = 1 }"
    daemon.configure(
        daemon.web_engine("up", free_port(), "--late", str(go))
        + daemon.web_engine("down", free_port(), "--ignore-term", stop=stop)
    )
    daemon.start()
    daemon.until_ready("down")
    daemon.mailbox.expect("loading")
    pid = daemon.show("up")["pid"]
    daemon.client.stop("down")
    daemon.mailbox.expect("SIGTERM")
    daemon.kill()
    daemon.start()
    up = daemon.show("up")
    assert (up["state"], up["substate"], up["pid"]) == ("activating", "starting", pid)
    go.touch()
    [ready] = daemon.until_ready("up")
    assert (ready["pid"], ready["restart_count"]) == (pid, 0)
    down = daemon.until_state("down", "inactive")
    assert (down["substate"], down["desired"]) == ("stopped", "stopped")
    assert daemon.tree("down") == []


def test_a_request_that_was_answered_is_never_forgotten(daemon: Daemon) -> None:
    """Scenario 2.12: stop, start, define and forget are asked for, and each time the daemon gets SIGKILL as
    soon as it has answered.

    Result: the next daemon does what was asked for.
    """
    daemon.web()
    daemon.start()
    daemon.until_ready("web")
    for _ in range(3):
        daemon.client.stop("web")
        daemon.kill()
        daemon.start()
        assert daemon.show("web")["desired"] == "stopped"
        daemon.until_state("web", "stopped")
        daemon.client.start("web")
        daemon.kill()
        daemon.start()
        [engine] = daemon.until_ready("web")
        assert daemon.tree("web") == [engine["pid"]]
    body = {"kind": "exec", "command": server_command(), "env": {"MAIL": str(daemon.mailbox.path)}}
    engine_id = daemon.client.define(body)["engine_id"]
    daemon.kill()
    daemon.start()
    [loose] = daemon.until_ready(engine_id)
    assert daemon.tree(engine_id) == [loose["pid"]]
    daemon.client.stop(engine_id, wait=20)
    daemon.client.forget(engine_id)
    daemon.kill()
    daemon.start()
    assert [engine["name"] for engine in daemon.client.engines()] == ["web"]


def test_restarts_leak_no_descriptors(daemon: Daemon) -> None:
    """Scenario 2.11: the engine gets SIGKILL 25 times.

    Result: daemon and shim have no more descriptors open than after the first restart.
    """
    daemon.web()
    pid = daemon.start()
    [engine] = daemon.until_ready("web")
    shim = daemon.shim("web")

    def restart(before: int | None) -> int | None:
        kill(before or 0)
        return daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before)["pid"]

    def descriptors() -> list[int]:
        return [len(os.listdir(f"/proc/{process}/fd")) for process in (pid, shim)]

    current = restart(engine["pid"])
    before = descriptors()
    for _ in range(24):
        current = restart(current)
    after = descriptors()
    # One or two may be open for a moment: a probe's connection, started.json being written.
    assert [now - then < 5 for now, then in zip(after, before, strict=True)] == [True, True], (before, after)
    assert daemon.show("web")["restart_count"] == 25


def test_engines_start_after_the_zygote_was_killed(daemon: Daemon) -> None:
    """Scenario 2.6: the zygote, from which shims are forked, gets SIGKILL; then a new engine is started.

    Result: the running engine and its shim are untouched; the new one starts.
    """
    new = daemon.web_engine("new", free_port(), autostart=False)
    daemon.configure(daemon.web_engine("old", free_port()) + new)
    daemon.start()
    [engine] = daemon.until_ready("old")
    shim = daemon.shim("old")
    [zygote] = [pid for pid in daemon.children_of_daemon() if pid != shim]
    kill(zygote)
    started = daemon.cli("start", "new")
    assert started.returncode == 0, started.stderr
    assert daemon.show("new")["state"] == "active"
    assert daemon.show("old")["pid"] == engine["pid"]
    assert daemon.shim("old") == shim
    assert daemon.cli("stop", "old", "new").returncode == 0


def test_everything_killed_comes_back_once(daemon: Daemon) -> None:
    """Scenario 2.7: three engines; all their processes, shims, the zygote and the daemon get SIGKILL.

    Result: the next daemon starts each engine once, under its old id and port; how they ended is unknown
    or signal 9, and counts as a failure.
    """
    names = ("a", "b", "c")
    daemon.configure("".join(daemon.web_engine(name, free_port()) for name in names))
    daemon.start()
    before = {engine["name"]: engine for engine in daemon.until_ready(*names)}
    shims = [daemon.shim(name) for name in names]
    zygotes = [pid for pid in daemon.children_of_daemon() if pid not in shims]
    assert daemon.process is not None
    kill(*shims, *zygotes, daemon.process.pid, *(e["pid"] or 0 for e in before.values()))
    daemon.process.wait()
    daemon.start()
    for engine in daemon.until_ready(*names):
        old = before[engine["name"]]
        assert (engine["engine_id"], engine["port"]) == (old["engine_id"], old["port"])
        assert engine["restart_count"] == 1
        assert engine["last_exit"] is not None
        assert engine["last_exit"]["signal"] in (9, None)
        assert daemon.tree(engine["name"]) == [engine["pid"]]


def test_an_engine_stopped_by_sigstop_of_its_shim_is_still_watched_after_it_goes_on(daemon: Daemon) -> None:
    """Scenario 2.8: the shim is frozen by SIGSTOP, its engine is killed, the shim goes on by SIGCONT.

    Result: the daemon answers meanwhile; the engine is restarted as soon as the shim runs again.
    """
    daemon.web()
    daemon.start()
    [engine] = daemon.until_ready("web")
    shim, pid = daemon.shim("web"), engine["pid"] or 0
    os.kill(shim, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    await_end(pid)
    assert daemon.cli("list").returncode == 0
    os.kill(shim, signal.SIGCONT)
    after = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != pid)
    assert after["restart_count"] == 1
    assert daemon.tree("web") == [after["pid"]]
