"""What an engine is: its declaration (`EngineSpec`) and its life so far (`Engine`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sagectl.plugin import Diagnosis, ExitStatus, LaunchPlan, Mode, Probe, Successor


class State(StrEnum):
    """systemd's unit states."""

    INACTIVE = "inactive"
    ACTIVATING = "activating"
    ACTIVE = "active"
    DEACTIVATING = "deactivating"
    FAILED = "failed"


class Sub(StrEnum):
    """Substates; `SUBSTATES` says which belongs to which state."""

    DEAD = "dead"
    STOPPED = "stopped"
    COMPLETED = "completed"
    QUEUED = "queued"
    PREFLIGHT = "preflight"
    STARTING = "starting"
    BACKOFF = "backoff"
    READY = "ready"
    UNREADY = "unready"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    RELEASING = "releasing"
    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    OOM_KILL = "oom-kill"
    START_LIMIT = "start-limit"
    TIMEOUT = "timeout"
    PREFLIGHT_FAILED = "preflight-failed"  # spelled "preflight" outside, see `substate`
    UNHEALTHY = "unhealthy"


SUBSTATES: Mapping[State, frozenset[Sub]] = {
    State.INACTIVE: frozenset({Sub.DEAD, Sub.STOPPED, Sub.COMPLETED}),
    State.ACTIVATING: frozenset({Sub.QUEUED, Sub.PREFLIGHT, Sub.STARTING, Sub.BACKOFF}),
    State.ACTIVE: frozenset({Sub.READY, Sub.UNREADY, Sub.RUNNING}),
    State.DEACTIVATING: frozenset({Sub.DRAINING, Sub.STOPPING, Sub.RELEASING}),
    State.FAILED: frozenset(
        {
            Sub.EXIT_CODE,
            Sub.SIGNAL,
            Sub.OOM_KILL,
            Sub.START_LIMIT,
            Sub.TIMEOUT,
            Sub.PREFLIGHT_FAILED,
            Sub.UNHEALTHY,
        }
    ),
}


class Desired(StrEnum):
    """What the user asked for, kept apart from what is."""

    RUNNING = "running"
    STOPPED = "stopped"


class Priority(StrEnum):
    """SAGE's request priorities, for engines too."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    BACKGROUND = "background"


class OnExceed(StrEnum):
    """What follows when an engine measurably holds more GPU memory than was reserved for it."""

    WARN = "warn"
    RESTART = "restart"
    STOP = "stop"


class RestartWhen(StrEnum):
    """`restart.policy`."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When and how often to start again. Times in seconds; `limit` 0 means no limit."""

    policy: RestartWhen = RestartWhen.ON_FAILURE
    delay: float = 1.0
    max_delay: float = 300.0
    limit: int = 5
    window: float = 600.0


@dataclass(frozen=True, slots=True)
class ProbePolicy:
    """How the probes are asked. Times in seconds."""

    startup_timeout: float = 600.0
    interval: float = 10.0
    timeout: float = 5.0
    failures: int = 3


