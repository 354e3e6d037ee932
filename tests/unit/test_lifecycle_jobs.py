"""Engines that run to completion."""

from __future__ import annotations

from dataclasses import replace

from sagectl.core.actions import SendSignal, SetTimer, StopProbes
from sagectl.core.engine import EngineSpec
from sagectl.core.events import StartRequested, StopRequested, Timer
from sagectl.plugin import ExitStatus, Mode
from sagectl.testing import Behaviour, Life, Playbook

SPEC = EngineSpec(name="tune", kind="exec", port=8001)
JOB = replace(SPEC, mode=Mode.RUN)


def test_a_job_that_exits_with_0_is_completed():
    """
    1. A job runs and exits with code 0.
    2. It is started again without, then with `again`.

    Result: completed, wanted no more, and done for what depends on it, as it was not while it ran; only
    `again` runs it anew.
    """
    life = Life(JOB, Behaviour(exits_after=60.0, exit=ExitStatus(code=0)))
    life.tell(StartRequested())
    life.until("active (running)")
    assert (life.engine.up, life.engine.done) == (True, False)
    life.until("inactive (completed)")
    assert (life.engine.desired, life.engine.up, life.engine.done) == ("stopped", True, True)
    life.tell(StartRequested())
    assert life.history[-1] == "inactive (completed)"
    life.tell(StartRequested(again=True))
    life.until("active (running)")
    assert len(life.world.launches) == 2


def test_a_job_that_fails_is_restarted_like_any_other():
    """
    1. A job exits with code 1.

    Result: backoff and another try.
    """
    life = Life(JOB, Behaviour(exits_after=60.0))
    life.tell(StartRequested())
    life.until("activating (backoff)")
    life.until("active (running)")


def test_a_stopped_job_is_not_completed_and_resumes():
    """
    1. A running job is stopped, saves and exits with code 0.
    2. It is started.

    Result: inactive (stopped), without draining; then it runs.
    """
    life = Life(JOB)
    life.tell(StartRequested())
    life.until("active (running)")
    play = Playbook(life.engine, life.clock)
    assert play >> StopRequested() << StopProbes() << SendSignal(1, 15) << SetTimer(1, Timer.STOP, 20.0)
    life.tell(StopRequested())
    life.world.crash(ExitStatus(code=0))
    life.until("inactive (stopped)")
    life.tell(StartRequested())
    life.until("active (running)")


def test_a_completed_job_ends_what_it_left_behind():
    """
    1. A job exits with 0 while a child lives on.

    Result: releasing, then completed.
    """
    life = Life(JOB, Behaviour(children=1, outlived=True, exits_after=9.0, exit=ExitStatus(code=0)))
    life.tell(StartRequested())
    life.until("inactive (completed)")
    assert life.history[-2] == "deactivating (releasing)"
    assert life.world.alive == 0
