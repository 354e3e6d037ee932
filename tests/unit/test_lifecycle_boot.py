"""After a reboot: nothing runs, and what is wanted is judged anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sagectl.core.adoption import boot
from sagectl.core.engine import (
    Desired,
    Engine,
    EngineSpec,
    LoadedModel,
    Process,
    Serving,
    ServingPhase,
    State,
    Sub,
)
from sagectl.core.events import Resumed, StartRequested
from sagectl.core.serving import lost
from sagectl.plugin import LaunchPlan, Mode, Successor
from sagectl.testing import Life

SPEC = EngineSpec(name="chat", kind="exec", port=8001)
PROCESS = Process(pid=100, starttime=1, boot_id="boot", started=1000.0, started_wall=1.75e9)
BASE = Engine("e1", SPEC, desired=Desired.RUNNING, generation=3, plan=LaunchPlan(("x",)))
ACTIVE = replace(BASE, state=State.ACTIVE, sub=Sub.READY, process=PROCESS, tree_alive=True)
DOWN = replace(BASE, state=State.INACTIVE, sub=Sub.STOPPED, desired=Desired.STOPPED)


@pytest.mark.parametrize(
    ("engine", "autostart", "desired", "sub"),
    [
        (ACTIVE, True, Desired.RUNNING, Sub.DEAD),
        (ACTIVE, False, Desired.STOPPED, Sub.DEAD),
        (DOWN, True, Desired.RUNNING, Sub.DEAD),
        (replace(ACTIVE, transient=True), False, Desired.RUNNING, Sub.DEAD),
        (replace(DOWN, transient=True), True, Desired.STOPPED, Sub.DEAD),
        (replace(DOWN, sub=Sub.COMPLETED), True, Desired.STOPPED, Sub.COMPLETED),
    ],
)
def test_after_a_reboot_autostart_decides(engine, autostart, desired, sub):
    """
    1. The machine boots. 2. An engine of the boot before is read.

    Result: desired is autostart; transient engines keep theirs, completed jobs stay completed.
    """
    booted = boot(engine, SPEC, autostart=autostart)
    assert (booted.state, booted.sub, booted.desired) == (State.INACTIVE, sub, desired)
    assert (booted.process, booted.starts, booted.tree_alive) == (None, (), False)
    assert (booted.id, booted.generation) == (engine.id, engine.generation)


@pytest.mark.parametrize(
    ("state", "sub", "wanted", "desired"),
    [
        (State.ACTIVE, Sub.RUNNING, Desired.RUNNING, Desired.RUNNING),
        (State.DEACTIVATING, Sub.STOPPING, Desired.STOPPED, Desired.STOPPED),
        (State.ACTIVATING, Sub.BACKOFF, Desired.RUNNING, Desired.RUNNING),
        (State.INACTIVE, Sub.STOPPED, Desired.STOPPED, Desired.STOPPED),
        (State.INACTIVE, Sub.STOPPED, Desired.RUNNING, Desired.RUNNING),  # held as the daemon ended
        (State.INACTIVE, Sub.COMPLETED, Desired.STOPPED, Desired.STOPPED),
    ],
)
@pytest.mark.parametrize("autostart", [True, False])
def test_a_jobs_wish_outlives_a_reboot(state, sub, wanted, desired, autostart):
    """
    1. A job that was begun is read after a reboot.

    Result: unfinished it is wanted as before; stopped it stays stopped, whatever autostart says.
    """
    job = replace(SPEC, mode=Mode.RUN)
    engine = replace(BASE, spec=job, state=state, sub=sub, desired=wanted)
    assert boot(engine, job, autostart=autostart).desired is desired


def test_a_job_that_was_never_begun_starts_at_boot_when_it_should():
    job = replace(SPEC, mode=Mode.RUN)
    assert boot(Engine("e1", job), job, autostart=True).desired is Desired.RUNNING


def test_a_booted_engine_that_is_wanted_comes_up_when_resumed():
    """
    1. An engine served when the machine went down; it is transient.

    Result: after the boot, Resumed brings it up as a new generation.
    """
    life = Life(SPEC)
    life.tell(StartRequested())
    life.until("active (ready)")
    life.engine = boot(replace(life.engine, transient=True), SPEC, autostart=False)
    life.world.main, life.world.generation = None, 0
    life.world.daemon_dies()
    life.tell(Resumed())
    life.until("active (ready)")
    assert life.engine.generation == 2


def test_what_is_served_outlives_a_reboot():
    """
    1. A job whose result is served, and the engine that took it in, are read after a reboot.
    Result: both still know; the engine has to be given it again, for it is a new process.
    """
    successor = Successor("support", "llm", "/models/support")
    serving = Serving(successor, ServingPhase.SERVED, "chat", "served as support by the engine chat")
    job = replace(SPEC, mode=Mode.RUN)
    done = replace(BASE, spec=job, state=State.INACTIVE, sub=Sub.COMPLETED, serving=serving)
    after = boot(done, job, autostart=False)
    assert (after.serving, after.reason) == (serving, serving.text)
    loaded = (LoadedModel("support", "/models/support", "engine-1", 3),)
    server = boot(replace(BASE, generation=3, loaded=loaded), SPEC, autostart=True)
    assert server.loaded == loaded
    assert lost(replace(server, generation=4, state=State.ACTIVE, sub=Sub.READY)) == loaded
