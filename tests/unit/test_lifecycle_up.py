"""The way up: dependencies, preflight, launch, startup probes, slow and silent loads."""

from __future__ import annotations

from dataclasses import replace

from sagectl.core.actions import (
    AwaitDependencies,
    Launch,
    MeasureProgress,
    Preflight,
    ReleaseShim,
    SendSignal,
    SetTimer,
    StartProbe,
    StopProbes,
)
from sagectl.core.engine import Desired, Engine, EngineSpec, Process, RestartPolicy, RestartWhen
from sagectl.core.events import (
    DependenciesReady,
    DependenciesWaiting,
    Exited,
    PreflightPassed,
    PreflightRefused,
    ProbeFailed,
    ProbeRole,
    ProbeSucceeded,
    ProgressMeasured,
    Spawned,
    SpawnFailed,
    StartRequested,
    StatusNotified,
    StopRequested,
    Timer,
    TimerFired,
)
from sagectl.plugin import ExitStatus, LaunchPlan, Mode, Refusal
from sagectl.testing import HEALTH, PLAN, Behaviour, Life, Playbook

SPEC = EngineSpec(name="chat", kind="exec", port=8001)
PROCESS = Process(pid=100, starttime=1, boot_id="boot", started=1000.0, started_wall=1.75e9)
STARTUP = StartProbe(1, ProbeRole.STARTUP, (HEALTH,), 10.0, 5.0)
READINESS = StartProbe(1, ProbeRole.READINESS, (HEALTH,), 10.0, 5.0)
LIVENESS = StartProbe(1, ProbeRole.LIVENESS, (HEALTH,), 10.0, 5.0)
STABLE = SetTimer(1, Timer.STABLE, 60.0)
LOOK = SetTimer(1, Timer.STARTUP, 30.0)


def begun(spec: EngineSpec = SPEC) -> Playbook:
    play = Playbook(Engine("e1", spec))
    assert play >> StartRequested() << Preflight(1) << "activating (preflight)"
    return play


def launched(spec: EngineSpec = SPEC, plan: LaunchPlan = PLAN) -> Playbook:
    play = begun(spec)
    assert play >> PreflightPassed(1, plan, 8001) << Launch(1, plan) << LOOK << "activating (starting)"
    return play


def test_an_engine_comes_up_probe_by_probe():
    """
    1. The user starts an engine without dependencies: preflight, launch, startup probe.
    2. The startup probe succeeds.

    Result: active (ready); readiness and liveness are asked from now on.
    """
    assert (
        launched()
        >> Spawned(1, PROCESS)
        << STARTUP
        << "activating (starting)"
        >> ProbeSucceeded(1, ProbeRole.STARTUP)
        << STABLE
        << READINESS
        << LIVENESS
        << "active (ready)"
    )


def test_an_engine_without_a_startup_probe_is_ready_when_it_runs():
    """
    1. The plan has no startup probe.
    2. The process is spawned.

    Result: active (ready) at once.
    """
    assert launched(plan=LaunchPlan(("x",))) >> Spawned(1, PROCESS) << STABLE << "active (ready)"


def test_a_job_that_runs_is_running():
    """
    1. A job is launched, without a startup probe.
    2. Its process is spawned.

    Result: active (running).
    """
    job = replace(SPEC, mode=Mode.RUN)
    assert launched(job, LaunchPlan(("x",))) >> Spawned(1, PROCESS) << STABLE << "active (running)"


def test_dependencies_are_waited_for_before_anything_else():
    """
    1. An engine that depends on another is started.
    2. The other is not up yet, then it is.

    Result: queued, with the reason, then preflight.
    """
    play = Playbook(Engine("e1", replace(SPEC, depends_on=("embed",))))
    assert play >> StartRequested() << AwaitDependencies(1) << "activating (queued)"
    assert play >> DependenciesWaiting(1, ("embed",), "waiting for embed (failed)") << "activating (queued)"
    assert (play.engine.waiting_for, play.engine.reason) == (("embed",), "waiting for embed (failed)")
    assert play >> DependenciesReady(1) << Preflight(1) << "activating (preflight)"
    assert play.engine.waiting_for == ()


def test_a_refused_preflight_fails_with_the_reason():
    """
    1. Preflight refuses for something that waiting cannot mend.

    Result: failed (preflight); no process was tried; the shim may end.
    """
    play = begun()
    refusal = Refusal("no model at /m", "download it", ("0 of 3 files",))
    assert play >> PreflightRefused(1, refusal) << ReleaseShim() << "failed (preflight)"
    assert play.engine.reason == "no model at /m"
    assert play.engine.diagnosis is not None
    assert play.engine.diagnosis.remedy == "download it"
    assert play.engine.diagnosis.arithmetic == ("0 of 3 files",)


