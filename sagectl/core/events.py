"""What can happen to an engine. `lifecycle.step` answers each with a new Engine and actions.

Events of a process, a probe or a timer carry the `generation` of the start they belong to, and are
dropped once that start is over. Requests of users and of the supervisor carry none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sagectl.core.engine import EngineSpec, LoadedModel, Process, Reservation, Serving
from sagectl.plugin import Diagnosis, ExitStatus, LaunchPlan, Refusal


class Timer(StrEnum):
    """The timers of an engine; at most one of each runs."""

    STARTUP = "startup"
    BACKOFF = "backoff"
    DRAIN = "drain"
    STOP = "stop"
    STABLE = "stable"


class ProbeRole(StrEnum):
    """Which of the three probes answered."""

    STARTUP = "startup"
    READINESS = "readiness"
    LIVENESS = "liveness"


# --- Requests ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartRequested:
    """Somebody wants it up. `by_user` clears the start limit; `again` runs a completed job anew."""

    by_user: bool = True
    again: bool = False


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants it down.

    drain: replaces the spec's drain seconds for this stop.
    hold: the daemon itself ends and takes its engines along: what the user wants stays as it was,
        and the next daemon acts on it.
    """

    drain: float | None = None
    why: str = "stopped by the user"
    hold: bool = False


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """Stop, then start with the current spec, keeping identity and counters."""

    by_user: bool = True
    why: str = "restarted by the user"


@dataclass(frozen=True, slots=True)
class ResetFailed:
    """Forget failures and start limit."""


@dataclass(frozen=True, slots=True)
class SpecReplaced:
    """A reload changed the declaration. What can change in place does so at once.

    needs_restart: the running process was launched from something else than `spec` says now.
    """

    spec: EngineSpec
    needs_restart: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """The declaration is gone: stop, then forget."""

    why: str = "removed from the configuration"


# --- The way up --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DependenciesReady:
    """All of `spec.depends_on` is up."""

    generation: int


@dataclass(frozen=True, slots=True)
class DependenciesWaiting:
    """Still waiting, and for whom; `text` explains.

    blocked: one of them failed, or does not exist: it will not come up by itself.
    """

    generation: int
    names: tuple[str, ...]
    text: str
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class MemoryNeeded:
    """All but its plan was checked; it needs GPU memory, and how much is known."""

    generation: int


@dataclass(frozen=True, slots=True)
class MemoryLacking:
    """The memory is not there now. `text` says what is missing; names: the engines it waits for."""

    generation: int
    text: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryGranted:
    """It has GPUs and memory on them."""

    generation: int
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class PreflightPassed:
    """The kind has a plan and the port is free. without_memory: it needs no GPU memory for it."""

    generation: int
    plan: LaunchPlan
    port: int | None
    without_memory: bool = False


@dataclass(frozen=True, slots=True)
class PreflightRefused:
    """It cannot start, and why."""

    generation: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process runs (exec succeeded)."""

    generation: int
    process: Process


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """No process came to be. `text` is exec's error or the shim's trouble.

    busy: the shim refused because processes of an earlier start are still alive.
    """

    generation: int
    text: str
    busy: bool = False


@dataclass(frozen=True, slots=True)
class ProbeSucceeded:
    """For STARTUP: all of the startup probes succeeded."""

    generation: int
    role: ProbeRole


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A probe said no.

    timed_out: no answer in time, rather than a wrong one or a refused connection.
    advancing: requests or tokens moved since the last probe: the engine is busy, not dead.
    """

    generation: int
    role: ProbeRole
    detail: str
    timed_out: bool = False
    advancing: bool = False


@dataclass(frozen=True, slots=True)
class ProgressMeasured:
    """Answer to `MeasureProgress`: did the engine log, read or grow since the last measurement?

    what: in which way it advanced, "" where in none.
    waiting: what its startup probe says is missing.
    """

    generation: int
    advanced: bool
    what: str = ""
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class StatusNotified:
    """sd_notify's `STATUS=` (shown as reason) and `EXTEND_TIMEOUT_USEC=` (seconds here)."""

    generation: int
    status: str | None = None
    extend: float | None = None


# --- The way down ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drained:
    """No request is in flight any more."""

    generation: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The main process ended.

    left: how many processes of its tree are still alive.
    diagnosis: what the kind recognised in the log, None where nothing (or not a failure).
    disturbed: what a neighbour on its GPUs did while it loaded, which may be why; "" for nothing.
    """

    generation: int
    status: ExitStatus
    left: int
    diagnosis: Diagnosis | None = None
    disturbed: str = ""


@dataclass(frozen=True, slots=True)
class TreeEmpty:
    """No process of the tree is left."""

    generation: int


@dataclass(frozen=True, slots=True)
class MemoryReleased:
    """No GPU lists a process of it any more.

    late: what the driver still says although it was given time; "" where all is well.
    """

    generation: int
    late: str = ""


@dataclass(frozen=True, slots=True)
class MemoryExceeded:
    """It holds more GPU memory than it was given, and is to be restarted for that."""

    generation: int
    text: str


@dataclass(frozen=True, slots=True)
class GpuFailed:
    """A GPU that it uses is gone: whatever it still does, it cannot work."""

    generation: int
    text: str


@dataclass(frozen=True, slots=True)
class TreeStubborn:
    """Processes of the tree outlive SIGKILL (in uninterruptible sleep, say)."""

    generation: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer ran out. Timers that were cancelled or replaced in between are never reported."""

    generation: int
    timer: Timer


# --- Results of jobs -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServingChanged:
    """It got further with the serving of a job's result."""

    serving: Serving


@dataclass(frozen=True, slots=True)
class ModelsLoaded:
    """What a running engine has taken in beside its own model, all of it."""

    models: tuple[LoadedModel, ...]


# --- After a daemon's restart ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reattached:
    """The process that an earlier daemon started lives on, its identity verified."""

    generation: int
    process: Process


@dataclass(frozen=True, slots=True)
class Vanished:
    """The process that an earlier daemon started is gone, in this same boot, and nobody saw it end."""

    generation: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """A new daemon took over; no process of this engine runs, and none ended unseen."""


Event = (
    StartRequested
    | StopRequested
    | RestartRequested
    | ResetFailed
    | SpecReplaced
    | Removed
    | DependenciesReady
    | DependenciesWaiting
    | MemoryNeeded
    | MemoryLacking
    | MemoryGranted
    | PreflightPassed
    | PreflightRefused
    | Spawned
    | SpawnFailed
    | ProbeSucceeded
    | ProbeFailed
    | ProgressMeasured
    | StatusNotified
    | Drained
    | Exited
    | TreeEmpty
    | MemoryReleased
    | MemoryExceeded
    | GpuFailed
    | TreeStubborn
    | TimerFired
    | ServingChanged
    | ModelsLoaded
    | Reattached
    | Vanished
    | Resumed
)
