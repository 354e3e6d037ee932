"""What the control API answers, as types. Times of day are RFC 3339 in UTC, durations seconds, _gb GiB."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class Exit(TypedDict):
    """How a process ended: one of `code` and `signal`, or neither where nobody saw it."""

    code: int | None
    signal: int | None
    oom_kill: bool


class Serving(TypedDict):
    """What becomes of a completed job's result: `phase` is pending, served or failed, `text` says it."""

    name: str
    model: str
    phase: Literal["pending", "served", "failed", "ended"]
    engine: str | None
    text: str


class Engine(TypedDict):
    """An engine as the API shows it. Times of day are RFC 3339 in UTC, durations seconds, _gb GiB."""

    engine_id: str
    name: str
    engine_kind: str
    model_id: str | None
    state: str
    substate: str
    reason: str
    desired: str
    pid: int | None
    port: int | None
    address: str | None
    gpu_ids: list[int] | None
    memory_per_gpu_gb: float | None
    measured_memory_gb: float | None
    uptime_seconds: float | None
    restart_count: int
    consecutive_failures: int
    last_exit_code: int | None
    healthy: bool | None
    probed: bool | None
    progress: dict[str, Any] | None
    priority: str
    labels: dict[str, str]
    limits: dict[str, Any]
    nice: int | None
    oom_score_adjust: int | None
    cpu_affinity: list[int] | None
    memory_max: int | None
    cpu_weight: int | None
    mode: str
    group: str
    transient: bool
    autostart: bool
    needs_restart: bool
    since: str | None
    started_at: str | None
    last_exit: Exit | None
    diagnosis: dict[str, Any] | None
    waiting_for: list[str]
    blocked: bool
    serves: list[str]
    serving: Serving | None
    log_path: str


class EngineProgress(TypedDict):
    """How far a job is; `progress` None where there is nothing to say."""

    engine_id: str
    name: str
    state: str
    substate: str
    progress: dict[str, Any] | None


class Event(TypedDict):
    """Something that happened; `id` counts up and survives the daemon. `engine` None: the daemon itself.

    Where `kind` is "lost", events before this one are no longer kept, and `id` is None.
    """

    id: int | None
    at: str
    engine: str | None
    engine_id: str | None
    kind: str
    level: Literal["debug", "info", "warning", "error"]
    text: str
    state: str | None
    substate: str | None


class Reload(TypedDict):
    """What a reload changes. `in_place`, `restarts`, `needs_restart`: `{"name", "keys"}` each."""

    added: list[str]
    removed: list[str]
    in_place: list[dict[str, Any]]
    restarts: list[dict[str, Any]]
    needs_restart: list[dict[str, Any]]
    unchanged: int
    warnings: list[str]


class Status(TypedDict):
    """The overview. `control_plane` is the daemon itself."""

    control_plane: dict[str, Any]
    gpu: dict[str, Any]
    engines: list[Engine]
    reservations: list[dict[str, Any]]


class Step(TypedDict, total=False):
    """A step of a job; `step` is always there, the figures are those that its kind knows.

    A figure that is no finite number is a word: "nan", "inf".
    """

    step: float
    at: str | None
    epoch: float
    loss: float | str
    eval_loss: float | str
    learning_rate: float | None
    tokens_per_second: float | None
