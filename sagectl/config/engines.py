"""From the table of an engine, in a file or in a request, to `EngineSpec`s."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from sagectl.config.names import did_you_mean, is_secret
from sagectl.config.options import options_of
from sagectl.config.schema import DECLARED, ENGINE_KEYS, EXCLUSIVE, PROBE_CHOICES, EngineTable, Table, keys_of
from sagectl.config.sections import Origin, Report, Section, merge
from sagectl.config.units import MAX_BYTES, describe
from sagectl.config.wording import Fault, faults
from sagectl.core.engine import (
    EngineSpec,
    OnExceed,
    Priority,
    ProbePolicy,
    RestartPolicy,
    RestartWhen,
    StopPolicy,
)
from sagectl.plugin import EngineKind, ExecProbe, HttpProbe, Mode, NotifyProbe, Probe, TcpProbe, default_gpus

ALIASES = {
    "model_id": "model",
    "base_model": "model",
    "engine_kind": "kind",
    "required_memory_gb": "gpu_memory",
    "engine_label": "labels",
    "metadata": "labels",
}
"""SAGE's names → ours."""

_REPLACES = {"": (EXCLUSIVE,), "probe": (PROBE_CHOICES,)}


def canonical(section: Section, kind: EngineKind[Any] | None, report: Report) -> Section:
    """The section with SAGE's names and the kind's aliases replaced by the keys they stand for."""
    options = options_of(kind) if kind is not None else None
    own = options.fields if options is not None else {}
    aliases = {**ALIASES, **(options.aliases if options is not None else {})}
    values: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for written, value in section.values.items():
        key = written if written in ENGINE_KEYS or written in own else aliases.get(written, written)
        if key in values:
            report.error(section, (written,), f'says the same as "{renamed[key]}"', "remove one of them")
            continue
        renamed[key] = written
        values[key] = _converted(written, value) if key != written else value
    if values.keys() == section.values.keys():
        return section
    spelled = {written: key for key, written in renamed.items()}
    places = {
        ((spelled[str(path[0])], *path[1:]) if path and path[0] in spelled else path): origin
        for path, origin in section.places.items()
    }
    return Section(values, places)


def _converted(written: str, value: Any) -> Any:
    if written == "required_memory_gb" and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value}GiB" if 0 <= value <= MAX_BYTES else value  # what is wrong is told as it was written
    if written == "engine_label" and isinstance(value, str):
        return {"label": value}
    return value


def combine(defaults: Section | None, own: Section) -> Section:
    """An engine's own keys over the defaults of its kind."""
    return own if defaults is None else merge(defaults, own, _REPLACES)


def unknown_keys(section: Section, kind: EngineKind[Any] | None, report: Report) -> Section:
    """Report keys that mean nothing, and return the section without them."""
    own = options_of(kind).fields if kind is not None else {}
    values = {}
    for key, value in section.values.items():
        if key in ENGINE_KEYS or key in own:
            values[key] = value
        elif kind is not None:
            remedy = did_you_mean(key, sorted(ENGINE_KEYS | set(own))) or "`sagectl kinds` lists the keys"
            report.error(section, (key,), f'unknown key for kind "{kind.name}"', remedy)
    return Section(values, section.places)


def check_nested(section: Section, table: type[Table], report: Report, path: tuple[str, ...] = ()) -> Any:
    """The values of a section without the keys that `table` does not know, which are reported."""
    return _known(section, section.values, table, report, path)


