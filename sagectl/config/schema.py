"""What may stand in a configuration, key by key, with types. Unknown keys are refused elsewhere,
where they can be compared with the known ones."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sagectl.config.limits import (
    Pair,
    as_bytes,
    as_count,
    as_microseconds,
    as_seconds,
    parse_cpus,
    parse_limit,
    up_to,
)
from sagectl.config.names import REFERENCE, SET_BY_US, is_variable
from sagectl.config.units import (
    SIZE_REMEDY,
    BadValue,
    describe,
    encodable,
    is_share,
    parse_duration,
    parse_share,
    parse_signal,
    parse_size,
)

MAX_REPLICAS = 64


def _positive_duration(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds == 0:
        raise BadValue("0 leaves no time at all", "write a longer duration")
    return seconds


def _duration_or_never(value: Any) -> float | None:
    return None if value == "never" else _positive_duration(value)


def _log_size(value: Any) -> int:
    size = parse_size(value)
    if size < 64 * 1024:
        raise BadValue("a log that small would be rotated all the time", "write at least 64KiB")
    return size


def _budget(value: Any) -> str | int:
    """Checked, and kept as written: what a share comes to depends on the card."""
    if is_share(value):
        parse_share(value)
        return str(value).strip()
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise BadValue(f"{describe(value)} is neither a size nor a share", f'{SIZE_REMEDY}, or "40%"')
    return parse_size(value)


def _memory_max(value: Any) -> int:
    size = parse_size(value)
    if size < 2**20:
        raise BadValue(f"{describe(value)} is less than any program needs", "write a size such as 32GiB")
    return size


def _gpu_memory(value: Any) -> str | int:
    if value == "auto":
        return "auto"
    size = _budget(value)
    if size == 0:
        raise BadValue("0 is no memory at all", "write use_gpu = false for an engine without a GPU")
    return size


def _variable_name(value: Any) -> Any:
    if isinstance(value, str) and not is_variable(value):
        raise BadValue(f"{describe(value)} cannot be a variable's name", "use letters, digits and _")
    if value in SET_BY_US:
        raise BadValue(f"{value} is set by sagectl itself", "remove it")
    return value


def _string(value: Any) -> Any:
    """Whole numbers are written as strings without harm; 1.10 or true are not."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value)


def _text(value: Any) -> Any:
    """What the kernel takes as an argument or a variable."""
    if isinstance(value, str):
        if "\0" in value:
            raise BadValue("contains a NUL character, which no argument or variable can", "remove it")
        if not encodable(value):
            raise BadValue("holds half of a character", "write it as one")
    return value


