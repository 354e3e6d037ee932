"""An engine as JSON: how it is stored between daemons, and how it is shown.

Values of environment variables that look like secrets are in neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from sagectl.config import limits
from sagectl.config.names import is_secret
from sagectl.config.options import options_for, options_of
from sagectl.core.engine import (
    Desired,
    Engine,
    EngineSpec,
    LoadedModel,
    OnExceed,
    Outcome,
    Priority,
    ProbePolicy,
    Process,
    Reservation,
    RestartPolicy,
    RestartWhen,
    Serving,
    ServingPhase,
    State,
    StopPolicy,
    Sub,
)
from sagectl.core.reload import LEFT_OUT
from sagectl.plugin import (
    Diagnosis,
    EngineKind,
    ExecProbe,
    ExitStatus,
    HttpProbe,
    LaunchPlan,
    Mode,
    NotifyProbe,
    Probe,
    Probes,
    Successor,
    TcpProbe,
)

VERSION = 1
MASK = "***"

_PROBES: dict[str, type[Probe]] = {
    "http": HttpProbe,
    "tcp": TcpProbe,
    "exec": ExecProbe,
    "notify": NotifyProbe,
}
_PROBE_NAMES = {cls: name for name, cls in _PROBES.items()}
_PARTS = ("process", "outcome", "diagnosis", "last_exit", "reservation")
_OWN_WAY = ("spec", "plan", "serving", "loaded")
_SIMPLE = tuple(field.name for field in fields(Engine) if field.name not in (*_PARTS, *_OWN_WAY))
_T = TypeVar("_T")


class _Cache:
    """JSON of the parts that hardly ever change, by identity: they are frozen, but not hashable."""

    def __init__(self, encode: Callable[[Any], str]) -> None:
        self.encode = encode
        self.known: dict[int, tuple[Any, str]] = {}

    def __call__(self, value: Any) -> str:
        found = self.known.get(id(value))
        # The value is kept as well, so that its id cannot be another's meanwhile.
        if found is not None and found[0] is value:
            return found[1]
        if len(self.known) >= 1024:
            self.known.clear()
        text = self.encode(value)
        self.known[id(value)] = (value, text)
        return text


def dump_engine(engine: Engine) -> str:
    """The engine as JSON, for `load_engine`."""
    changing = {name: getattr(engine, name) for name in _SIMPLE}
    for name in _PARTS:
        changing[name] = _plain(getattr(engine, name))
    changing["serving"] = _serving_to_json(engine.serving)
    changing["loaded"] = [_plain(model) for model in engine.loaded]
    plan = "null" if engine.plan is None else _plan_json(engine.plan)
    return f'{{"v":{VERSION},"spec":{_spec_json(engine.spec)},"plan":{plan},{json.dumps(changing)[1:]}'


def _plain(value: Any) -> Any:
    return None if value is None else {name: getattr(value, name) for name in value.__slots__}


def _serving_to_json(serving: Serving | None) -> dict[str, Any] | None:
    return None if serving is None else {**_plain(serving), "successor": _plain(serving.successor)}


def spec_to_json(spec: EngineSpec) -> dict[str, Any]:
    """A declaration as JSON values, for `spec_from_json`."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    for name in ("restart", "probe", "stop"):
        values[name] = _plain(values[name])
    values["options"] = _options(spec)
    values["env"] = {key: LEFT_OUT if is_secret(key) else text for key, text in spec.env.items()}
    for name in ("labels", "limits", "declared"):
        values[name] = dict(values[name])
    values["probe_choice"] = _probe_to_json(spec.probe_choice)
    return values


def _options(spec: EngineSpec) -> Any:
    """The options as JSON values; those whose kind is gone are such values already."""
    if spec.options is None or isinstance(spec.options, Mapping):
        return spec.options
    return options_for(spec.options.__class__).dump(spec.options)


def _probe_to_json(probe: Probe | None) -> dict[str, Any] | None:
    return None if probe is None else {"type": _PROBE_NAMES[type(probe)], **_plain(probe)}


def _plan_to_json(plan: LaunchPlan) -> dict[str, Any]:
    values = _plain(plan)
    values["env"] = {key: LEFT_OUT if is_secret(key) else text for key, text in plan.env.items()}
    values["probes"] = {
        "startup": [_probe_to_json(probe) for probe in plan.probes.startup],
        "readiness": _probe_to_json(plan.probes.readiness),
        "liveness": _probe_to_json(plan.probes.liveness),
    }
    values["successor"] = _plain(plan.successor)
    return dict(values)


