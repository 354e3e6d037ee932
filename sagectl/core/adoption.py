"""What a new daemon makes of an engine that an earlier one left behind, within one boot or in another.

Two memories of it exist: the database's, and the one that the shim carries as its launch's context.
Either may be a transition or a generation behind. What the shim found of the process is the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sagectl.core.engine import Desired, Engine, EngineSpec, Outcome, Process, State, Sub
from sagectl.core.events import Exited, Reattached, Resumed, Vanished
from sagectl.plugin import ExitStatus, Mode

Finding = Reattached | Exited | Vanished | Resumed


@dataclass(frozen=True, slots=True)
class Found:
    """What is left of an engine's newest start, as its shim or its files tell it.

    process: the main process, alive, its identity verified.
    exit: how it ended, unknown included; None while it lives, or where no process came to be.
    left: living processes of its tree beside the main one.
    same_boot: False where this is about a process of an earlier boot; nothing of it can be alive.
    engine: the engine as the launch's context carried it, None where that cannot be read.
    """

    generation: int
    process: Process | None = None
    exit: ExitStatus | None = None
    left: int = 0
    same_boot: bool = True
    engine: Engine | None = None

    @property
    def alive(self) -> bool:
        """Something of the tree lives."""
        return self.process is not None or self.left > 0


def reconcile(stored: Engine | None, found: Found | None) -> tuple[Engine, Finding] | None:
    """The engine to go on with, and the one event that `lifecycle.step` must be given first.

    Answers None where nothing tells what the engine is: then `found` may only be ended. After a
    reboot apply `boot` to the engine before the event.

    1. Nothing alive and no end to report: Vanished if there was a process, else Resumed.
    2. The main process lives: Reattached, whatever was stored.
    3. It ended, and its end was not yet taken in: Exited, which counts and also ends what it left.
    4. Its end was taken in, and something of the tree lives nevertheless: Exited into `releasing`.
    """
    engine = _newer(stored, found.engine if found else None)
    if engine is None:
        return None
    engine = replace(engine, held=False)  # only for as long as the daemon that held it
    if found is not None and not found.same_boot:
        return engine, Resumed()
    if found is None or not _news(engine, found):
        return engine, Resumed() if engine.process is None else Vanished(engine.generation)
    if found.process is not None:
        return _started(engine, found.generation), Reattached(found.generation, found.process)
    exited = Exited(found.generation, found.exit or ExitStatus(), found.left, engine.diagnosis)
    if _ended(engine, found):
        return _releasing(engine, found.generation), exited
    return _started(engine, found.generation), exited


def _newer(stored: Engine | None, told: Engine | None) -> Engine | None:
    """The database wins a tie: a request that changes only `desired` moves no clock."""
    if stored is None or told is None:
        return stored or told
    return told if (told.generation, told.since) > (stored.generation, stored.since) else stored


def _news(engine: Engine, found: Found) -> bool:
    """Whether there is anything to tell that the engine does not know."""
    return found.alive or (found.exit is not None and not _ended(engine, found))


def _ended(engine: Engine, found: Found) -> bool:
    """The engine knows that this start is over."""
    if found.generation != engine.generation:
        return found.generation < engine.generation
    return engine.state in (State.INACTIVE, State.FAILED) or engine.sub is Sub.BACKOFF


def _started(engine: Engine, generation: int) -> Engine:
    """The engine as it was when it launched that generation, unless it already knows of the launch."""
    if engine.generation == generation and engine.sub not in (Sub.QUEUED, Sub.PREFLIGHT):
        return engine
    return replace(
        engine, generation=generation, state=State.ACTIVATING, sub=Sub.STARTING, reason="starting",
        process=None, launching=True, tree_alive=False, went_ready=False, ready_since=None, outcome=None,
        diagnosis=None, backoff_until=None, waiting_for=(),
    )  # fmt: skip


def _releasing(engine: Engine, generation: int) -> Engine:
    """The engine ending what it wrongly took for gone. Its outcome stays what it was.

    One that was on its way up begins anew after that, and nothing is counted against it.
    """
    known = engine.state is State.FAILED or engine.sub is Sub.COMPLETED
    outcome = Outcome(engine.sub if known else Sub.STOPPED, engine.reason or engine.sub.value)
    return replace(
        engine, generation=generation, state=State.DEACTIVATING, sub=Sub.RELEASING, process=None,
        launching=False, tree_alive=True, outcome=outcome, backoff_until=None, waiting_for=(),
    )  # fmt: skip


def boot(engine: Engine, spec: EngineSpec, *, autostart: bool) -> Engine:
    """The engine after a reboot of the machine: nothing runs, and counters of the old boot are void.

    Desired is `autostart`, except that transient engines and unfinished jobs keep theirs and a
    completed job stays completed.
    """
    keeps = engine.transient or (spec.mode is Mode.RUN and engine.generation > 0)
    desired = engine.desired if keeps else Desired.RUNNING if autostart else Desired.STOPPED
    completed = engine.sub is Sub.COMPLETED
    return Engine(
        id=engine.id, spec=spec, transient=engine.transient, port=engine.port, generation=engine.generation,
        restart_count=engine.restart_count, last_exit=engine.last_exit,
        desired=Desired.STOPPED if completed else desired,
        sub=Sub.COMPLETED if completed else Sub.DEAD,
        serving=engine.serving, loaded=engine.loaded,
        reason=engine.serving.text if completed and engine.serving else "",
    )  # fmt: skip
