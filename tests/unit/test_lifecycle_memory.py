"""GPU memory in an engine's life, as dialogues."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sagectl.core.actions import (
    AwaitMemory,
    AwaitRelease,
    KillTree,
    Launch,
    Plan,
    Preflight,
    Record,
    ReleaseShim,
    SendSignal,
    SetTimer,
    StartProbe,
    StopProbes,
)
from sagectl.core.engine import Engine, EngineSpec, Reservation, RestartPolicy, StopPolicy
from sagectl.core.events import (
    Exited,
    GpuFailed,
    MemoryExceeded,
    MemoryGranted,
    MemoryLacking,
    MemoryNeeded,
    MemoryReleased,
    PreflightPassed,
    PreflightRefused,
    Resumed,
    Spawned,
    SpecReplaced,
    StartRequested,
    StopRequested,
    Timer,
    TreeEmpty,
)
from sagectl.plugin import ExitStatus, LaunchPlan, Refusal
from sagectl.testing import ANY_GPU, Behaviour, Life, Playbook

SPEC = EngineSpec("chat", "llm", stop=StopPolicy(drain=0), restart=RestartPolicy(delay=0))
PLAN = LaunchPlan(("serve",))
OTHER = Reservation((1,), (4 << 30,), (24 << 30,))
CRASH = ExitStatus(signal=9)


def life(**behaviour: object) -> Life:
    return Life(SPEC, Behaviour(reservation=ANY_GPU, **behaviour))  # type: ignore[arg-type]


def up() -> Life:
    found = life()
    found.tell(StartRequested())
    found.until("active (ready)")
    return found


def test_an_engine_queues_for_memory_before_its_start_is_planned() -> None:
    """Result: queued, then planned with what it was granted; the reservation is the engine's from then on."""
    play = Playbook(Engine("e1", SPEC))
    assert play >> StartRequested() << Preflight(1)
    assert play >> MemoryNeeded(1) << AwaitMemory(1) << "activating (queued)"
    assert play.engine.reservation is None
    assert play >> MemoryLacking(1, "needs 2 GiB", ("other",)) << "activating (queued)"
    assert (play.engine.reason, play.engine.waiting_for) == ("needs 2 GiB", ("other",))
    assert play >> MemoryGranted(1, ANY_GPU) << Plan(1) << "activating (preflight)"
    assert play.engine.reservation == ANY_GPU
    assert play.engine.waiting_for == ()
    play >> PreflightPassed(1, PLAN, None)
    assert play << Launch(1, PLAN) << SetTimer(1, Timer.STARTUP, 30.0) << "activating (starting)"


def test_what_can_never_be_placed_fails_while_it_queues() -> None:
    """A budget is lowered by a reload while the engine waits. Result: refused, without a restart."""
    play = Playbook(Engine("e1", SPEC))
    assert play >> StartRequested() << Preflight(1) >> MemoryNeeded(1) << AwaitMemory(1)
    play >> PreflightRefused(1, Refusal("can never be placed here", "lower it"))
    assert play << ReleaseShim() << "failed (preflight)"
    assert play >> MemoryGranted(1, ANY_GPU) << "failed (preflight)"
    assert play.engine.reservation is None


@pytest.mark.parametrize("granted", [False, True])
def test_a_stop_before_the_launch_gives_everything_back(granted: bool) -> None:
    play = Playbook(Engine("e1", SPEC))
    assert play >> StartRequested() << Preflight(1) >> MemoryNeeded(1) << AwaitMemory(1)
    if granted:
        assert play >> MemoryGranted(1, ANY_GPU) << Plan(1)
    assert play >> StopRequested() << ReleaseShim() << "inactive (stopped)"
    assert play.engine.reservation is None
    assert play >> MemoryGranted(1, OTHER) << "inactive (stopped)"


def test_another_declaration_asks_anew() -> None:
    play = Playbook(Engine("e1", SPEC))
    assert play >> StartRequested() << Preflight(1) >> MemoryNeeded(1) << AwaitMemory(1)
    assert play >> SpecReplaced(replace(SPEC, gpu_memory=1 << 30)) << Preflight(2) << "activating (preflight)"
    assert play >> MemoryGranted(1, ANY_GPU) << "activating (preflight)"


def test_down_means_that_the_driver_has_the_memory_back() -> None:
    """
    1. A ready engine is stopped and its last process ends.
    2. The driver lists it a while longer, and says so at last.

    Result: releasing until then; inactive only after, with a warning.
    """
    engine = up().engine
    play = Playbook(engine)
    play >> StopRequested()
    assert play << StopProbes() << SendSignal(1, 15) << SetTimer(1, Timer.STOP, 20.0)
    play >> Exited(1, ExitStatus(code=0), left=0)
    assert play << StopProbes() << AwaitRelease(1) << "deactivating (releasing)"
    assert play.engine.reservation == ANY_GPU
    loud = Playbook(play.engine, hide=())
    loud >> MemoryReleased(1, "the driver lists it still")
    loud << Record("not-released", "the driver lists it still", "warning")
    assert loud << Record("stopped", "stopped by the user") << ReleaseShim() << "inactive (stopped)"
    assert loud.engine.reservation is None


def test_orphans_end_before_the_driver_is_asked() -> None:
    play = Playbook(up().engine)
    assert play >> Exited(1, CRASH, left=2) << StopProbes() << KillTree(1) << "deactivating (releasing)"
    assert play >> MemoryReleased(1) << "deactivating (releasing)"
    assert play >> TreeEmpty(1) << AwaitRelease(1) << "deactivating (releasing)"


