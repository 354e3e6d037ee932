"""Scenario 14: somebody removes the daemon's files or stops its processes; nothing is lost or doubled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.harness import BIN, Daemon, free_port, get, is_alive, kill


def gone(directory: Path) -> Path:
    """Remove a directory, also where a shim writes into it at that moment."""
    while True:
        try:
            shutil.rmtree(directory)
        except OSError:
            continue
        return directory


def run_directory(daemon: Daemon) -> Path:
    return gone(daemon.home / "run")


def engine_directory(daemon: Daemon) -> Path:
    return gone(daemon.home / "run" / "engines" / "web")


def engine_files(daemon: Daemon) -> Path:
    directory = daemon.home / "run" / "engines" / "web"
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
    return directory


def shim_socket(daemon: Daemon) -> Path:
    path = daemon.home / "run" / "engines" / "web" / "shim.sock"
    path.unlink()
    return path


@pytest.mark.parametrize("remove", [run_directory, engine_directory, engine_files, shim_socket])
def test_the_next_daemon_finds_engines_whose_files_are_gone(
    daemon: Daemon, remove: Callable[[Daemon], Path]
) -> None:
    """Scenario 14.1: files of a running engine are removed, the daemon is killed, another one starts.

    Result: the same process under the same shim, one of each; a crash is answered, a stop leaves nothing.
    """
    port = daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    shim = daemon.shims("web")
    removed = remove(daemon)
    daemon.kill()
    daemon.start()
    [after] = daemon.until_ready("web")
    assert (after["pid"], after["restart_count"]) == (before["pid"], 0)
    assert daemon.tree("web") == [before["pid"]]
    assert daemon.shims("web") == shim
    assert removed.exists()
    assert get(port) == b"%d" % (before["pid"] or 0)
    kill(before["pid"] or 0)
    daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"], "another process")
    assert daemon.cli("stop", "web").returncode == 0
    assert daemon.tree("web") == []
    assert daemon.terminate() == 0
    assert daemon.shims("web") == []


@pytest.mark.parametrize("remove", [run_directory, engine_directory])
def test_an_engine_without_files_and_without_a_shim_is_the_same_engine(
    daemon: Daemon, remove: Callable[[Daemon], Path]
) -> None:
    """Scenario 14.2: the files are removed, then daemon and shim are killed; the engine writes a lot.

    Result: the next daemon adopts the process by what the database knows of it, and what it writes into the
    FIFO that was removed arrives in its log: it does not freeze.
    """
    port = daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    remove(daemon)
    daemon.kill()
    kill(*daemon.shims("web"))
    daemon.start()
    [after] = daemon.until_ready("web")
    assert (after["pid"], after["restart_count"]) == (before["pid"], 0)
    assert daemon.tree("web") == [before["pid"]]
    for _ in range(40):  # together more than a FIFO holds
        get(port, "/log/" + 4000 * "x")
    wait = daemon.client.logs("web", follow=True)
    seen = 0
    while seen < 160_000:
        seen += len(next(wait))
    assert daemon.cli("stop", "web").returncode == 0
    assert daemon.tree("web") == []


def test_a_living_daemon_makes_its_runtime_directory_again(daemon: Daemon) -> None:
    """Scenario 14.3: `rm -rf` of the runtime directory while the daemon runs.

    Result: within seconds the socket is there again and an event says so; a second daemon is refused all
    the time; after SIGKILL of the first one the next adopts the engine.
    """
    daemon.web()
    pid = daemon.start()
    [before] = daemon.until_ready("web")
    run_directory(daemon)
    second = subprocess.run(
        [BIN / "sagectld"], env=daemon.environ, capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 2
    assert f"another sagectld (process {pid}) runs" in second.stderr
    daemon.expect_event("socket-renewed")
    assert daemon.show("web")["pid"] == before["pid"]
    daemon.kill()
    daemon.start()
    [after] = daemon.until_ready("web")
    assert after["pid"] == before["pid"]
    assert daemon.tree("web") == [before["pid"]]


def test_an_engine_whose_directory_was_removed_restarts_after_a_crash(daemon: Daemon) -> None:
    """Scenario 14.4: its runtime directory is removed under a living daemon; then it gets SIGKILL.

    Result: it is ready again with another process, and has its directory.
    """
    daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    directory = engine_directory(daemon)
    kill(before["pid"] or 0)
    daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"], "another process")
    assert (directory / "started.json").exists()


def test_a_stopped_shim_hides_no_death_and_delays_no_stop(daemon: Daemon) -> None:
    """Scenario 14.5: the shim gets SIGSTOP; then the engine is killed; later the same before a `stop`.

    Result: the daemon continues the shim, so that the engine restarts, and stops in time.
    """
    daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    [shim] = daemon.shims("web")
    os.kill(shim, signal.SIGSTOP)
    kill(before["pid"] or 0)
    daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"], "another process")
    os.kill(shim, signal.SIGSTOP)
    assert daemon.cli("stop", "web", "--timeout", "8").returncode == 0
    assert daemon.tree("web") == []


def test_a_daemon_adopts_from_a_stopped_shim(daemon: Daemon) -> None:
    """Scenario 14.6: the shim gets SIGSTOP, the daemon SIGKILL; another daemon starts.

    Result: the same engine under the same shim.
    """
    daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    [shim] = daemon.shims("web")
    os.kill(shim, signal.SIGSTOP)
    daemon.kill()
    daemon.start()
    [after] = daemon.until_ready("web")
    assert after["pid"] == before["pid"]
    assert daemon.shims("web") == [shim]


def test_a_configuration_that_disappeared_stops_no_engine(daemon: Daemon) -> None:
    """Scenario 14.7: the daemon is killed, its configuration file removed, another daemon started.

    Result: the engine goes on, the status says what is wrong; once the file is there again `reload` works.
    With no engine running the daemon does not start, and says why.
    """
    daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    file = daemon.etc / "sagectl.toml"
    text = file.read_text()
    daemon.kill()
    file.unlink()
    daemon.start()
    [after] = daemon.until_ready("web")
    assert after["pid"] == before["pid"]
    assert "sagectl.toml: cannot be read" in daemon.cli("status").stdout
    assert daemon.cli("reload").returncode == 1
    file.write_text(text)
    assert daemon.cli("reload").returncode == 0
    assert daemon.show("web")["pid"] == before["pid"]
    assert daemon.terminate() == 0
    file.unlink()
    refused = subprocess.run(
        [BIN / "sagectld"], env=daemon.environ, capture_output=True, text=True, timeout=30
    )
    assert refused.returncode == 1
    assert f"{file}: cannot be read" in refused.stderr


def test_another_configuration_is_named(daemon: Daemon) -> None:
    """Scenario 14.8: the next daemon gets `--config` with another file, without the engine.

    Result: the engine stops as after a reload, and an event names both files.
    """
    daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    other = daemon.configure("", "other.toml")
    daemon.kill()
    daemon.start("--config", str(other))
    event = daemon.expect_event("config-moved")
    assert event["text"] == f"the configuration is {other} now; before it was {daemon.etc}/sagectl.toml"
    daemon.expect_event("removed", "web")
    assert not is_alive(before["pid"] or 0)
    assert daemon.client.engines() == []


def test_the_files_of_another_home_are_left_alone(new_daemon: Callable[[], Daemon]) -> None:
    """Scenario 14.9: two homes with an engine of the same name; the runtime directory of one is removed.

    Result: the next daemon of that home adopts its own engine; the other one's goes on.
    """
    one, two = new_daemon(), new_daemon()
    for daemon in (one, two):
        daemon.configure(daemon.web_engine("web", free_port()))
        daemon.start()
    [first], [second] = one.until_ready("web"), two.until_ready("web")
    run_directory(one)
    one.kill()
    one.start()
    [after] = one.until_ready("web")
    assert after["pid"] == first["pid"]
    assert two.show("web")["pid"] == second["pid"]
    assert two.tree("web") == [second["pid"]]
