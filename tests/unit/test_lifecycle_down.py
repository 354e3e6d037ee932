"""The way down, and every request at every place of an engine's life."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sagectl.core.actions import (
    AwaitDependencies,
    Drain,
    Forget,
    KillTree,
    ReleaseShim,
    SendSignal,
    SetTimer,
    StartProbe,
    StopProbes,
)
from sagectl.core.engine import EngineSpec, RestartPolicy, RestartWhen, StopPolicy, Sub
from sagectl.core.events import (
    Drained,
    Exited,
    ProbeRole,
    Removed,
    RestartRequested,
    SpecReplaced,
    StartRequested,
    StatusNotified,
    StopRequested,
    Timer,
    TimerFired,
    TreeEmpty,
    TreeStubborn,
)
from sagectl.plugin import ExitStatus
from sagectl.testing import HEALTH, Behaviour, Life, Playbook, phase

SPEC = EngineSpec(name="chat", kind="exec", port=8001)
TERMINATED = ExitStatus(signal=15)


def kind_again(life: Life) -> None:
    """From now on the world lets the engine work."""
    b = life.behaviour
    b.refusal, b.exits_after, b.diagnosis, b.ready_after, b.drains_after = None, None, None, 1.0, 0.0
    b.serves, b.lives, b.outlived, b.dependencies_after = True, True, False, 0.0
    if life.engine.sub is Sub.QUEUED:
        life.world.do(AwaitDependencies(life.engine.generation))
    if life.engine.sub is Sub.STARTING and life.engine.process is not None:
        life.world.do(StartProbe(life.engine.generation, ProbeRole.STARTUP, (HEALTH,), 10.0, 5.0))


def test_a_stop_drains_then_signals_then_is_down(life_in):
    """
    1. A ready engine is stopped; one request is in flight, then none.
    2. It ends by SIGTERM.

    Result: draining, stopping, inactive (stopped); the reason is the request's.
    """
    life = life_in("active (ready)")
    play = Playbook(life.engine, life.clock)
    assert (
        play
        >> StopRequested()
        << StopProbes()
        << Drain(1)
        << SetTimer(1, Timer.DRAIN, 30.0)
        << "deactivating (draining)"
        >> Drained(1)
        << StopProbes()
        << SendSignal(1, 15)
        << SetTimer(1, Timer.STOP, 20.0)
        << "deactivating (stopping)"
        >> Exited(1, TERMINATED, 0)
        << StopProbes()
        << ReleaseShim()
        << "inactive (stopped)"
    )
    assert play.engine.reason == "stopped by the user"


def test_requests_that_never_end_are_waited_for_until_the_deadline(life_in):
    """
    1. Requests are in flight for longer than `stop.drain`.

    Result: SIGTERM at the deadline, and the record says so.
    """
    life = life_in("deactivating (draining)")
    began = life.clock.monotonic
    life.until("deactivating (stopping)")
    assert life.clock.monotonic - began == 30.0
    assert "drain-timeout" in life.recorded
    life.until("inactive (stopped)")


def test_an_engine_that_ignores_sigterm_is_killed_with_its_tree():
    """
    1. An engine with a setsid'd grandchild ignores SIGTERM, and so does the grandchild.

    Result: after `stop.timeout` SIGKILL to everything; stopped means that nothing is alive.
    """
    life = Life(SPEC, Behaviour(stops_after=None, children=1, outlived=True))
    life.tell(StartRequested())
    life.until("active (ready)")
    life.tell(StopRequested())
    life.until("deactivating (releasing)")
    assert life.engine.reason == "still alive 20 s after the stop signal; killing it"
    life.until("inactive (stopped)")
    assert life.world.alive == 0


def test_stopped_is_said_only_when_the_tree_is_empty(life_in):
    """
    1. The main process ends by SIGTERM, two others stay.
    2. SIGKILL does not end them for a while.
    3. They are gone.

    Result: releasing, with their PIDs as reason (recorded once), and only then stopped.
    """
    life = life_in("deactivating (stopping)")
    play = Playbook(life.engine, life.clock)
    assert play >> Exited(1, TERMINATED, left=2) << StopProbes() << KillTree(1) << "deactivating (releasing)"
    stubborn = TreeStubborn(1, (7, 8))
    assert play >> stubborn >> stubborn << "deactivating (releasing)"
    assert play.engine.reason == "2 processes do not end even by SIGKILL: 7, 8"
    assert play >> TreeEmpty(1) << ReleaseShim() << "inactive (stopped)"


def test_an_empty_tree_is_not_believed_while_the_exit_is_outstanding(life_in):
    """
    1. After SIGKILL the news of the empty tree overtakes the exit.

    Result: the exit settles it; its status is not lost.
    """
    life = life_in("deactivating (stopping)")
    play = Playbook(life.engine, life.clock)
    assert play >> TimerFired(1, Timer.STOP) << KillTree(1) << "deactivating (releasing)"
    assert play >> TreeEmpty(1) << "deactivating (releasing)"
    assert play >> Exited(1, ExitStatus(signal=9), 0) << StopProbes() << ReleaseShim() << "inactive (stopped)"
    assert play.engine.last_exit == ExitStatus(signal=9)


def test_a_stop_with_drain_0_skips_what_is_in_flight(life_in):
    """
    1. A draining engine is stopped again with `drain=0`; a ready one with `drain=0`.

    Result: both are sent SIGTERM at once.
    """
    for place in ("deactivating (draining)", "active (ready)"):
        life = life_in(place)
        life.tell(StopRequested(drain=0))
        assert life.history[-1] == "deactivating (stopping)"
        assert life.world.timers.keys() == {Timer.STOP}


def test_drain_seconds_of_a_request_replace_the_specs(life_in):
    """
    1. A ready engine is stopped with `drain=5`.

    Result: the deadline is 5 s.
    """
    life = life_in("active (ready)")
    life.behaviour.drains_after = None
    began = life.clock.monotonic
    life.tell(StopRequested(drain=5.0))
    life.until("deactivating (stopping)")
    assert life.clock.monotonic - began == 5.0


def test_the_spec_chooses_the_stop_signal():
    """
    1. An engine with `stop.signal = SIGINT` is stopped.

    Result: SIGINT is what it gets.
    """
    life = Life(replace(SPEC, stop=StopPolicy(signal=2)))
    life.tell(StartRequested())
    life.until("active (ready)")
    life.tell(StopRequested())
    life.until("inactive (stopped)")
    assert life.world.signals == [2]


def test_a_stopping_engine_may_ask_for_more_time(life_in):
    """
    1. A stopping engine that saves a checkpoint says EXTEND_TIMEOUT_USEC for a minute.

    Result: it is killed after that minute, not after `stop.timeout`.
    """
    life = life_in("deactivating (stopping)")
    play = Playbook(life.engine, life.clock)
    assert play >> StatusNotified(1, extend=60.0) << SetTimer(1, Timer.STOP, 60.0)


def test_a_second_stop_changes_nothing(life_in):
    """
    1. A stopping engine is stopped once more.

    Result: no second signal.
    """
    life = life_in("deactivating (stopping)")
    life.tell(StopRequested())
    life.until("inactive (stopped)")
    assert life.world.signals == [15]


def test_a_stop_of_an_unhealthy_engine_is_no_failure(life_in):
    """
    1. Liveness has tripped; while the engine ends, the user stops it.

    Result: inactive (stopped), by the user.
    """
    life = life_in("deactivating (stopping), unhealthy")
    life.tell(StopRequested())
    life.until("inactive (stopped)")
    assert life.engine.reason == "stopped by the user"


def test_a_crash_while_draining_is_a_stop(life_in):
    """
    1. A draining engine dies of SIGSEGV.

    Result: inactive (stopped); the exit is on record, nothing is restarted.
    """
    life = life_in("deactivating (draining)")
    life.world.crash(ExitStatus(signal=11))
    life.until("inactive (stopped)")
    assert life.engine.last_exit == ExitStatus(signal=11)


# --- Requests anywhere -------------------------------------------------------------------------


def test_a_stop_anywhere_leaves_nothing_alive(life_in, anywhere):
    """
    1. An engine is anywhere in its life; the user stops it.
    2. Whatever is under way goes on, for an hour.

    Result: inactive, nothing alive, no timer; a completed job stays completed.
    """
    life = life_in(anywhere)
    life.tell(StopRequested())
    life.advance(3600.0)
    assert phase(life.engine) in ("inactive (stopped)", "inactive (completed)")
    assert (life.world.alive, life.world.timers, life.world.probes) == (0, {}, {})
    assert life.engine.desired == "stopped"
    assert life.world.wrongs == []


def test_a_start_anywhere_leads_up(life_in, anywhere):
    """
    1. An engine is anywhere in its life; the user starts it, and nothing is wrong any more.

    Result: active, one process; a completed job stays completed.
    """
    life = life_in(anywhere)
    kind_again(life)
    life.tell(StartRequested())
    life.advance(600.0)
    if anywhere == "inactive (completed)":
        assert life.history[-1] == anywhere
        return
    assert phase(life.engine) in ("active (ready)", "active (running)")
    assert (life.world.alive, life.world.wrongs) == (1 + life.world.children, [])


def test_a_restart_anywhere_leads_up_by_a_new_start(life_in, anywhere):
    """
    1. An engine is anywhere in its life; the user restarts it, and nothing is wrong any more.

    Result: active, by a newer generation, one process, whatever the restart policy; not counted as failure.
    """
    life = life_in(anywhere)
    before = life.engine.generation
    life.engine = replace(
        life.engine, spec=replace(life.engine.spec, restart=RestartPolicy(policy=RestartWhen.NO))
    )
    kind_again(life)
    restarts = life.engine.restart_count
    life.tell(RestartRequested())
    life.advance(600.0)
    assert phase(life.engine) in ("active (ready)", "active (running)")
    assert life.engine.generation > before
    assert (life.world.alive, life.world.wrongs) == (1 + life.world.children, [])
    assert life.engine.restart_count == restarts


def test_a_removal_anywhere_ends_in_oblivion(life_in, anywhere):
    """
    1. An engine is anywhere in its life; its declaration is removed.
    2. A dependent asks for it once more.

    Result: forgotten, with nothing alive; the start is ignored.
    """
    life = life_in(anywhere)
    life.tell(Removed(), StartRequested(by_user=False))
    life.advance(3600.0)
    assert life.world.forgotten
    assert (life.world.alive, life.world.timers, life.world.wrongs) == (0, {}, [])
    assert life.recorded.count("removed") == 1


def test_a_hold_anywhere_brings_it_down_and_keeps_the_wish(life_in, anywhere):
    """
    1. An engine is anywhere in its life; the daemon ends and takes it along.
    2. A start arrives. 3. A new daemon resumes.

    Result: down with nothing alive; the start is ignored; the new daemon brings up what was wanted up,
    save what had failed.
    """
    life = life_in(anywhere)
    wanted = life.engine.desired
    life.tell(StopRequested(hold=True), StartRequested())
    life.advance(3600.0)
    assert life.engine.state in ("inactive", "failed")
    assert (life.world.alive, life.engine.desired) == (0, wanted)
    down = life.engine.state
    kind_again(life)
    life.daemon_restarts()
    life.advance(3600.0)
    expected = "active" if wanted == "running" and down == "inactive" else down
    assert life.engine.state == expected
    assert not life.engine.held


def test_a_new_declaration_is_what_is_launched(life_in, anywhere):
    """
    1. An engine is anywhere in its life; a reload changes its launch.

    Result: no plan of the old declaration is launched after that; what runs is marked.
    """
    life = life_in(anywhere)
    launches = len(life.world.launches)
    preflights = life.world.preflights
    spec = replace(life.engine.spec, restart=RestartPolicy(delay=0.0), env={"A": "2"})
    alive = life.engine.process is not None or life.engine.launching
    kind_again(life)
    life.tell(SpecReplaced(spec, needs_restart=True))
    assert life.engine.needs_restart is (alive or life.engine.tree_alive)
    life.advance(600.0)
    if len(life.world.launches) > launches:
        assert life.world.preflights > preflights
    assert life.world.wrongs == []


def test_an_engine_that_is_declared_again_while_it_goes_is_kept(life_in):
    """
    1. A removed engine is draining when its declaration comes back, and is started.

    Result: it stops, and comes up again; it is not forgotten.
    """
    life = life_in("active (ready)")
    life.tell(Removed(), SpecReplaced(SPEC), StartRequested(by_user=False))
    life.until("active (ready)")
    assert not life.world.forgotten
    assert len(life.world.launches) == 2


def test_a_start_during_a_stop_is_obeyed_after_it(life_in):
    """
    1. A stopping engine is started.

    Result: it ends first, then comes up as a new generation.
    """
    life = life_in("deactivating (stopping)")
    life.tell(StartRequested())
    assert life.history[-1] == "deactivating (stopping)"
    life.until("active (ready)")
    assert life.engine.generation == 2


def test_the_last_wish_counts(life_in):
    """
    1. A stopping engine is started, stopped, started and stopped.

    Result: inactive (stopped), one launch.
    """
    life = life_in("deactivating (stopping)")
    life.tell(StartRequested(), StopRequested(), StartRequested(), StopRequested())
    life.advance(600.0)
    assert life.history[-1] == "inactive (stopped)"
    assert len(life.world.launches) == 1


def test_a_completing_job_can_be_asked_for_again(life_in):
    """
    1. A job has exited with 0 and leaves a child behind; meanwhile it is started with `again`.

    Result: it runs once more.
    """
    life = life_in("active (running)")
    life.behaviour.outlived, life.world.children, life.behaviour.kills_after = True, 1, 3.0
    life.world.crash(ExitStatus(code=0))
    life.until("deactivating (releasing)")
    life.tell(StartRequested(again=True))
    life.until("active (running)")


@pytest.mark.parametrize("place", ["inactive (dead)", "failed (exit-code)", "activating (queued)"])
def test_the_removal_of_what_is_down_is_immediate(life_in, place):
    """
    1. An engine with no process is removed.

    Result: forgotten in the same step.
    """
    life = life_in(place)
    play = Playbook(life.engine, life.clock, hide=(ReleaseShim, *Playbook.hidden))
    assert play >> Removed() << Forget()