_spec_json = _Cache(lambda spec: json.dumps(spec_to_json(spec)))
_plan_json = _Cache(lambda plan: json.dumps(_plan_to_json(plan)))


def load_engine(text: str, kinds: Mapping[str, EngineKind[Any]]) -> Engine:
    """The engine that `dump_engine` wrote, secrets replaced by `reload.LEFT_OUT`.

    Where its kind is not installed any more, or refuses the options, `spec.options` is a plain
    mapping: the process that runs can still be looked after.

    Raises:
        ValueError: this is no such text, or of another version.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or values.pop("v", None) != VERSION:
            raise ValueError("not an engine of this version")
        return _engine(values, kinds)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"not an engine: {type(error).__name__}: {error}") from error


def _engine(values: dict[str, Any], kinds: Mapping[str, EngineKind[Any]]) -> Engine:
    values["spec"] = spec_from_json(values["spec"], kinds)
    values["plan"] = None if values["plan"] is None else _plan_from_json(values["plan"])
    values["process"] = _made(Process, values["process"])
    values["diagnosis"] = _diagnosis(values["diagnosis"])
    values["last_exit"] = _made(ExitStatus, values["last_exit"])
    outcome = values["outcome"]
    values["outcome"] = None if outcome is None else Outcome(Sub(outcome["sub"]), outcome["text"])
    values["desired"] = Desired(values["desired"])
    values["state"], values["sub"] = State(values["state"]), Sub(values["sub"])
    values["reservation"] = _reservation(values.get("reservation"))
    # Engines that were stored by an earlier version have neither.
    values["serving"] = _serving(values.get("serving"))
    values["loaded"] = tuple(LoadedModel(**model) for model in values.get("loaded", ()))
    values["starts"] = tuple(values["starts"])
    values["waiting_for"] = tuple(values["waiting_for"])
    return _checked(Engine, values)


def spec_from_json(values: dict[str, Any], kinds: Mapping[str, EngineKind[Any]]) -> EngineSpec:
    """The reverse of `spec_to_json`. Raises ValueError, TypeError or KeyError on anything odd."""
    values = dict(values)
    values["mode"], values["priority"] = Mode(values["mode"]), Priority(values["priority"])
    values["depends_on"] = tuple(values["depends_on"])
    values["gpu_ids"] = None if values["gpu_ids"] is None else tuple(values["gpu_ids"])
    # Engines that were stored by an earlier version have none of these.
    values.setdefault("gpus", 0)
    values["on_exceed"] = OnExceed(values.get("on_exceed", "warn"))
    values["limits"] = {name: _pair(pair) for name, pair in values.get("limits", {}).items()}
    cpus = values.get("cpu_affinity")
    values["cpu_affinity"] = None if cpus is None else tuple(cpus)
    values["probe_choice"] = _probe_from_json(values["probe_choice"])
    restart = dict(values["restart"])
    values["restart"] = RestartPolicy(**{**restart, "policy": RestartWhen(restart["policy"])})
    values["probe"], values["stop"] = ProbePolicy(**values["probe"]), StopPolicy(**values["stop"])
    kind = kinds.get(values["kind"])
    if kind is not None and values["options"] is not None:
        options = options_of(kind)
        known = {key: value for key, value in values["options"].items() if key in options.fields}
        made, wrong = options.validate(known)
        values["options"] = values["options"] if wrong else made
    return _checked(EngineSpec, values)


def _reservation(values: dict[str, Any] | None) -> Reservation | None:
    if values is None:
        return None
    lists = {key: tuple(values[key]) for key in ("gpu_ids", "sizes", "totals", "reasons")}
    made = Reservation(**{**values, **lists})
    if not len(made.gpu_ids) == len(made.sizes) == len(made.totals):
        raise ValueError("a reservation names as many GPUs as sizes")
    return made


def _serving(values: dict[str, Any] | None) -> Serving | None:
    if values is None:
        return None
    successor = Successor(**values["successor"])
    return Serving(**{**values, "successor": successor, "phase": ServingPhase(values["phase"])})


def _pair(value: Any) -> tuple[int, int]:
    soft, hard = value
    if not isinstance(soft, int) or not isinstance(hard, int):
        raise TypeError("a limit is no number")
    return soft, hard


def _checked(cls: type[_T], values: dict[str, Any]) -> _T:
    """Make a dataclass whose plain fields have the types of their defaults."""
    for field in fields(cls):  # type: ignore[arg-type]
        if field.default is None or field.name not in values:
            continue
        if field.default is MISSING and field.type != "str":
            continue
        value, wanted = values[field.name], str if field.default is MISSING else type(field.default)
        if not isinstance(value, wanted) and not (wanted is float and type(value) is int):
            raise TypeError(f"{field.name} is a {type(value).__name__}")
    return cls(**values)


def _made(cls: type[_T], values: Any) -> _T | None:
    return None if values is None else cls(**values)


def _diagnosis(values: dict[str, Any] | None) -> Diagnosis | None:
    if values is None:
        return None
    lines = tuple(values.get("arithmetic", ()))  # what an earlier version stored has none
    if not all(isinstance(line, str) for line in lines):
        raise TypeError("a line of a diagnosis is no text")
    return Diagnosis(**{**values, "arithmetic": lines})


def _probe_from_json(values: dict[str, Any] | None) -> Probe | None:
    if values is None:
        return None
    cls: Any = _PROBES[values["type"]]
    plain = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key != "type"
    }
    made: Probe = cls(**plain)
    return made


def _plan_from_json(values: dict[str, Any]) -> LaunchPlan:
    probes = values["probes"]
    made = {
        **values,
        "successor": _made(Successor, values.get("successor")),
        "probes": Probes(
            startup=tuple(probe for one in probes["startup"] if (probe := _probe_from_json(one)) is not None),
            readiness=_probe_from_json(probes["readiness"]),
            liveness=_probe_from_json(probes["liveness"]),
        ),
    }
    for key in ("argv", "served_models", "notes"):
        made[key] = tuple(values[key])
    return LaunchPlan(**made)


def public_spec(spec: EngineSpec) -> dict[str, Any]:
    """The declaration with the TOML's own keys and tables, as JSON values, secrets masked."""
    options = _options(spec)
    probe = _plain(spec.probe)
    match spec.probe_choice:
        case HttpProbe(path):
            probe["http"] = path
        case ExecProbe(argv):
            probe["exec"] = list(argv)
        case TcpProbe():
            probe["tcp"] = True
        case NotifyProbe():
            probe["notify"] = True
    return {
        "kind": spec.kind,
        "model": spec.model,
        **({"group": spec.group} if spec.group else {}),
        "autostart": spec.autostart,
        "host": spec.host,
        "port": spec.port,
        **_gpus(spec),
        "priority": spec.priority.value,
        "depends_on": list(spec.depends_on),
        "python": spec.python,
        "user": spec.user,
        **grants(spec),
        "env": {key: MASK if is_secret(key) or text == LEFT_OUT else text for key, text in spec.env.items()},
        "env_file": spec.env_file,
        "labels": dict(spec.labels),
        "restart": {**_plain(spec.restart), "policy": spec.restart.policy.value},
        "probe": probe,
        "stop": _plain(spec.stop),
        **spec.declared,
        **(options or {}),
    }