def _not_empty(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise BadValue("is empty", "write a value, or remove the key")
    return _text(value)


def _http_path(value: Any) -> Any:
    if isinstance(value, str) and (not value.startswith("/") or any(c <= " " for c in value)):
        raise BadValue(f"{describe(value)} is not a path on the engine", 'write a path such as "/health"')
    return _text(value)


def _command(value: Any) -> Any:
    if isinstance(value, str):
        raise BadValue("is a string, and commands are given to no shell", 'write an array: ["prog", "arg"]')
    if value == [] or (isinstance(value, list) and value[0] == ""):
        raise BadValue("names no program", 'write an array: ["prog", "arg"]')
    return value


def _loopback(value: Any) -> Any:
    if isinstance(value, str) and value != "localhost":
        try:
            loopback = ipaddress.ip_address(value).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise BadValue(
                f"{describe(value)} is not a loopback address, and engines listen on nothing else",
                "remove it, and put a gateway or proxy in front of the engine",
            )
    return value


def _port(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and not 1 <= value <= 65535:
        remedy = "leave it out for a free one" if value == 0 else "choose one from 1 to 65535"
        raise BadValue(f"{describe(value)} is not a port", remedy)
    return value


def _reference(value: Any) -> Any:
    if isinstance(value, str) and not REFERENCE.fullmatch(value):
        raise BadValue(f"{describe(value)} cannot be an engine's name", "name an engine or a group")
    return value


def _gpus(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise BadValue(f"{value} is not a number of GPUs", "write use_gpu = false for an engine without one")
    return value


def _gpu_ids(value: Any) -> Any:
    if value == []:
        raise BadValue("is empty", "write use_gpu = false for an engine without a GPU")
    if isinstance(value, list):
        numbers = [number for number in value if isinstance(number, int)]
        if any(number < 0 or number > 1023 for number in numbers):
            raise BadValue("has a number that is no GPU's", "GPUs are counted from 0")
        if len(set(numbers)) != len(numbers):
            raise BadValue("names a GPU twice", "name each once")
    return value


def _limit(one: Callable[[Any], int]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse_limit(value, one))


def _restart_table(value: Any) -> Any:
    if isinstance(value, str | bool):
        word = value if isinstance(value, str) else ("on-failure" if value else "no")
        raise BadValue(f"must be a table, not {describe(value)}", f'write restart = {{ policy = "{word}" }}')
    return value


Duration = Annotated[float, BeforeValidator(parse_duration)]
PositiveDuration = Annotated[float, BeforeValidator(_positive_duration)]
Text = Annotated[str, BeforeValidator(_not_empty)]
String = Annotated[str, BeforeValidator(_string)]
Reference = Annotated[str, BeforeValidator(_reference)]
Command = Annotated[list[Annotated[str, BeforeValidator(_text)]], BeforeValidator(_command)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Table(BaseModel):
    """A table of the configuration. No conversions: a string is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DaemonTable(Table):
    """`[daemon]`"""

    group: Text | None = None
    log_max_size: Annotated[int, BeforeValidator(_log_size)] = 50 * 2**20
    log_keep: Annotated[int, Field(ge=0, le=1000)] = 5


class SimulatedTable(Table):
    """`[gpu.simulated]`"""

    count: Annotated[int, Field(ge=0, le=64)] = 1
    memory: Annotated[int, BeforeValidator(parse_size)] = 24 * 2**30
    nvlink: list[list[Annotated[int, Field(ge=0)]]] = []
    process_ids: bool = True
    numa: list[Annotated[int, Field(ge=0, le=63)]] = []


class GpuTable(Table):
    """`[gpu]`"""

    backend: Literal["auto", "nvml", "simulated", "none"] = "auto"
    reserve: Annotated[int, BeforeValidator(parse_size)] = 2**30
    simulated: SimulatedTable = SimulatedTable()
    budgets: dict[str, Annotated[str | int, BeforeValidator(_budget)]] = {}


class RestartTable(Table):
    """`restart = {…}`"""

    policy: Literal["no", "on-failure", "always"] = "on-failure"
    delay: Duration = 1.0
    max_delay: Duration = 300.0
    limit: Annotated[int, Field(ge=0, le=1_000_000)] = 5
    window: PositiveDuration = 600.0


class ProbeTable(Table):
    """`probe = {…}`: timing, and at most one of the last four."""

    startup_timeout: PositiveDuration = 600.0
    interval: PositiveDuration = 10.0
    timeout: PositiveDuration = 5.0
    failures: Count = 3
    http: Annotated[str, BeforeValidator(_http_path)] | None = None
    tcp: bool = False
    exec: Command | None = None
    notify: bool = False


class StopTable(Table):
    """`stop = {…}`"""

    drain: Duration = 30.0
    timeout: Duration = 20.0
    signal: Annotated[int, BeforeValidator(parse_signal)] = 15


Bytes = Annotated[Pair | None, _limit(as_bytes)]
Number = Annotated[Pair | None, _limit(as_count)]


class LimitsTable(Table):
    """`limits = {…}`: the kernel's limits of each process, (soft, hard), -1 for unlimited.

    In bytes, but for numbers of files, processes and signals, `cpu` in seconds, `rttime` in
    microseconds, and the ceilings of priorities: `nice` 0 to 40, which stands for 20 - nice, `rtprio`.
    Not among them is what Linux ignores (rss).
    """

    as_: Bytes = Field(default=None, alias="as")
    core: Bytes = None
    cpu: Annotated[Pair | None, _limit(as_seconds)] = None
    data: Bytes = None
    fsize: Bytes = None
    memlock: Bytes = None
    msgqueue: Bytes = None
    nice: Annotated[Pair | None, _limit(up_to(40))] = None
    nofile: Number = None
    nproc: Number = None
    rtprio: Annotated[Pair | None, _limit(up_to(99))] = None
    rttime: Annotated[Pair | None, _limit(as_microseconds)] = None
    sigpending: Number = None
    stack: Bytes = None

    @property
    def given(self) -> dict[str, Pair]:
        """Those that were written, by the names that they were written with."""
        return {name: pair for name, pair in self.model_dump(by_alias=True).items() if pair is not None}


class EngineTable(Table):
    """The keys of `[engines.NAME]` that every kind has."""

    kind: str
    model: Text | None = None
    autostart: bool = False
    gpu_memory: Annotated[str | int, BeforeValidator(_gpu_memory)] = "auto"
    on_exceed: Literal["warn", "restart", "stop"] = "warn"
    gpus: Annotated[int | None, BeforeValidator(_gpus), Field(le=64)] = None
    gpu_ids: Annotated[list[int], BeforeValidator(_gpu_ids)] | None = None
    use_gpu: bool = True
    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    host: Annotated[str, BeforeValidator(_loopback)] = "127.0.0.1"
    port: Annotated[int, BeforeValidator(_port)] | None = None
    priority: Literal["critical", "high", "normal", "low", "background"] = "normal"
    preemptible: bool = True
    idle_stop: Annotated[float | None, BeforeValidator(_duration_or_never)] = None
    start_on_demand: bool = False
    depends_on: list[Reference] = []
    labels: dict[str, String] = {}
    env: dict[Annotated[str, BeforeValidator(_variable_name)], String] = {}
    env_file: Text | None = None
    user: Text | None = None
    limits: LimitsTable = LimitsTable()
    nice: Annotated[int, Field(ge=-20, le=19)] | None = None
    oom_score_adjust: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    cpu_affinity: Annotated[tuple[int, ...] | None, BeforeValidator(parse_cpus)] = None
    memory_max: Annotated[int | None, BeforeValidator(_memory_max)] = None
    cpu_weight: Annotated[int, Field(ge=1, le=10000)] | None = None
    python: Text | None = None
    restart: Annotated[RestartTable, BeforeValidator(_restart_table)] = RestartTable()
    probe: ProbeTable = ProbeTable()
    stop: StopTable = StopTable()


def keys_of(table: type[Table]) -> dict[str, Any]:
    """The keys of a table as they are written, with what pydantic knows of each."""
    return {field.alias or name: field for name, field in table.model_fields.items()}


ENGINE_KEYS = frozenset(EngineTable.model_fields)
DECLARED = ("preemptible", "idle_stop", "start_on_demand")
"""Keys that are validated and carried, and that this version does not act on yet."""

EXCLUSIVE = ("gpus", "gpu_ids", "use_gpu")
"""Ways to say the same thing; an engine's own replaces any of a default's, as with a probe's."""
PROBE_CHOICES = ("http", "tcp", "exec", "notify")
