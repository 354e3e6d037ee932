"""What happens to an engine that is up: probes, crashes, restarts and their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sagectl.core.actions import Launch, Preflight, SetTimer, StartProbe, StopProbes
from sagectl.core.engine import EngineSpec, ProbePolicy, RestartPolicy, RestartWhen
from sagectl.core.events import (
    Exited,
    ProbeFailed,
    ProbeRole,
    ProbeSucceeded,
    ResetFailed,
    SpecReplaced,
    StartRequested,
    StatusNotified,
    Timer,
    TimerFired,
    TreeEmpty,
)
from sagectl.plugin import Diagnosis, ExitStatus
from sagectl.testing import PLAN, Behaviour, Life, Playbook

SPEC = EngineSpec(name="chat", kind="exec", port=8001)
KILLED = ExitStatus(signal=9)


def test_a_crash_is_followed_by_a_restart_of_the_same_engine():
    """
    1. A ready engine is killed by SIGKILL.

    Result: backoff, preflight, starting, ready; same id and port, counters say what happened.
    """
    life = Life(SPEC)
    life.tell(StartRequested())
    life.until("active (ready)")
    life.world.crash(KILLED)
    life.until("activating (backoff)")
    assert life.engine.reason == "ended by signal 9 (SIGKILL); restarting in 1.0 s"
    assert life.engine.consecutive_failures == 1
    life.until("active (ready)")
    assert (life.engine.generation, life.engine.restart_count, life.engine.port) == (2, 1, 8001)
    assert (life.engine.last_exit, life.engine.consecutive_failures) == (KILLED, 0)
    assert life.recorded == ["started", "ready", "exited", "restart", "started", "ready"]


def test_without_delay_a_crash_is_answered_by_a_launch(life_in):
    """
    1. A ready engine whose restart.delay is 0 crashes.

    Result: its next launch is in the answer to the very exit, with the plan that worked.
    """
    life = life_in("active (ready)")
    spec = replace(SPEC, restart=RestartPolicy(delay=0.0))
    play = Playbook(replace(life.engine, spec=spec), life.clock)
    assert (
        play
        >> Exited(1, KILLED, 0)
        << StopProbes()
        << Launch(2, PLAN)
        << SetTimer(2, Timer.STARTUP, 30.0)
        << "activating (starting)"
    )
    assert play.engine.since == life.clock.monotonic


def test_a_start_that_never_worked_is_preflighted_again_even_without_delay():
    """
    1. An engine whose restart.delay is 0 ends while it starts.

    Result: a tenth of a second later it is preflighted, because its plan has not worked yet.
    """
    life = Life(replace(SPEC, restart=RestartPolicy(delay=0.0)))
    life.tell(StartRequested())
    life.until("activating (starting)")
    play = Playbook(life.engine, life.clock)
    assert (
        play
        >> Exited(1, KILLED, 0)
        << StopProbes()
        << SetTimer(1, Timer.BACKOFF, 0.1)
        << "activating (backoff)"
        >> TimerFired(1, Timer.BACKOFF)
        << Preflight(2)
        << "activating (preflight)"
    )


def test_a_changed_spec_is_never_launched_by_an_old_plan(life_in):
    """
    1. A crashed engine without delay still has leftovers when a reload changes its launch.
    2. The leftovers are gone.

    Result: preflight, although the old plan had worked.
    """
    life = life_in("active (ready)")
    spec = replace(SPEC, restart=RestartPolicy(delay=0.0))
    life.engine = replace(life.engine, spec=spec)
    life.tell(Exited(1, KILLED, left=2), SpecReplaced(spec, needs_restart=True))
    play = Playbook(life.engine, life.clock)
    assert play >> TreeEmpty(1) << Preflight(2) << "activating (preflight)"
    assert not play.engine.needs_restart


def test_leftovers_of_a_crash_are_killed_before_the_restart():
    """
    1. A main process dies; two of its children live on.

    Result: releasing until they are gone, then backoff; never two generations at once.
    """
    life = Life(SPEC, Behaviour(children=2, outlived=True, kills_after=3.0))
    life.tell(StartRequested())
    life.until("active (ready)")
    life.world.crash(KILLED)
    life.until("deactivating (releasing)")
    assert life.engine.reason == "ending 2 processes that it left behind"
    life.until("activating (backoff)")
    assert life.world.alive == 0
    life.until("active (ready)")
    assert life.world.wrongs == []
    assert "stubborn" in life.recorded


def test_backoff_doubles_until_the_limit_within_the_window():
    """
    1. An engine becomes ready and crashes, again and again, within ten minutes.

    Result: delays of 1, 2, 4, 8, 16 s, then failed (start-limit) after five restarts.
    """
    life = Life(SPEC, Behaviour(exits_after=2.0, ready_after=1.0))
    life.tell(StartRequested())
    delays = []
    for _ in range(5):
        life.until("activating (backoff)")
        assert life.engine.backoff_until is not None
        delays.append(life.engine.backoff_until - life.clock.monotonic)
        life.until("active (ready)")
    life.until("failed (start-limit)")
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert "5 restarts within 600 s are the limit" in life.engine.reason
    assert life.engine.restart_count == 5


def test_slow_starts_that_never_work_meet_the_limit_outside_the_window():
    """
    1. Each start loads for ten minutes and then dies, so that no window ever sees five of them.

    Result: failed (start-limit) after five restarts in a row that never became ready.
    """
    life = Life(SPEC, Behaviour(exits_after=700.0, ready_after=None, progresses=True))
    life.tell(StartRequested())
    life.until("failed (start-limit)", within=7200.0)
    assert len(life.world.launches) == 6
    assert "5 restarts in a row never became ready" in life.engine.reason


def test_rare_crashes_never_meet_the_limit():
    """
    1. An engine crashes every half hour, twenty times.

    Result: it is restarted each time, after the first delay.
    """
    life = Life(SPEC, Behaviour(exits_after=1800.0))
    life.tell(StartRequested())
    for _ in range(20):
        life.until("activating (backoff)")
        assert "restarting in 1.0 s" in life.engine.reason
        life.until("active (ready)")


def test_a_users_start_clears_the_limit(life_in):
    """
    1. An engine is failed (start-limit).
    2. A dependent's start tries it once more, then the user does.

    Result: the first may not crash again, the second has all its restarts.
    """
    life = life_in("failed (start-limit)")
    life.tell(StartRequested(by_user=False))
    life.until("failed (start-limit)")
    assert len(life.world.launches) == 7
    life.tell(StartRequested(by_user=True))
    life.until("failed (start-limit)")
    assert len(life.world.launches) == 13


def test_reset_failed_forgets_the_failure_and_does_not_start(life_in):
    """
    1. An engine is failed (start-limit), and reset.

    Result: inactive (dead), no counter left, and nothing wants it up.
    """
    life = life_in("failed (start-limit)")
    life.tell(ResetFailed())
    life.advance(3600.0)
    assert life.history[-1] == "inactive (dead)"
    assert (life.engine.starts, life.engine.unready_starts, life.engine.diagnosis) == ((), 0, None)
    assert life.engine.desired == "stopped"


def test_a_users_start_ends_the_backoff(life_in):
    """
    1. An engine waits for its restart; the user starts it.

    Result: preflight now; the timer is gone, and the delays begin anew.
    """
    life = life_in("activating (backoff)")
    life.tell(StartRequested())
    assert life.history[-1] == "activating (preflight)"
    assert life.world.timers == {}
    assert life.engine.backoff_step == 0


def test_a_dependents_start_does_not_end_the_backoff(life_in):
    """
    1. An engine waits for its restart; something that depends on it is started.

    Result: it goes on waiting.
    """
    life = life_in("activating (backoff)")
    life.tell(StartRequested(by_user=False))
    assert life.history[-1] == "activating (backoff)"
    assert Timer.BACKOFF in life.world.timers


def test_a_minute_of_readiness_resets_the_backoff():
    """
    1. An engine crashes twice quickly; then it is ready for more than a minute, and crashes.

    Result: the third delay is the first one again.
    """
    life = Life(SPEC)
    life.tell(StartRequested())
    for expected in (1.0, 2.0):
        life.until("active (ready)")
        life.world.crash()
        life.until("activating (backoff)")
        assert f"restarting in {expected}" in life.engine.reason
    life.until("active (ready)")
    life.advance(61.0)
    life.world.crash()
    life.until("activating (backoff)")
    assert "restarting in 1.0 s" in life.engine.reason


def test_what_cannot_be_mended_is_not_tried_again(life_in):
    """
    1. The kind recognises a flag that does not exist.

    Result: failed at once, with the kind's words; `policy = "always"` tries nevertheless.
    """
    life = life_in("failed (exit-code), hopeless")
    assert life.engine.reason == "no such flag"
    assert len(life.world.launches) == 1
    always = replace(SPEC, restart=RestartPolicy(policy=RestartWhen.ALWAYS))
    diagnosis = Diagnosis("no such flag", "fix it", retryable=False)
    life = Life(always, Behaviour(exits_after=0.5, diagnosis=diagnosis))
    life.tell(StartRequested())
    life.until("activating (backoff)")
    assert life.engine.reason == "no such flag; restarting in 1.0 s"


@pytest.mark.parametrize(
    ("status", "place"),
    [
        (ExitStatus(code=3), "failed (exit-code)"),
        (ExitStatus(code=0), "failed (exit-code)"),
        (ExitStatus(signal=11), "failed (signal)"),
        (ExitStatus(signal=9, oom_kill=True), "failed (oom-kill)"),
        (ExitStatus(), "failed (exit-code)"),
    ],
)
def test_policy_no_keeps_the_kind_of_failure(status, place):
    """
    1. An engine with `restart.policy = "no"` ends by itself.

    Result: failed; the substate says how. Code 0 that nobody asked for is a failure too.
    """
    life = Life(replace(SPEC, restart=RestartPolicy(policy=RestartWhen.NO)))
    life.tell(StartRequested())
    life.until("active (ready)")
    life.world.crash(status)
    life.until(place)
    assert life.engine.last_exit == status


# --- Probes ------------------------------------------------------------------------------------


def test_liveness_restarts_a_hung_engine():
    """
    1. A ready engine no longer answers its liveness probe, three times.

    Result: SIGTERM without draining, then the restart policy; the reason names the probe.
    """
    life = Life(SPEC, Behaviour(lives=False))
    life.tell(StartRequested())
    life.until("active (ready)")
    ready = life.clock.monotonic
    life.until("deactivating (stopping)")
    assert life.clock.monotonic - ready == 30.0
    assert life.engine.reason == "liveness probe failed 3 times: no answer"
    life.until("activating (backoff)")
    assert "deactivating (draining)" not in life.history


def test_liveness_forgives_a_busy_engine():
    """
    1. The liveness probe times out for an hour while requests advance.

    Result: nothing happens to the engine.
    """
    life = Life(SPEC, Behaviour(lives=False, busy=True))
    life.tell(StartRequested())
    life.until("active (ready)")
    life.advance(3600.0)
    assert life.history[-1] == "active (ready)"


def test_liveness_counts_only_failures_in_a_row(life_in):
    """
    1. The liveness probe fails twice, succeeds, and fails twice.

    Result: still active; a refused connection counts even while requests advance.
    """
    life = life_in("active (ready)")
    no = ProbeFailed(1, ProbeRole.LIVENESS, "no")
    life.tell(no, no, ProbeSucceeded(1, ProbeRole.LIVENESS), no, no)
    assert life.history[-1] == "active (ready)"
    life.tell(ProbeFailed(1, ProbeRole.LIVENESS, "connection refused", advancing=True))
    assert life.history[-1] == "deactivating (stopping)"


def test_readiness_takes_it_out_and_in_and_never_restarts_it(life_in):
    """
    1. A ready engine fails its readiness probe for an hour.
    2. The probe succeeds again.

    Result: active (unready) with the reason, then active (ready); the same process throughout.
    """
    life = life_in("active (unready)")
    assert life.engine.reason == "readiness probe failed 3 times: no answer"
    assert not life.engine.up
    life.advance(3600.0)
    assert life.history[-1] == "active (unready)"
    life.behaviour.serves = True
    life.until("active (ready)")
    assert (len(life.world.launches), life.engine.reason) == (1, "")


def test_status_text_of_an_unready_engine_does_not_hide_why(life_in):
    """
    1. An unready engine says STATUS=.

    Result: the reason is still the readiness probe's; a ready engine's reason is its status.
    """
    life = life_in("active (unready)")
    life.tell(StatusNotified(1, "all is well"))
    assert life.engine.reason.startswith("readiness probe failed")
    life = life_in("active (ready)")
    life.tell(StatusNotified(1, "12 requests a second"))
    assert life.engine.reason == "12 requests a second"


def test_a_new_probe_policy_counts_at_once(life_in):
    """
    1. A reload changes `probe.interval` of a ready engine.

    Result: the steady probes are asked anew with it; nothing is restarted.
    """
    life = life_in("active (ready)")
    play = Playbook(life.engine, life.clock)
    health = PLAN.probes.startup
    assert (
        play
        >> SpecReplaced(replace(SPEC, probe=ProbePolicy(interval=2.0)))
        << StopProbes()
        << StartProbe(1, ProbeRole.READINESS, health, 2.0, 5.0)
        << StartProbe(1, ProbeRole.LIVENESS, health, 2.0, 5.0)
        << "active (ready)"
    )


def test_late_probes_and_timers_of_the_same_start_change_nothing(life_in):
    """
    1. An engine waits for its restart. Probe answers and timers of the start that ended arrive.

    Result: it goes on waiting; the doublings of its delay are not forgotten.
    """
    life = life_in("activating (backoff)")
    play = Playbook(life.engine, life.clock, hide=())
    for role in ProbeRole:
        assert play >> ProbeSucceeded(1, role) >> ProbeFailed(1, role, "no")
    for timer in (Timer.STARTUP, Timer.STOP, Timer.DRAIN, Timer.STABLE):
        assert play >> TimerFired(1, timer)
    assert play.engine == life.engine