def _known(section: Section, values: Any, table: type[Table], report: Report, path: tuple[str, ...]) -> Any:
    if not isinstance(values, Mapping):
        return values
    kept, known = {}, keys_of(table)
    for key, value in values.items():
        model = known.get(key)
        if model is None:
            remedy = did_you_mean(key, known) or f"known are {', '.join(known)}"
            report.error(section, (*path, key), "unknown key", remedy)
            continue
        inner = model.annotation
        if isinstance(inner, type) and issubclass(inner, Table):
            value = _known(section, value, inner, report, (*path, key))
        kept[key] = value
    return kept


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome of checking a section: the engine's keys and the kind's options, None if wrong."""

    table: EngineTable | None
    options: Any


def check(section: Section, kind: EngineKind[Any], report: Report, *, partial: bool = False) -> Checked:
    """Validate a merged section, reporting all that is wrong with single keys.

    Args:
        partial: `[defaults.KIND]`, where required keys may be missing.
    """
    options = options_of(kind)
    table, wrong = _common(section, report)
    own = {key: value for key, value in section.values.items() if key in options.fields}
    made, more = options.validate(own)
    for fault in (*wrong, *more):
        if not fault.missing:
            report.error(section, fault.path, fault.message, fault.remedy)
        elif not partial:
            key = str(fault.path[-1])
            about = f": {options.help(key)}" if key in options.fields and options.help(key) else ""
            report.error(section, fault.path, fault.message, f"add {key} = …{about}")
    return Checked(table, made)


def _common(section: Section, report: Report) -> tuple[EngineTable | None, list[Fault]]:
    engine = {key: value for key, value in section.values.items() if key in ENGINE_KEYS}
    engine = check_nested(Section(engine, section.places), EngineTable, report)
    try:
        return EngineTable.model_validate(engine), []
    except ValidationError as error:
        return None, faults(error.errors(include_url=False), engine)


def check_common(section: Section, report: Report) -> None:
    """Validate what can be validated where the kind is not known."""
    _, wrong = _common(section, report)
    report.faults(section, [fault for fault in wrong if fault.path[:1] != ("kind",)])


def consistent(
    section: Section, table: EngineTable, options: Any, kind: EngineKind[Any], report: Report
) -> None:
    """Report keys that are right alone and wrong together."""
    ways = [key for key in section.values if key in EXCLUSIVE and (key != "use_gpu" or not table.use_gpu)]
    if len(ways) > 1:
        report.error(section, (ways[1],), f"contradicts {ways[0]}", f"keep one of {', '.join(EXCLUSIVE)}")
    probe = table.probe
    chosen = [key for key in section.values.get("probe", ()) if key in PROBE_CHOICES and getattr(probe, key)]
    if len(chosen) > 1:
        report.error(
            section, ("probe", chosen[1]), f"is a second probe beside {chosen[0]}", "keep one of them"
        )
    if table.port is None and (kind.default_port is None or not listens(section, options, kind, report)):
        for key in {"http", "tcp"}.intersection(chosen):
            report.error(section, ("probe", key), "needs a port, and this engine has none", "add port = …")
    if kind.mode is Mode.RUN and table.restart.policy == "always":
        report.error(
            section,
            ("restart", "policy"),
            "is wrong for a job: what is completed does not run again by itself",
            'write "on-failure" or "no"',
        )
    restart = table.restart
    if restart.delay > restart.max_delay and "max_delay" in restart.model_fields_set:
        report.error(
            section,
            ("restart", "max_delay"),
            f"is less than the delay of {restart.delay:g} s",
            "raise it, or lower restart.delay",
        )
    if table.port is not None and table.port + table.replicas - 1 > 65535:
        report.error(
            section,
            ("port",),
            f"leaves no room for {table.replicas} replicas below 65536",
            "choose a lower one",
        )


def listens(section: Section, options: Any, kind: EngineKind[Any], report: Report) -> bool:
    """Whether the engine needs a port; with wrong options it is not told that it lacks one."""
    if options is None:
        return True
    try:
        return bool(kind.listens(options))
    except Exception as error:  # a third party's: it must neither end the daemon nor hide other mistakes
        message = f"the kind {kind.name} failed on it: {type(error).__name__}: {error}"
        report.error(section, (), message, "correct the plugin, or remove it: see `sagectl kinds`")
        return True


def secrets(section: Section, table: EngineTable, report: Report) -> None:
    """Report values of `env` that do not belong there."""
    for name in table.env:
        if not is_secret(name):
            continue
        if section.place(("env", name)).source == "api":
            report.error(
                section,
                ("env", name),
                "looks like a secret, and this definition would be stored with it",
                "write it into a file that only the engine's user can read, and name that as env_file",
            )
        else:
            report.warning(
                section, ("env", name), "looks like a secret in a file that others may read", "use env_file"
            )
    if "CUDA_VISIBLE_DEVICES" in table.env:
        report.warning(
            section,
            ("env", "CUDA_VISIBLE_DEVICES"),
            "hides GPUs from the engine behind sagectl's back",
            "use gpu_ids = […], or use_gpu = false",
        )


def specs(
    name: str,
    section: Section,
    checked: Checked,
    kind: EngineKind[Any],
    report: Report,
) -> tuple[EngineSpec, ...]:
    """The engines that a valid section declares: one, or its replicas."""
    table = checked.table
    assert table is not None
    base = EngineSpec(
        name=name,
        kind=kind.name,
        mode=kind.mode,
        model=_model(section, table, report),
        options=checked.options,
        python=_python(section, table, report),
        host=table.host,
        port=table.port,
        default_port=kind.default_port if listens(section, checked.options, kind, report) else None,
        gpus=_gpus(table, kind),
        gpu_ids=() if not table.use_gpu else None if table.gpu_ids is None else tuple(table.gpu_ids),
        gpu_memory=None if table.gpu_memory == "auto" else table.gpu_memory,
        on_exceed=OnExceed(table.on_exceed),
        user=table.user,
        limits=table.limits.given,
        nice=table.nice,
        oom_score_adjust=table.oom_score_adjust,
        cpu_affinity=table.cpu_affinity,
        memory_max=table.memory_max,
        cpu_weight=table.cpu_weight,
        autostart=table.autostart,
        priority=Priority(table.priority),
        depends_on=tuple(dict.fromkeys(table.depends_on)),
        labels=table.labels,
        env=table.env,
        env_file=_path(section, "env_file", table.env_file, report),
        probe_choice=_probe_choice(table),
        restart=_restart(table),
        probe=ProbePolicy(
            startup_timeout=table.probe.startup_timeout,
            interval=table.probe.interval,
            timeout=table.probe.timeout,
            failures=table.probe.failures,
        ),
        stop=StopPolicy(drain=table.stop.drain, timeout=table.stop.timeout, signal=table.stop.signal),
        declared={key: getattr(table, key) for key in DECLARED if key in table.model_fields_set},
    )
    return (base,) if table.replicas == 1 else _replicas(base, table.replicas)


def _replicas(base: EngineSpec, count: int) -> tuple[EngineSpec, ...]:
    return tuple(
        replace(
            base,
            name=f"{base.name}@{number}",
            group=base.name,
            port=None if base.port is None else base.port + number - 1,
        )
        for number in range(1, count + 1)
    )


def _gpus(table: EngineTable, kind: EngineKind[Any]) -> int | None:
    """How many GPUs; 0 where none is to be reserved, None where the kind knows."""
    if not table.use_gpu:
        return 0
    if table.gpu_ids is not None:
        return len(table.gpu_ids)
    if table.gpus is not None:
        return table.gpus
    asked = table.model_fields_set & {"use_gpu", "gpu_memory"}
    return None if asked or default_gpus(kind) else 0


def _probe_choice(table: EngineTable) -> Probe | None:
    probe = table.probe
    if probe.http is not None:
        return HttpProbe(probe.http)
    if probe.exec is not None:
        return ExecProbe(tuple(probe.exec))
    if probe.tcp:
        return TcpProbe()
    return NotifyProbe() if probe.notify else None


def _restart(table: EngineTable) -> RestartPolicy:
    wanted = table.restart
    return RestartPolicy(
        policy=RestartWhen(wanted.policy),
        delay=wanted.delay,
        # A long delay alone is clear enough: it raises the cap that nobody wrote.
        max_delay=max(wanted.max_delay, wanted.delay),
        limit=wanted.limit,
        window=wanted.window,
    )


def _model(section: Section, table: EngineTable, report: Report) -> str | None:
    # "models/x" may be a name on a hub; what begins like this can only be a path.
    if table.model is not None and table.model.startswith(("./", "../", "~")):
        return _path(section, "model", table.model, report)
    return table.model


def _python(section: Section, table: EngineTable, report: Report) -> str:
    if table.python is None:
        return sys.executable
    if "/" not in table.python:
        found = shutil.which(table.python)
        if found is None:
            message = f"there is no {describe(table.python)} on the PATH"
            report.error(section, ("python",), message, "write its whole path")
        return found or ""
    return _path(section, "python", table.python, report) or ""


def _path(section: Section, key: str, value: str | None, report: Report) -> str | None:
    """A path relative to the file that names it, made absolute."""
    if value is None:
        return None
    expanded = os.path.expanduser(value) if value.startswith("~") else value
    file = section.file((key,))
    if file is None and not value.startswith("/"):
        message = f"{describe(value)} is relative to nothing here"
        report.error(section, (key,), message, "write an absolute path")
        return None
    return os.path.abspath(os.path.join(os.path.dirname(file or "/"), expanded))


def origins(section: Section) -> Mapping[str, Origin]:
    """Dotted key → origin of everything that a section gives."""
    given = {
        ".".join(path): origin  # type: ignore[arg-type]
        for path, origin in section.places.items()
        if path and all(isinstance(step, str) for step in path)
    }
    # What these two come to is shown under other names.
    for written, shown in (("use_gpu", "gpu_ids"), ("replicas", "group")):
        if written in given:
            given.setdefault(shown, given[written])
    return given