def _gpus(spec: EngineSpec) -> dict[str, Any]:
    """The keys about GPUs that were written, or would have to be, to declare the same."""
    if spec.gpus == 0:
        return {} if spec.gpu_ids is None else {"use_gpu": False}
    return {
        **({} if spec.gpus is None or spec.gpu_ids is not None else {"gpus": spec.gpus}),
        **({} if spec.gpu_ids is None else {"gpu_ids": list(spec.gpu_ids)}),
        "gpu_memory": "auto" if spec.gpu_memory is None else spec.gpu_memory,
        "on_exceed": spec.on_exceed.value,
    }


def grants(spec: EngineSpec) -> dict[str, Any]:
    """What it is given of the machine, as JSON values under the TOML's keys."""
    return {
        "limits": limits.shown(spec.limits),
        "nice": spec.nice,
        "oom_score_adjust": spec.oom_score_adjust,
        "cpu_affinity": None if spec.cpu_affinity is None else list(spec.cpu_affinity),
        "memory_max": spec.memory_max,
        "cpu_weight": spec.cpu_weight,
    }


def flat_spec(spec: EngineSpec) -> dict[str, Any]:
    """`public_spec` with dotted keys (`restart.delay`), as `Config.origins` has them."""
    flat: dict[str, Any] = {}
    for key, value in public_spec(spec).items():
        if key in ("restart", "probe", "stop", "limits", "env", "labels"):
            flat.update((f"{key}.{inner}", one) for inner, one in value.items())
        else:
            flat[key] = value
    return flat
