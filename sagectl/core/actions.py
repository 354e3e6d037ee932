"""What the reducer wants done. The daemon does it; whatever comes of it returns as an event."""

from __future__ import annotations

from dataclasses import dataclass

from sagectl.core.events import ProbeRole, Timer
from sagectl.plugin import LaunchPlan, Probe


@dataclass(frozen=True, slots=True)
class AwaitDependencies:
    """→ DependenciesReady, or DependenciesWaiting as often as that changes."""

    generation: int


@dataclass(frozen=True, slots=True)
class Preflight:
    """Check what it needs, choose its port, gather the kind's facts.

    → PreflightPassed with the kind's plan, or PreflightRefused, or MemoryNeeded, and then the plan later.
    """

    generation: int


@dataclass(frozen=True, slots=True)
class AwaitMemory:
    """Queue for GPU memory. → MemoryGranted; MemoryLacking as often as that changes; PreflightRefused."""

    generation: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Make the plan with the GPUs that were granted. → PreflightPassed, PreflightRefused."""

    generation: int


@dataclass(frozen=True, slots=True)
class AwaitRelease:
    """Watch until no GPU lists a process of it. → MemoryReleased."""

    generation: int


@dataclass(frozen=True, slots=True)
class Launch:
    """Have the shim start the process. → Spawned, SpawnFailed; later Exited."""

    generation: int
    plan: LaunchPlan


@dataclass(frozen=True, slots=True)
class SendSignal:
    """Send a signal to the main process alone, through its pidfd."""

    generation: int
    signal: int


@dataclass(frozen=True, slots=True)
class KillTree:
    """SIGKILL everything in the tree until it is empty. → Exited (of the main process), TreeEmpty."""

    generation: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Watch the requests in flight. → Drained."""

    generation: int


@dataclass(frozen=True, slots=True)
class ReleaseShim:
    """The engine is down and stays down: its shim may end."""


@dataclass(frozen=True, slots=True)
class StartProbe:
    """Ask these probes, one after the other for STARTUP, at `interval`. → ProbeSucceeded, -Failed."""

    generation: int
    role: ProbeRole
    probes: tuple[Probe, ...]
    interval: float
    timeout: float


@dataclass(frozen=True, slots=True)
class StopProbes:
    """Ask none of this engine's probes any more."""


@dataclass(frozen=True, slots=True)
class MeasureProgress:
    """Has the load advanced since this was last asked? → ProgressMeasured."""

    generation: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """(Re)start a timer. → TimerFired after `seconds`."""

    generation: int
    timer: Timer
    seconds: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Stop a timer, if it runs."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Record:
    """Something a person should read in `sagectl events`.

    kind: a stable word such as `started`, `ready`, `exited`, `restart`, `stopped`, `failed`.
    """

    kind: str
    text: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Forget:
    """The engine is down and its declaration gone: drop it."""


Action = (
    AwaitDependencies
    | Preflight
    | AwaitMemory
    | Plan
    | AwaitRelease
    | Launch
    | SendSignal
    | KillTree
    | Drain
    | ReleaseShim
    | StartProbe
    | StopProbes
    | MeasureProgress
    | SetTimer
    | CancelTimer
    | Record
    | Forget
)
