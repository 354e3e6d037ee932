"""When is a wait of start, stop and restart over, and how did it end?"""

from __future__ import annotations

from typing import Any

import pytest

from sagectl.cli.verdict import GRACE, Goal, Verdict, judge


def engine(state: str, substate: str, desired: str = "running", **more: Any) -> Any:
    basis = {"state": state, "substate": substate, "desired": desired, "reason": "", "since": "t0"}
    return {**basis, "blocked": False, **more}


DEAD = engine("inactive", "dead", "stopped")
STARTING = engine("activating", "starting", since="t1")
BLOCKED = engine("activating", "queued", since="t1", blocked=True, reason="waiting for base (failed)")
BACKOFF = engine("activating", "backoff", since="t2")
READY = engine("active", "ready", since="t3", pid=1, started_at="t1")
UNREADY = engine("active", "unready", since="t4", pid=1, started_at="t1")
RUNNING = engine("active", "running", since="t3", pid=1)
COMPLETED = engine("inactive", "completed", since="t9")
FAILED = engine("failed", "exit-code", since="t5", reason="exited with code 1")
DRAINING = engine("deactivating", "draining", "stopped", since="t6")
STOPPED = engine("inactive", "stopped", "stopped", since="t7")
AGAIN = engine("active", "ready", since="t8", pid=2, started_at="t7")
YES = Verdict(True)


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (DEAD, STARTING, None),
        (DEAD, BACKOFF, None),
        (DEAD, BLOCKED, Verdict(False, "waiting for base (failed)")),
        (DEAD, READY, YES),
        (READY, READY, YES),
        (DEAD, UNREADY, None),
        (DEAD, RUNNING, YES),
        (STARTING, COMPLETED, YES),
        (DEAD, FAILED, Verdict(False, "exited with code 1")),
        (STARTING, DRAINING, Verdict(False, "it was stopped meanwhile")),
        (STARTING, STOPPED, Verdict(False, "it was stopped meanwhile")),
        (STARTING, None, Verdict(False, "it was removed meanwhile")),
    ],
)
def test_a_start_ends_when_the_engine_is_up_or_cannot_get_there(
    before: Any, now: Any, verdict: Verdict | None
) -> None:
    assert judge(Goal.UP, before, now, 0.1) == verdict


@pytest.mark.parametrize("before", [DEAD, FAILED, STOPPED])
def test_an_engine_that_has_not_heard_of_its_start_yet_is_given_time(before: Any) -> None:
    assert judge(Goal.UP, before, before, 0.1) is None


def test_a_failure_that_looks_as_before_counts_after_a_while() -> None:
    assert judge(Goal.UP, FAILED, FAILED, GRACE + 0.1) == Verdict(False, "exited with code 1")


def test_a_second_failure_of_the_same_sort_counts_at_once() -> None:
    again: Any = {**FAILED, "since": "t99"}
    assert judge(Goal.UP, FAILED, again, 0.1) == Verdict(False, "exited with code 1")


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (READY, READY, None),
        (READY, DRAINING, None),
        (READY, STOPPED, YES),
        (DEAD, DEAD, YES),
        (FAILED, FAILED, YES),
        (READY, FAILED, Verdict(True, "exited with code 1")),
        (READY, None, YES),
        (READY, AGAIN, Verdict(False, "it was started again meanwhile")),
        (BACKOFF, STOPPED, YES),
    ],
)
def test_a_stop_ends_when_nothing_runs(before: Any, now: Any, verdict: Verdict | None) -> None:
    assert judge(Goal.DOWN, before, now, 0.1) == verdict


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (READY, READY, None),
        (READY, UNREADY, None),
        (READY, engine("deactivating", "stopping", since="t6"), None),
        (READY, engine("inactive", "dead", since="t7"), None),
        (READY, STARTING, None),
        (READY, AGAIN, YES),
        (DEAD, AGAIN, YES),
        (READY, FAILED, Verdict(False, "exited with code 1")),
        (FAILED, FAILED, None),
        (READY, None, Verdict(False, "it was removed meanwhile")),
    ],
)
def test_a_restart_ends_with_another_process(before: Any, now: Any, verdict: Verdict | None) -> None:
    assert judge(Goal.RESTARTED, before, now, 0.1) == verdict


def test_a_restart_is_not_over_while_the_old_process_serves_on() -> None:
    assert judge(Goal.RESTARTED, READY, READY, GRACE + 60) is None


@pytest.mark.parametrize(("uptime", "verdict"), [(0.0, None), (0.9, None), (1.0, YES)])
def test_an_engine_without_a_probe_is_up_once_it_stayed_up(uptime: float, verdict: Verdict | None) -> None:
    now: Any = {**READY, "probed": False, "mode": "serve", "uptime_seconds": uptime}
    assert judge(Goal.UP, DEAD, now, 0.1) == verdict
    assert judge(Goal.RESTARTED, {**READY, "pid": 9}, now, 0.1) == verdict


@pytest.mark.parametrize("more", [{"probed": True, "mode": "serve"}, {"probed": False, "mode": "run"}, {}])
def test_a_probe_or_a_job_that_runs_needs_no_such_time(more: Any) -> None:
    now: Any = {**READY, "uptime_seconds": 0.0, **more}
    assert judge(Goal.UP, DEAD, now, 0.1) == YES


def test_an_older_daemon_that_says_less_is_understood() -> None:
    old = {key: value for key, value in STARTING.items() if key != "blocked"}
    assert judge(Goal.UP, DEAD, old, 0.1) is None  # type: ignore[arg-type]