def test_a_refusal_that_may_pass_is_tried_again():
    """
    1. Preflight refuses because the port is taken, which may end.

    Result: backoff, then preflight again.
    """
    refusal = Refusal("port 8001 is in use", "stop its holder", retryable=True)
    assert (
        begun()
        >> PreflightRefused(1, refusal)
        << SetTimer(1, Timer.BACKOFF, 1.0)
        << "activating (backoff)"
        >> 1.0
        >> TimerFired(1, Timer.BACKOFF)
        << Preflight(2)
        << "activating (preflight)"
    )


def test_a_failed_spawn_counts_as_a_failure():
    """
    1. exec fails.

    Result: backoff; with `policy = "no"` failed, with the error as reason.
    """
    play = launched()
    assert play >> SpawnFailed(1, "no such file") << SetTimer(1, Timer.BACKOFF, 1.0) << "activating (backoff)"
    assert (play.engine.consecutive_failures, play.engine.launching) == (1, False)
    never = replace(SPEC, restart=RestartPolicy(policy=RestartWhen.NO))
    play = launched(never)
    assert play >> SpawnFailed(1, "no such file") << ReleaseShim() << "failed (preflight)"
    assert play.engine.reason == "no such file"


def test_a_slow_load_that_progresses_is_never_killed():
    """
    1. An engine loads for an hour, and writes to its log all the while.

    Result: it becomes ready; nothing was sent to it.
    """
    life = Life(SPEC, Behaviour(ready_after=3600.0, progresses=True))
    life.tell(StartRequested())
    life.until("active (ready)", within=3601.0)
    assert life.world.signals == []
    assert len(life.world.launches) == 1


def test_a_silent_load_is_ended_at_its_timeout():
    """
    1. An engine starts and shows no sign of life.
    2. `startup_timeout` seconds pass.

    Result: SIGTERM, and the failure is a timeout, whose reason says what was waited for.
    """
    life = Life(replace(SPEC, restart=RestartPolicy(policy=RestartWhen.NO)), Behaviour(ready_after=None))
    life.behaviour.progresses = False
    life.tell(StartRequested())
    began = life.clock.monotonic
    life.until("deactivating (stopping)")
    assert life.clock.monotonic - began == 600.0
    life.until("failed (timeout)")
    assert "no sign of progress for 600 s" in life.engine.reason


def test_silence_is_timed_from_the_last_progress():
    """
    1. A load progresses for 500 s, then falls silent.

    Result: it is ended 600 s after its last progress, not after its start.
    """
    life = Life(SPEC, Behaviour(ready_after=None, progresses=True))
    life.tell(StartRequested())
    began = life.clock.monotonic
    life.advance(500.0)
    life.behaviour.progresses = False
    life.until("deactivating (stopping)")
    assert life.clock.monotonic - began == 480.0 + 600.0  # the last look that saw progress was at 480 s


def test_the_startup_timer_asks_for_progress_and_is_set_again():
    """
    1. The startup timer fires; the load advanced.

    Result: still starting, and the timer runs again.
    """
    play = launched()
    assert play >> Spawned(1, PROCESS) << STARTUP
    assert play >> 30.0 >> TimerFired(1, Timer.STARTUP) << MeasureProgress(1)
    assert play >> ProgressMeasured(1, True, "logged") << LOOK << "activating (starting)"


def test_an_engine_may_ask_for_more_time():
    """
    1. A silent load says EXTEND_TIMEOUT_USEC for 20 minutes.

    Result: it is ended 20 minutes after that, not at its timeout.
    """
    life = Life(SPEC, Behaviour(ready_after=None, progresses=False))
    life.tell(StartRequested())
    life.advance(0.0)
    life.tell(StatusNotified(1, "loading shard 1 of 9", extend=1200.0))
    began = life.clock.monotonic
    assert life.engine.reason == "loading shard 1 of 9"
    life.until("deactivating (stopping)")
    assert life.clock.monotonic - began == 1200.0


def test_a_startup_that_fails_so_far_says_what_is_missing():
    """
    1. The startup probe answers no.

    Result: still starting; the answer is the reason.
    """
    play = launched()
    assert play >> Spawned(1, PROCESS) << STARTUP
    assert play >> ProbeFailed(1, ProbeRole.STARTUP, "connection refused") << "activating (starting)"
    assert play.engine.reason == "starting: connection refused"


