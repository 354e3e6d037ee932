"""Scenario 8: a third party's kind, a job, in a package of its own; and a package that is broken."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.harness import BIN, Daemon, await_end, free_port, kill
from tests.acceptance.listening import PATIENCE, FollowedLog


@pytest.fixture
def counting(new_daemon: Callable[..., Daemon], installed: Callable[[str], str]) -> Daemon:
    """A directory whose daemons find the kind `countdown`."""
    paths = (installed("countdown"), os.environ.get("PYTHONPATH", ""))
    return new_daemon(PYTHONPATH=os.pathsep.join(filter(None, paths)))


def job(name: str = "tally", **keys: object) -> str:
    lines = [f"[engines.{name}]", 'kind = "countdown"', *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def test_a_third_partys_job_runs_shows_its_progress_and_completes(counting: Daemon) -> None:
    """Scenario 8.1: the package is installed and nothing else changed. The job is started, waits before its
    last step, and is let go on.

    Result: `kinds` names package and options; `start` returns when it runs; the API shows 2 of 3 numbers;
    it ends as inactive (completed). `start` again is refused with a hint at --again, which runs it anew.
    """
    go = counting.home / "go"
    counting.configure(job(hold=f'"{go}"'))
    kinds = {kind["name"]: kind for kind in counting.json("kinds")["kinds"]}
    assert (kinds["countdown"]["distribution"], kinds["countdown"]["version"]) == ("sagectl-countdown", "1.2")
    assert counting.cli("check").returncode == 0
    counting.start()
    started = counting.cli("start", "tally")
    assert started.returncode == 0, started.stderr
    assert counting.show("tally")["substate"] == "running"
    FollowedLog(counting.client, "tally").expect(b"counted 2")
    assert counting.show("tally")["progress"] == {
        "done": 2,
        "total": 3,
        "unit": "numbers",
        "eta_seconds": None,
        "details": {"newest": 2},
    }
    go.touch()
    done = counting.until_state("tally", "completed")
    assert (done["state"], done["desired"], done["last_exit_code"]) == ("inactive", "stopped", 0)
    assert counting.tree("tally") == []
    refused = counting.cli("start", "tally")
    assert refused.returncode == 1
    assert "--again" in refused.stderr
    assert counting.cli("start", "tally", "--again").returncode == 0
    counting.until_state("tally", "completed")


def test_a_completed_job_never_runs_again_by_itself(counting: Daemon) -> None:
    """Scenario 8.2: a job with autostart completes. The daemon is ended in order, killed, and started, and
    reloads.

    Result: it stays completed and has run once.
    """
    counting.configure(job(autostart="true"))
    counting.start()
    counting.until_state("tally", "completed")
    assert counting.terminate() == 0
    counting.start()
    assert counting.show("tally")["substate"] == "completed"
    counting.kill()
    counting.start()
    counting.client.reload()
    assert counting.show("tally")["substate"] == "completed"
    assert b"".join(counting.client.logs("tally")).count(b"counted 1") == 1


def test_a_stopped_job_goes_on_where_it_was(counting: Daemon) -> None:
    """Scenario 8.3: a job is stopped before its last step, and started again.

    Result: inactive (stopped), not completed and not failed; `start` goes on, and it completes.
    """
    go = counting.home / "go"
    counting.configure(job(hold=f'"{go}"'))
    counting.start()
    assert counting.cli("start", "tally").returncode == 0
    log = FollowedLog(counting.client, "tally")
    log.expect(b"counted 2")
    assert counting.cli("stop", "tally").returncode == 0
    stopped = counting.show("tally")
    assert (stopped["state"], stopped["substate"]) == ("inactive", "stopped")
    go.touch()
    assert counting.cli("start", "tally").returncode == 0
    counting.until_state("tally", "completed")
    log.expect(b"going on after 2\ncounted 3")


def test_what_depends_on_a_job_starts_when_it_is_complete(counting: Daemon) -> None:
    """Scenario 8.9: a server with autostart depends on a job, which waits before its last step. The daemon is
    killed meanwhile; the job is stopped, started, let go on, and ends. Then the daemon starts anew.

    Result: the server waits as queued while the job runs and while it is stopped, and starts by itself when
    the job completed. With the next daemon it starts at once, and the job does not run again.
    """
    go = counting.home / "go"
    server = counting.web_engine("web", free_port(), depends_on=["tally"])
    counting.configure(server + job(hold=f'"{go}"'))
    counting.start()
    counting.until_ready("tally")
    FollowedLog(counting.client, "tally").expect(b"counted 2")
    counting.kill()
    counting.start()
    waiting = counting.show("web")
    assert (waiting["substate"], waiting["waiting_for"]) == ("queued", ["tally"])
    assert counting.cli("stop", "tally").returncode == 0
    assert counting.until_state("web", "queued")["reason"] == "waiting for tally (inactive stopped)"
    counting.client.start("tally", wait=30)
    assert counting.until_state("web", "queued")["reason"] == "waiting for tally (active running)"
    go.touch()
    counting.until_ready("web")
    assert counting.show("tally")["substate"] == "completed"
    assert counting.terminate() == 0
    counting.start()
    counting.until_ready("web")
    assert b"".join(counting.client.logs("tally")).count(b"counted 1") == 1


def test_a_job_that_fails_says_why_in_its_kinds_words(counting: Daemon) -> None:
    """Scenario 8.4: the job ends with code 4; its kind knows what that line of the log means.

    Result: failed (exit-code) at once, although restart is on-failure, for trying again would not help.
    """
    counting.configure(job(fail_at=2, autostart="true"))
    counting.start()
    failed = counting.until_state("tally", "failed")
    assert (failed["substate"], failed["last_exit_code"], failed["restart_count"]) == ("exit-code", 4, 0)
    told = {"summary": "It miscounted", "remedy": "Take `fail_at` out.", "arithmetic": []}
    assert failed["diagnosis"] == told
    status = counting.cli("status", "tally")
    assert status.returncode == 3
    assert "It miscounted" in status.stdout
    assert "Take `fail_at` out." in status.stdout


def test_a_job_outlives_the_daemon_and_completes_without_one(counting: Daemon) -> None:
    """Scenario 8.5: the daemon gets SIGKILL while one job runs, and while another one completes.

    Result: the next daemon adopts the first as running with its progress, and knows that the second
    completed; neither runs twice. A job killed together with the daemon goes on after it.
    """
    names = ("first", "second", "third")
    go = {name: counting.home / name for name in names}
    restart = "{ delay = 0 }"
    counting.configure(
        "".join(job(name, hold=f'"{go[name]}"', autostart="true", restart=restart) for name in names)
    )
    counting.start()
    before = {e["name"]: e for e in counting.until_ready(*names)}
    for name in names:
        FollowedLog(counting.client, name).expect(b"counted 2")
    counting.kill()
    kill(before["third"]["pid"] or 0)
    go["second"].touch()
    _await_no_process(counting, "second")
    counting.start()
    first = counting.show("first")
    assert (first["pid"], first["substate"]) == (before["first"]["pid"], "running")
    assert (first["progress"] or {})["done"] == 2
    second = counting.until_state("second", "completed")
    assert second["last_exit_code"] == 0
    third = counting.until_state("third", "running")
    assert (third["restart_count"], third["last_exit_code"]) == (1, -9)
    FollowedLog(counting.client, "third").expect(b"going on after 2")
    for name in ("first", "third"):
        go[name].touch()
        counting.until_state(name, "completed")
    for name in ("first", "second"):
        assert b"".join(counting.client.logs(name)).count(b"counted") == 3


def _await_no_process(daemon: Daemon, name: str) -> None:
    for pid in daemon.tree(name):
        await_end(pid)


def test_a_bad_option_of_a_third_partys_kind_is_named_with_file_and_line(counting: Daemon) -> None:
    """Scenario 8.6: `steps` is 0 in one engine, a string in another, and misspelt in a third.

    Result: `check` exits 1 with file, line and key of all three, the kind's own words, and a suggestion.
    """
    file = counting.configure(job("a", steps=0) + job("b", steps='"3"') + job("c", step=3))
    checked = counting.cli("check")
    assert checked.returncode == 1
    assert f"{file}:3: engines.a.steps" in checked.stdout
    assert "there is nothing to count" in checked.stdout
    assert f"{file}:6: engines.b.steps" in checked.stdout
    assert f"{file}:9: engines.c.step" in checked.stdout
    assert 'did you mean "steps"' in checked.stdout


def test_a_broken_plugin_is_reported_and_stops_nothing(
    new_daemon: Callable[..., Daemon], installed: Callable[[str], str]
) -> None:
    """Scenario 8.7: a package raises when it is imported; one engine is of its kind, another is of `exec`.

    Result: the daemon starts and the exec engine is ready; `kinds`, `status` and `check` name the package
    and the reason; a reload works.
    """
    daemon = new_daemon(PYTHONPATH=f"{installed('broken')}:{installed('countdown')}")
    web = daemon.web_engine("web", free_port())
    daemon.configure(web)
    daemon.start()
    daemon.until_ready("web")
    for verb in ("kinds", "status", "check"):
        answer = daemon.cli(verb)
        assert answer.returncode == 0, verb
        assert "broken" in answer.stdout
        assert "libsomething.so.3 is missing" in answer.stdout, verb
    [plugin] = daemon.client.status()["control_plane"]["broken_plugins"]
    assert plugin["distribution"] == "sagectl-broken"
    daemon.configure(web + '[engines.other]\nkind = "broken"\nwhatever = 1\n')
    assert daemon.cli("reload").returncode == 0
    assert "libsomething.so.3 is missing" in daemon.cli("check").stdout
    assert daemon.show("web")["state"] == "active"
    assert daemon.cli("status", "other").returncode == 4
    assert "other" in daemon.cli("status").stdout


def test_a_running_job_is_shown_with_its_progress_and_followed_to_its_end(counting: Daemon) -> None:
    """Scenario 8.8: a job waits before its last step; it is looked at, followed from another terminal, and
    let go on.

    Result: list, status and the overview show 2 of 3 numbers; the follower ends with 0 when it completes.
    """
    go = counting.home / "go"
    counting.configure(job(hold=f'"{go}"', autostart="true"))
    counting.start()
    counting.until_ready("tally")
    FollowedLog(counting.client, "tally").expect(b"counted 2")
    for words in (("list",), ("engine", "list"), ("status",)):
        assert "66% 2/3 numbers" in counting.cli(*words).stdout, words
    status = counting.cli("status", "tally").stdout
    assert "66% 2/3 numbers" in status
    assert "newest 2" in status
    follower = subprocess.Popen(
        [BIN / "sagectl", "fine-tune", "--follow", "--name", "tally"],
        env=counting.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stderr is not None
    assert "66% 2/3 numbers" in follower.stderr.readline()
    go.touch()
    counting.until_state("tally", "completed")
    assert follower.wait(30) == 0
    assert "tally: inactive (completed)" in follower.stderr.read()
    follower.stderr.close()
    assert "numbers" not in counting.cli("list").stdout


def test_a_job_is_followed_across_a_daemon_that_is_killed(counting: Daemon) -> None:
    """Scenario 8.9: `fine-tune --follow` shows a job that holds before its last step; the daemon is killed,
    another one started, and the job let go on.

    Result: it says that the daemon is away, shows the step that was done meanwhile and ends with the job.
    The journal has no event for a step.
    """
    go = counting.home / "go"
    counting.configure(job(hold=f'"{go}"', steps=50))
    counting.start()
    assert counting.cli("start", "tally").returncode == 0
    command = [str(BIN / "sagectl"), "--json", "fine-tune", "--follow", "--name", "tally"]
    follower = subprocess.Popen(command, env=counting.environ, stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    shown: list[dict[str, Any]] = [{}]
    while (shown[-1].get("progress") or {}).get("done") != 49:
        shown.append(json.loads(follower.stdout.readline()))
    counting.kill()
    counting.start()
    told = counting.client.follow_progress("tally")
    assert (next(told)["progress"] or {})["done"] == 49
    go.touch()
    *_, last = told
    assert (last["substate"], (last["progress"] or {})["done"]) == ("completed", 50)
    rest = [json.loads(line) for line in follower.stdout]
    assert follower.wait(PATIENCE) == 0
    follower.stdout.close()
    assert rest[-1]["substate"] == "completed"
    assert len(list(counting.client.events(tail=1000, engine="tally"))) < 20