def test_a_crash_keeps_the_reservation_and_asks_anew_after_the_release() -> None:
    """Result: no start before the memory is back; the next one asks, and may be placed elsewhere."""
    play = Playbook(up().engine)
    play >> Exited(1, CRASH, left=0) << StopProbes() << AwaitRelease(1)
    assert play << "deactivating (releasing)"
    assert play >> MemoryReleased(1) << Preflight(2) << "activating (preflight)"
    assert play.engine.reservation == ANY_GPU  # nobody takes its place meanwhile
    assert play >> MemoryNeeded(2) << AwaitMemory(2) >> MemoryGranted(2, OTHER) << Plan(2)
    assert play.engine.reservation == OTHER


def test_a_reservation_is_given_up_by_who_has_to_wait() -> None:
    """It asks for more than before, which is not there: what it had is of no use to it."""
    play = Playbook(up().engine)
    assert play >> Exited(1, CRASH, left=0) << StopProbes() << AwaitRelease(1)
    assert play >> MemoryReleased(1) << Preflight(2) >> MemoryNeeded(2) << AwaitMemory(2)
    assert play >> MemoryLacking(2, "needs more") << "activating (queued)"
    assert play.engine.reservation is None


def test_a_reservation_outlasts_the_backoff() -> None:
    found = Life(replace(SPEC, restart=RestartPolicy(delay=5)), Behaviour(reservation=ANY_GPU))
    found.tell(StartRequested())
    found.until("active (ready)")
    found.world.crash(CRASH)
    found.until("activating (backoff)")
    assert found.engine.reservation == ANY_GPU
    found.until("active (ready)")


def test_a_start_that_a_neighbour_broke_is_not_counted_three_times() -> None:
    play = Playbook(Engine("e1", SPEC))
    assert play >> StartRequested() << Preflight(1)
    for generation in range(1, 5):
        assert play >> MemoryNeeded(generation) << AwaitMemory(generation)
        assert play >> MemoryGranted(generation, ANY_GPU) << Plan(generation)
        plan = LaunchPlan(("serve",), probes=life().behaviour.plan.probes)
        play >> PreflightPassed(generation, plan, None) << Launch(generation, plan)
        assert play << SetTimer(generation, Timer.STARTUP, 30.0)
        process = up().engine.process
        assert process is not None
        startup = StartProbe(generation, "startup", plan.probes.startup, 10.0, 5.0)  # type: ignore[arg-type]
        assert play >> Spawned(generation, process) << startup
        play >> Exited(generation, ExitStatus(code=1), 0, disturbed="old gave memory of GPU 0 back")
        assert play << StopProbes() << AwaitRelease(generation)
        assert play.engine.restart_count == 0
        if generation < 4:
            assert play >> MemoryReleased(generation) << Preflight(generation + 1)
    play >> MemoryReleased(4) << SetTimer(4, Timer.BACKOFF, 0.1)
    assert play << "activating (backoff)"
    assert (play.engine.restart_count, play.engine.disturbances) == (1, 3)


def test_an_overrun_is_a_failure_with_a_limit() -> None:
    found = Life(replace(SPEC, restart=RestartPolicy(delay=0, limit=2)), Behaviour(reservation=ANY_GPU))
    found.tell(StartRequested())
    for _ in range(3):
        found.until("active (ready)")
        found.tell(MemoryExceeded(found.engine.generation, "it holds 4 GiB, where 2 are reserved"))
        found.until("deactivating (releasing)")
    found.until("failed (start-limit)")
    assert found.engine.reason.startswith("it holds 4 GiB, where 2 are reserved")


def test_a_gpu_that_fails_ends_the_engine_whatever_it_still_does() -> None:
    play = Playbook(up().engine)
    play >> GpuFailed(1, "GPU 0 has fallen off the bus") << StopProbes() << SendSignal(1, 15)
    assert play << SetTimer(1, Timer.STOP, 20.0) << "deactivating (stopping)"
    assert play >> Exited(1, CRASH, left=0) << StopProbes() << AwaitRelease(1)
    assert play >> MemoryReleased(1) << Preflight(2) << "activating (preflight)"
    assert play.engine.restart_count == 1
    assert play.engine.consecutive_failures == 1


def test_the_age_in_the_queue_outlives_a_daemon_and_another_declaration() -> None:
    play = Playbook(Engine("e1", SPEC))
    assert play >> StartRequested() << Preflight(1) >> MemoryNeeded(1) << AwaitMemory(1)
    since = play.engine.queued_since
    assert since == play.clock.monotonic
    assert play >> 60.0 >> Resumed() << Preflight(2) >> MemoryNeeded(2) << AwaitMemory(2)
    assert play.engine.queued_since == since
    play >> SpecReplaced(replace(SPEC, gpu_memory=1 << 30)) << Preflight(3)
    assert play >> MemoryNeeded(3) << AwaitMemory(3)
    assert play.engine.queued_since == since
    assert play >> MemoryGranted(3, ANY_GPU) << Plan(3)
    assert play.engine.queued_since is None


def test_without_gpus_nothing_waits_for_a_driver() -> None:
    found = Life(SPEC, Behaviour())
    found.tell(StartRequested())
    found.until("active (ready)")
    play = Playbook(found.engine)
    play >> Exited(1, CRASH, left=0) << StopProbes()
    assert play << Launch(2, found.engine.plan) << SetTimer(2, Timer.STARTUP, 30.0)  # type: ignore[arg-type]