@dataclass(frozen=True, slots=True)
class StopPolicy:
    """How to stop: `drain` seconds for requests in flight, then `signal`, after `timeout` SIGKILL."""

    drain: float = 30.0
    timeout: float = 20.0
    signal: int = 15


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine as declared: the TOML or the API's body, resolved, with every default filled in.

    name: `chat`, or `chat@1` for a replica of `group` `chat`.
    port: None where the user left the choice to us, or the kind does not listen.
    options: the kind's options, an instance of its frozen dataclass.
    limits: (soft, hard) by the lower-case name behind RLIMIT_, -1 for unlimited; what is not there
        stays as the daemon has it, as do `nice`, `oom_score_adjust` and the CPUs where they are None.
    gpus: how many GPUs; 0 for an engine whose GPU memory is not reserved; None leaves it to the kind.
    gpu_ids: exactly these; () for none, which are then hidden from it.
    gpu_memory: per GPU: bytes, or a share of the GPU's total such as "40%"; None for what it needs.
    memory_max: bytes for the whole tree; cpu_weight: 1 to 10000, 100 for all others. Both as far as control
        groups with these controllers are to be had.
    env: the user's own variables; values that look like secrets are never persisted or shown.
    declared: engine-level keys that this version validates and carries but does not act on yet.
    """

    name: str
    kind: str
    mode: Mode = Mode.SERVE
    group: str = ""
    model: str | None = None
    options: Any = None
    python: str = ""
    host: str = "127.0.0.1"
    port: int | None = None
    default_port: int | None = None
    gpus: int | None = None
    gpu_ids: tuple[int, ...] | None = None
    gpu_memory: int | str | None = None
    on_exceed: OnExceed = OnExceed.WARN
    user: str | None = None
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    nice: int | None = None
    oom_score_adjust: int | None = None
    cpu_affinity: tuple[int, ...] | None = None
    memory_max: int | None = None
    cpu_weight: int | None = None
    autostart: bool = False
    priority: Priority = Priority.NORMAL
    depends_on: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    env_file: str | None = None
    probe_choice: Probe | None = None
    restart: RestartPolicy = RestartPolicy()
    probe: ProbePolicy = ProbePolicy()
    stop: StopPolicy = StopPolicy()
    declared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Process:
    """The identity of a process that survives PID reuse, as `(boot_id, pid, starttime)`.

    starttime: field 22 of /proc/PID/stat, clock ticks since boot.
    started: CLOCK_MONOTONIC seconds at which it was launched; started_wall: the same as Unix time.
    log_position: bytes that the engine's log had received before this start, rotations included.
    """

    pid: int
    starttime: int
    boot_id: str
    started: float
    started_wall: float
    log_position: int = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, as the reducer sees it: time and randomness are arguments.

    monotonic: CLOCK_MONOTONIC seconds; wall: Unix seconds; chance: uniform in [0, 1), for jitter.
    """

    monotonic: float
    wall: float
    chance: float = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a start comes to, known from the moment its end begins.

    sub: STOPPED for a wanted stop, COMPLETED for a job that ended well, else the kind of failure,
        which becomes the substate when nothing is tried again.
    """

    sub: Sub
    text: str

    @property
    def failed(self) -> bool:
        """Neither wanted nor a success."""
        return self.sub not in (Sub.STOPPED, Sub.COMPLETED)


@dataclass(frozen=True, slots=True)
class Reservation:
    """GPU memory that an engine was given, in the order of its ranks. These, together, are the ledger.

    sizes: bytes on each of `gpu_ids`; totals: bytes that each of them has.
    kv_cache: bytes on each that were reckoned for the cache; None where the user chose the size.
    elastic: it takes whatever it is given for its cache.
    source: where the size comes from: `gpu_memory`, `learned`, `estimate` or `assumed`.
    filed_under: what its measured peak is learned under; empty where nothing is learned.
    floor: bytes on each GPU that its weights take at least.
    reasons: why these GPUs and this much, for `explain`.
    """

    gpu_ids: tuple[int, ...]
    sizes: tuple[int, ...]
    totals: tuple[int, ...]
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    kv_cache: int | None = None
    source: str = "gpu_memory"
    filed_under: str = ""
    elastic: bool = False
    floor: int = 0
    reasons: tuple[str, ...] = ()

    def on(self, gpu: int) -> int:
        """Bytes that are reserved on this GPU."""
        return sum(size for index, size in zip(self.gpu_ids, self.sizes, strict=True) if index == gpu)


class ServingPhase(StrEnum):
    """How far it is with the serving of a job's result."""

    PENDING = "pending"
    SERVED = "served"
    FAILED = "failed"
    ENDED = "ended"
    """It was served, until the user did not want it any more."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What becomes of a completed job's result.

    engine: by whose name it is, or is to be, served; "" while that is open.
    text: the same in words, or why it is not served.
    """

    successor: Successor
    phase: ServingPhase = ServingPhase.PENDING
    engine: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that an engine took in while it ran.

    path: absolute; job: the engine id of the job that wrote it, "" for none; generation: of the engine,
    when it took it in: a later one has to be given it again. edition: how many of this name it had before,
    in that generation.
    """

    name: str
    path: str
    job: str
    generation: int
    edition: int = 0


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine's life so far. Replaced, never changed, and only by the supervisor.

    generation: counts starts; every event of a process or timer carries the one it belongs to.
    process: the live main process; None while there is none.
    tree_alive: processes of the current generation may be alive although `process` ended.
    went_ready: this generation was ready (or, for a job, ran) at least once.
    launching: the shim was asked for a process and has not answered yet.
    outcome: what the current generation comes to; None while it is not ending.
    last_advance: when the starting engine last logged, read or grew (monotonic).
    starts: monotonic times of the automatic restarts within the limit's window.
    unready_starts: automatic restarts in a row that never became ready.
    backoff_step: how often the delay was doubled since the engine was last healthy.
    blocked: queued for a dependency that will not come up by itself.
    reservation: its GPU memory, from the grant until the driver has it back.
    memory_wanted: queued for GPU memory, rather than for dependencies.
    queued_since: when it began to wait for GPU memory (monotonic), across daemons; None while it does not.
    disturbances: starts in a row that a neighbour's stop broke.
    held: down, or going down, because the daemon ends, whatever `desired` says.
    serving: of a job that completed, what becomes of its result; None where nothing is to.
    loaded: models that it took in beside its own.
    """

    id: str
    spec: EngineSpec
    transient: bool = False
    desired: Desired = Desired.STOPPED
    state: State = State.INACTIVE
    sub: Sub = Sub.DEAD
    reason: str = ""
    port: int | None = None
    generation: int = 0
    plan: LaunchPlan | None = None
    process: Process | None = None
    launching: bool = False
    tree_alive: bool = False
    went_ready: bool = False
    ready_since: float | None = None
    last_advance: float = 0.0
    outcome: Outcome | None = None
    diagnosis: Diagnosis | None = None
    last_exit: ExitStatus | None = None
    readiness_failures: int = 0
    liveness_failures: int = 0
    restart_count: int = 0
    consecutive_failures: int = 0
    starts: tuple[float, ...] = ()
    unready_starts: int = 0
    backoff_step: int = 0
    backoff_until: float | None = None
    waiting_for: tuple[str, ...] = ()
    blocked: bool = False
    removed: bool = False
    needs_restart: bool = False
    held: bool = False
    reservation: Reservation | None = None
    memory_wanted: bool = False
    queued_since: float | None = None
    disturbances: int = 0
    serving: Serving | None = None
    loaded: tuple[LoadedModel, ...] = ()
    since: float = 0.0
    since_wall: float = 0.0

    @property
    def name(self) -> str:
        """The spec's name."""
        return self.spec.name

    @property
    def substate(self) -> str:
        """The substate as users read it (`failed (preflight)` shares a word with activating's)."""
        return "preflight" if self.sub is Sub.PREFLIGHT_FAILED else self.sub.value

    @property
    def up(self) -> bool:
        """Ready for what it is for: a serving engine that is ready, a job that runs or completed."""
        return (self.state is State.ACTIVE and self.sub is not Sub.UNREADY) or self.sub is Sub.COMPLETED

    @property
    def done(self) -> bool:
        """What depends on it may start: a serving engine that is ready, a job that completed."""
        return self.sub is Sub.COMPLETED or (self.spec.mode is Mode.SERVE and self.up)

    @property
    def settled(self) -> bool:
        """Nothing is under way: neither a start nor a stop, nor a wait for either."""
        return self.state in (State.INACTIVE, State.FAILED, State.ACTIVE)