def test_an_engine_that_ends_while_it_starts_is_a_failure():
    """
    1. The process ends before its startup probe succeeds, and nothing of it is left.

    Result: backoff; probes and timers are quiet.
    """
    play = launched()
    assert (
        play
        >> Spawned(1, PROCESS)
        << STARTUP
        >> Exited(1, ExitStatus(code=2), left=0)
        << StopProbes()
        << SetTimer(1, Timer.BACKOFF, 1.0)
        << "activating (backoff)"
    )
    assert play.engine.reason == "exited with code 2; restarting in 1.0 s"
    assert (play.engine.restart_count, play.engine.unready_starts) == (1, 1)


def test_an_exit_that_overtakes_its_spawn_is_taken_in_once():
    """
    1. The exit of a process arrives before the news that it was spawned.
    2. The news arrives.

    Result: one failure; the dead process is not taken for alive.
    """
    play = launched()
    assert play >> Exited(1, ExitStatus(code=2), 0) << StopProbes() << SetTimer(1, Timer.BACKOFF, 1.0)
    assert play >> Spawned(1, PROCESS) << "activating (backoff)"
    assert play.engine.process is None


def test_a_busy_shim_is_emptied_first():
    """
    1. The shim refuses to launch: processes of an earlier start are alive.
    2. They are killed, and gone.

    Result: releasing, then backoff, never a second process beside them.
    """
    life = Life(SPEC)
    life.world.children = 3
    life.tell(StartRequested())
    life.until("deactivating (releasing)")
    assert life.engine.tree_alive
    life.until("activating (backoff)")
    assert life.world.alive == 0
    life.until("active (ready)")


def test_a_stale_generation_changes_nothing():
    """
    1. An engine is in its second start.
    2. Every kind of event of the first start arrives.

    Result: the engine is the very same, and nothing is done.
    """
    life = Life(SPEC, Behaviour(exits_after=0.5))
    life.tell(StartRequested())
    life.until("activating (backoff)")
    life.behaviour.exits_after = None
    life.until("active (ready)")
    play = Playbook(life.engine, life.clock, hide=())
    for role in ProbeRole:
        assert play >> ProbeSucceeded(1, role) >> ProbeFailed(1, role, "no")
    for timer in Timer:
        assert play >> TimerFired(1, timer)
    assert play >> Spawned(1, PROCESS) >> SpawnFailed(1, "no", busy=True) >> Exited(1, ExitStatus(code=0), 0)
    assert play >> PreflightPassed(1, PLAN, 1) >> DependenciesReady(1) >> ProgressMeasured(1, False)
    assert play.engine is life.engine


def test_a_start_of_what_is_on_its_way_changes_only_the_wish():
    """
    1. An engine is starting, and started once more.

    Result: nothing new is asked for.
    """
    play = launched()
    assert play >> StartRequested() << "activating (starting)"
    assert (play.engine.generation, play.engine.desired) == (1, Desired.RUNNING)


def test_status_text_does_not_hide_why_an_engine_is_not_up(life_in):
    """
    1. An engine waits for its restart; a late STATUS= of its last start arrives.

    Result: the reason stays the failure's.
    """
    life = life_in("activating (backoff)")
    life.tell(StatusNotified(1, "all is well"))
    assert "restarting" in life.engine.reason


def test_stop_during_launch_signals_as_soon_as_there_is_a_process():
    """
    1. An engine is being launched when the user stops it.
    2. Its process comes to be.

    Result: SIGTERM at that moment, not before; then stopped.
    """
    life = Life(SPEC)
    life.tell(StartRequested())
    life.until("activating (starting)")
    play = Playbook(life.engine, life.clock)
    assert play >> StopRequested() << StopProbes() << "deactivating (stopping)"
    assert (
        play
        >> Spawned(1, PROCESS)
        << StopProbes()
        << SendSignal(1, 15)
        << SetTimer(1, Timer.STOP, 20.0)
        >> Exited(1, ExitStatus(signal=15), 0)
        << StopProbes()
        << ReleaseShim()
        << "inactive (stopped)"
    )


def test_a_stop_timer_during_a_launch_kills_nothing_yet():
    """
    1. An engine is stopped while it is launched, and asks for time before the news of its spawn arrives.
    2. That time is over.

    Result: the launch is waited for: what there is to kill is not known yet.
    """
    play = launched()
    assert play >> StopRequested() << StopProbes() << "deactivating (stopping)"
    assert play >> StatusNotified(1, extend=5.0) << SetTimer(1, Timer.STOP, 5.0)
    assert play >> 5.0 >> TimerFired(1, Timer.STOP) << "deactivating (stopping)"
