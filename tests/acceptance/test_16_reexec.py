"""Scenario 16: the daemon's code is replaced while engines run."""

from __future__ import annotations

import threading
from pathlib import Path

from sagectl.client import Event
from tests.acceptance.harness import Daemon, get, kill


def test_the_daemon_is_replaced_in_place_with_engines_running(daemon: Daemon) -> None:
    """Scenario 16.1: an engine serves; `sagectl daemon-reexec` three times, while a client asks the API.

    Result: the same daemon process and the same engine; no request fails, a follower of events misses none;
    after it a crash is answered as before, and a stop leaves nothing.
    """
    port = daemon.web()
    pid = daemon.start()
    [before] = daemon.until_ready("web")
    failed: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                daemon.client.engines()
            except Exception as error:
                failed.append(error)

    followed: list[Event] = []

    def follow() -> None:
        for event in daemon.client.events(tail=0, follow=True):
            followed.append(event)
            if event["kind"] == "exited":
                return

    threads = [threading.Thread(target=ask), threading.Thread(target=follow)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        told = daemon.cli("daemon-reexec")
        assert told.returncode == 0, told.stderr
        assert told.stdout == f"sagectld 0.1.0 is now 0.1.0 (pid {pid}).\n"
        assert daemon.show("web")["pid"] == before["pid"]
    daemon.follow()
    done.set()
    threads[0].join()
    assert {str(error) for error in failed} == set()
    assert get(port) == b"%d" % (before["pid"] or 0)
    kill(before["pid"] or 0)
    daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"], "another process")
    threads[1].join(20)
    assert [event["id"] for event in followed] == list(
        range(followed[0]["id"] or 0, (followed[-1]["id"] or 0) + 1)
    )
    assert [e["kind"] for e in followed].count("daemon-leaves") == 3
    assert daemon.cli("stop", "web").returncode == 0
    assert daemon.tree("web") == []
    assert daemon.terminate() == 0
    assert not Path(daemon.client.socket_path).exists()


def test_code_that_cannot_be_loaded_replaces_nothing(daemon: Daemon) -> None:
    """Scenario 16.2: what is installed now has a syntax error. `sagectl daemon-reexec`.

    Result: exit 1 with the error and what to do; daemon and engine go on.
    """
    broken = daemon.home / "broken" / "sagectl"
    daemon.web()
    pid = daemon.start(PYTHONPATH=str(broken.parent))
    [before] = daemon.until_ready("web")
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("this is no Python\n")
    told = daemon.cli("daemon-reexec")
    assert told.returncode == 1
    assert "the sagectl that is installed now cannot be loaded: SyntaxError" in told.stderr
    assert "Mend the installation" in told.stderr
    status = daemon.client.status()
    assert status["control_plane"]["pid"] == pid
    assert daemon.show("web")["pid"] == before["pid"]


def test_a_broken_configuration_does_not_end_a_daemon_that_is_replaced(daemon: Daemon) -> None:
    """Scenario 16.3: no engine runs, the configuration was broken meanwhile. `sagectl daemon-reexec`.

    Result: the daemon goes on, and its status says what is wrong, where a fresh one would refuse to start.
    """
    daemon.web(autostart=False)
    pid = daemon.start()
    daemon.configure("[engines.web\n")
    assert daemon.cli("daemon-reexec").returncode == 0
    assert daemon.client.status()["control_plane"]["pid"] == pid
    assert "is not valid TOML" in daemon.cli("status").stdout
    daemon.follow()
    daemon.client.start("web")
    daemon.until_ready("web")
