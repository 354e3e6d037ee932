"""A new daemon: what it takes over, at every place of an engine's life, from every memory of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sagectl.core.actions import Drain, Forget, KillTree, ReleaseShim, SetTimer, StartProbe, StopProbes
from sagectl.core.adoption import Found, reconcile
from sagectl.core.engine import Desired, Engine, EngineSpec, Outcome, Process, State, Sub
from sagectl.core.events import (
    Exited,
    ProbeRole,
    Reattached,
    Removed,
    RestartRequested,
    Resumed,
    StartRequested,
    StopRequested,
    Timer,
    Vanished,
)
from sagectl.plugin import ExitStatus, LaunchPlan
from sagectl.testing import HEALTH, Behaviour, Life, Playbook, phase

SPEC = EngineSpec(name="chat", kind="exec", port=8001)
KILLED = ExitStatus(signal=9)
PROCESS = Process(pid=100, starttime=1, boot_id="boot", started=1000.0, started_wall=1.75e9)


def ready_life(behaviour: Behaviour | None = None) -> Life:
    life = Life(SPEC, behaviour or Behaviour())
    life.tell(StartRequested())
    life.until("active (ready)")
    return life


# --- Whole lives -------------------------------------------------------------------------------


def test_twenty_daemons_in_a_row_keep_a_serving_engine():
    """
    1. The daemon is killed twenty times while an engine serves.

    Result: the same process, the same counters and uptime, never doubled.
    """
    life = ready_life()
    before = life.engine
    for _ in range(20):
        life.daemon_restarts()
        assert phase(life.engine) == "active (ready)"
        life.advance(7.0)
    assert len(life.world.launches) == 1
    assert (life.engine.ready_since, life.engine.generation) == (before.ready_since, 1)
    assert life.world.probes.keys() == {ProbeRole.READINESS, ProbeRole.LIVENESS}


def test_a_crash_without_a_daemon_is_told_by_the_shim():
    """
    1. The daemon dies, then the engine. 2. A new daemon comes.

    Result: restarted; the exit status is known.
    """
    life = ready_life()
    life.world.crash(KILLED)
    life.daemon_restarts()
    assert life.engine.last_exit == KILLED
    life.until("active (ready)")
    assert (len(life.world.launches), life.engine.restart_count) == (2, 1)


def test_an_engine_that_vanished_with_its_shim_is_restarted():
    """
    1. Daemon, shim and engine are killed, and no file tells how.

    Result: an unknown status, which counts as a failure; restarted.
    """
    life = ready_life()
    life.world.main, life.world.generation = None, 0
    life.daemon_restarts()
    assert life.engine.last_exit == ExitStatus()
    life.until("active (ready)")


def test_a_dead_engine_with_leftovers_is_cleaned_up_before_its_restart():
    """
    1. Without a daemon the main process dies; two children live on.

    Result: releasing, then restarted; never two generations at once.
    """
    life = ready_life(Behaviour(children=2, outlived=True, kills_after=3.0))
    life.world.crash(KILLED)
    life.daemon_restarts()
    assert phase(life.engine) == "deactivating (releasing)"
    life.until("active (ready)")
    assert life.world.wrongs == []


def test_a_lost_database_is_rebuilt_from_the_shims_memory():
    """
    1. The database is unreadable; the shim carries the engine as of its launch.

    Result: adopted, ready again, same id; the same process.
    """
    life = Life(SPEC)
    life.tell(StartRequested())
    life.until("activating (starting)")
    told = life.engine
    life.until("active (ready)")
    life.daemon_restarts(told=told)
    life.until("active (ready)")
    assert (life.engine.id, len(life.world.launches)) == (told.id, 1)


def test_a_daemon_that_dies_anywhere_changes_where_nothing_leads(life_in, anywhere):
    """
    1. An engine is anywhere in its life. The daemon is killed, and a new one comes.
    2. An hour passes.

    Result: it is where it would be without that: up, failed, or down; one process at most.
    """
    other = life_in(anywhere)
    other.advance(3600.0)
    life = life_in(anywhere)
    life.daemon_restarts()
    life.advance(3600.0)
    assert phase(life.engine) == phase(other.engine)
    assert life.world.wrongs == []
    assert len(life.world.launches) == len(other.world.launches)


@pytest.mark.parametrize("request_", [StopRequested(), RestartRequested(), Removed(), StartRequested()])
def test_requests_survive_the_daemon_that_took_them(life_in, anywhere, request_):
    """
    1. An engine is anywhere in its life and gets a request; the daemon is killed at once.

    Result: after an hour it is where the request leads.
    """
    other, life = life_in(anywhere), life_in(anywhere)
    other.tell(request_)
    life.tell(request_)
    if life.world.forgotten:
        return
    life.daemon_restarts()
    for either in (life, other):
        either.advance(3600.0)
    assert (phase(life.engine), life.world.forgotten) == (phase(other.engine), other.world.forgotten)
    assert life.world.wrongs == []


# --- Steps -------------------------------------------------------------------------------------


def test_a_starting_engine_is_probed_anew_and_timed_from_now(life_in):
    """
    1. A daemon dies while an engine loads; it is found alive an hour later.

    Result: still starting; its startup probe is asked, and its silence timed from now.
    """
    life = life_in("activating (starting)")
    play = Playbook(life.engine, life.clock)
    assert (
        play
        >> 3600.0
        >> Reattached(1, PROCESS)
        << SetTimer(1, Timer.STARTUP, 30.0)
        << StartProbe(1, ProbeRole.STARTUP, (HEALTH,), 10.0, 5.0)
        << "activating (starting)"
    )
    assert play.engine.last_advance == life.clock.monotonic


def test_a_drain_goes_on_as_a_drain(life_in):
    """
    1. A daemon dies while an engine drains.

    Result: draining, with the requests in flight watched again and a deadline.
    """
    life = life_in("deactivating (draining)")
    life.daemon_restarts()
    assert phase(life.engine) == "deactivating (draining)"
    assert Timer.DRAIN in life.world.timers


def test_a_killing_goes_on_as_a_killing(life_in):
    """
    1. A daemon dies after `stop.timeout`, while it kills the tree; the main process still lives.

    Result: SIGKILL to the tree again, no second SIGTERM.
    """
    life = life_in("deactivating (stopping)")
    engine = replace(life.engine, sub=Sub.RELEASING)
    play = Playbook(engine, life.clock)
    assert play >> Reattached(1, PROCESS) << KillTree(1) << "deactivating (releasing)"


def test_what_was_never_launched_is_begun_again(life_in):
    """
    1. A daemon dies after it decided on a launch, before the shim heard of it.

    Result: a new start, from the dependencies and preflight on; not counted as a failure.
    """
    life = life_in("activating (preflight)")
    life.world.do = lambda action: None  # type: ignore[method-assign]
    life.until("activating (starting)")
    del life.world.do
    life.daemon_restarts()
    assert phase(life.engine) == "activating (preflight)"
    assert life.engine.consecutive_failures == 0
    life.until("active (ready)")


def test_a_backoff_goes_on_for_what_is_left_of_it(life_in):
    """
    1. A daemon dies half a second into a delay of one; the next comes at once, another after a minute.

    Result: half a second is left; after a minute none.
    """
    life = life_in("activating (backoff)")
    play = Playbook(life.engine, life.clock)
    assert play >> 0.5 >> Resumed() << SetTimer(1, Timer.BACKOFF, 0.5) << "activating (backoff)"
    assert play >> 60.0 >> Resumed() << SetTimer(1, Timer.BACKOFF, 0.0)


def test_a_removal_that_was_not_finished_is_finished(life_in):
    """
    1. A daemon dies between removing an engine that is down and forgetting it.

    Result: the new daemon forgets it.
    """
    life = life_in("inactive (stopped)")
    play = Playbook(replace(life.engine, removed=True), life.clock, hide=(ReleaseShim, *Playbook.hidden))
    assert play >> Resumed() << Forget()


def test_a_process_of_an_engine_that_should_be_down_is_stopped():
    """
    1. The database says inactive (stopped), and a process is found alive.

    Result: it is stopped.
    """
    life = ready_life()
    stopped = replace(
        life.engine, state=State.INACTIVE, sub=Sub.STOPPED, desired=Desired.STOPPED, process=None
    )
    life.daemon_restarts(stored=stopped)
    life.until("inactive (stopped)")
    assert life.world.alive == 0


@pytest.mark.parametrize(
    ("state", "sub"),
    [
        (State.ACTIVATING, Sub.QUEUED),
        (State.ACTIVATING, Sub.PREFLIGHT),
        (State.ACTIVATING, Sub.BACKOFF),
        (State.FAILED, Sub.EXIT_CODE),
    ],
)
@pytest.mark.parametrize("behind", [-1, 0, 1])
def test_a_process_found_alive_that_nobody_expected_is_kept(state, sub, behind):
    """
    1. The database says that a wanted engine has no process, in this generation, the one before or after.
    2. Its process is found alive.

    Result: it is taken over and becomes ready; no second process.
    """
    life = ready_life()
    stored = replace(life.engine, state=state, sub=sub, process=None, generation=1 + behind)
    life.daemon_restarts(stored=stored)
    life.until("active (ready)")
    assert life.engine.generation == life.world.generation
    life.advance(600.0)
    assert (len(life.world.launches), life.world.wrongs) == (1, [])


@pytest.mark.parametrize(
    ("state", "sub", "desired", "place"),
    [
        (State.INACTIVE, Sub.STOPPED, Desired.STOPPED, "inactive (stopped)"),
        (State.INACTIVE, Sub.COMPLETED, Desired.STOPPED, "inactive (completed)"),
        (State.ACTIVATING, Sub.BACKOFF, Desired.RUNNING, "active (ready)"),
        (State.ACTIVATING, Sub.PREFLIGHT, Desired.RUNNING, "active (ready)"),
        (State.FAILED, Sub.SIGNAL, Desired.RUNNING, "active (ready)"),
    ],
)
def test_leftovers_of_a_start_that_was_thought_over_are_ended(state, sub, desired, place):
    """
    1. The database says that the last start is over; two of its children are found alive.

    Result: they are killed; then the engine is where it was or wanted to be. A failure is judged anew.
    """
    life = ready_life(Behaviour(children=2, outlived=True))
    life.world.crash(KILLED)
    stored = replace(life.engine, state=state, sub=sub, desired=desired, process=None, tree_alive=False)
    life.daemon_restarts(stored=stored)
    assert phase(life.engine) == "deactivating (releasing)"
    life.until(place)
    assert life.world.wrongs == []
    assert life.world.children == (2 if place == "active (ready)" else 0)


def test_a_failure_with_leftovers_of_a_policy_no_engine_stays_the_same_failure(life_in):
    """
    1. An engine with `policy = "no"` has failed; a child of it is found alive.

    Result: the child is killed; the engine is failed as before, not started.
    """
    life = life_in("failed (exit-code)")
    found = Found(1, None, ExitStatus(code=1), left=1)
    adopted = reconcile(life.engine, found)
    assert adopted is not None
    engine, event = adopted
    life.engine = engine
    life.world.generation, life.world.children = 1, 1
    life.tell(event)
    life.advance(3600.0)
    assert (phase(life.engine), life.world.alive) == ("failed (exit-code)", 0)
    assert len(life.world.launches) == 1


# --- reconcile, as a table ---------------------------------------------------------------------

BASE = Engine("e1", SPEC, desired=Desired.RUNNING, generation=3, plan=LaunchPlan(("x",)))


def at(state: State, sub: Sub, **more) -> Engine:
    if state is State.DEACTIVATING:
        more.setdefault("outcome", Outcome(Sub.STOPPED, "stopped by the user"))
    return replace(BASE, state=state, sub=sub, **more)


ACTIVE = at(State.ACTIVE, Sub.READY, process=PROCESS, tree_alive=True)
LAUNCHING = at(State.ACTIVATING, Sub.STARTING, launching=True)
WAITING = at(State.ACTIVATING, Sub.BACKOFF)
CHECKING = at(State.ACTIVATING, Sub.PREFLIGHT)
DOWN = at(State.INACTIVE, Sub.STOPPED, desired=Desired.STOPPED)
RELEASING = at(State.DEACTIVATING, Sub.RELEASING, tree_alive=True)


@pytest.mark.parametrize(
    ("stored", "found", "event"),
    [
        (ACTIVE, None, Vanished(3)),
        (ACTIVE, Found(3, process=PROCESS), Reattached(3, PROCESS)),
        (ACTIVE, Found(3, exit=KILLED), Exited(3, KILLED, 0)),
        (ACTIVE, Found(3, exit=KILLED, left=2), Exited(3, KILLED, 2)),
        (ACTIVE, Found(3, left=2), Exited(3, ExitStatus(), 2)),
        (ACTIVE, Found(3), Vanished(3)),
        (ACTIVE, Found(2, exit=KILLED), Vanished(3)),
        (ACTIVE, Found(4, process=PROCESS), Reattached(4, PROCESS)),
        (ACTIVE, Found(4, exit=KILLED), Exited(4, KILLED, 0)),
        (LAUNCHING, None, Resumed()),
        (LAUNCHING, Found(2, exit=KILLED), Resumed()),
        (LAUNCHING, Found(3), Resumed()),
        (LAUNCHING, Found(3, process=PROCESS), Reattached(3, PROCESS)),
        (LAUNCHING, Found(3, exit=KILLED), Exited(3, KILLED, 0)),
        (LAUNCHING, Found(2, left=1), Exited(2, ExitStatus(), 1)),
        (LAUNCHING, Found(2, process=PROCESS), Reattached(2, PROCESS)),
        (WAITING, None, Resumed()),
        (WAITING, Found(3, exit=KILLED), Resumed()),
        (WAITING, Found(4, exit=KILLED), Exited(4, KILLED, 0)),
        (WAITING, Found(3, exit=KILLED, left=1), Exited(3, KILLED, 1)),
        (CHECKING, Found(2, exit=KILLED), Resumed()),
        (CHECKING, Found(3, exit=KILLED), Exited(3, KILLED, 0)),
        (CHECKING, Found(3, process=PROCESS), Reattached(3, PROCESS)),
        (DOWN, None, Resumed()),
        (DOWN, Found(3, exit=KILLED), Resumed()),
        (DOWN, Found(3, process=PROCESS), Reattached(3, PROCESS)),
        (RELEASING, None, Resumed()),
        (RELEASING, Found(3, exit=KILLED), Exited(3, KILLED, 0)),
        (RELEASING, Found(3, exit=KILLED, left=1), Exited(3, KILLED, 1)),
        (ACTIVE, Found(3, process=PROCESS, same_boot=False), Resumed()),
    ],
)
def test_what_is_found_decides_the_event(stored, found, event):
    adopted = reconcile(stored, found)
    assert adopted is not None
    assert adopted[1] == event
    if not isinstance(event, Resumed):
        assert adopted[0].generation == event.generation


def test_the_newer_memory_is_gone_on_with():
    newer = replace(ACTIVE, generation=4, reason="told")
    later = replace(ACTIVE, since=5.0, reason="told")
    same = replace(ACTIVE, reason="told")
    for told, reason in ((newer, "told"), (later, "told"), (same, "")):
        adopted = reconcile(ACTIVE, Found(told.generation, process=PROCESS, engine=told))
        assert adopted is not None
        assert adopted[0].reason == reason
    adopted = reconcile(newer, Found(4, process=PROCESS, engine=ACTIVE))
    assert adopted == (newer, Reattached(4, PROCESS))


def test_an_engine_that_nobody_remembers_cannot_be_gone_on_with():
    assert reconcile(None, None) is None
    assert reconcile(None, Found(1, process=PROCESS)) is None


def test_a_hold_ends_with_the_daemon_that_held():
    """
    1. A daemon takes an engine along as it ends, and is killed meanwhile; the engine ends.

    Result: the new daemon starts it again.
    """
    life = ready_life()
    life.tell(StopRequested(hold=True, drain=0))
    life.world.crash(KILLED)
    life.daemon_restarts()
    assert not life.engine.held
    life.until("active (ready)")


def test_a_reattached_engine_without_a_plan_is_taken_for_ready():
    """
    1. Both memories are too old to know the plan; the process lives.

    Result: active, without probes, rather than restarted for a fault of the supervisor.
    """
    play = Playbook(replace(CHECKING, plan=None))
    assert play >> Reattached(3, PROCESS) << SetTimer(3, Timer.STABLE, 60.0) << "active (ready)"


def test_an_active_engine_that_should_be_down_is_drained():
    """
    1. The database knows of the stop, the state is still active.

    Result: it is drained, then stopped.
    """
    play = Playbook(replace(ACTIVE, desired=Desired.STOPPED, port=8001), hide=(StopProbes, *Playbook.hidden))
    deadline = SetTimer(3, Timer.DRAIN, 30.0)
    assert play >> Reattached(3, PROCESS) << Drain(3) << deadline << "deactivating (draining)"
