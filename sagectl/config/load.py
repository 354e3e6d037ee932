"""Loading a configuration: every file, every mistake at once, or the engines that it declares."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagectl.config import engines, sources
from sagectl.config.checks import Declared, check_dependencies, check_ports
from sagectl.config.names import did_you_mean, name_fault
from sagectl.config.schema import DECLARED
from sagectl.config.sections import Origin, Report, Section
from sagectl.config.settings import (
    LATER_KINDS,
    DaemonSettings,
    GpuSettings,
    daemon_settings,
    gpu_settings,
)
from sagectl.config.units import describe
from sagectl.core.engine import EngineSpec
from sagectl.errors import InvalidConfig, Problem
from sagectl.plugin import EngineKind

_TABLES = ("daemon", "gpu", "defaults", "engines")
_NOT_YET = {
    "gateway": "this version has no gateway yet",
    "presets": "this version has no presets yet",
    "models": "this version has no model store yet",
}


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration without mistakes.

    origins: engine → dotted key → where it was given; keys that stand nowhere are not in it.
    files: those that were read. warnings: worth knowing, and no mistakes.
    left_out: why an engine that is declared is not in `specs`: the plugin of its kind is broken. It
        must neither keep others from running nor end one that runs, and yet `check` fails.
    left_out_names: those engines, replicas included; `reload.plan` is to keep them.
    defaults: kind → its `[defaults.KIND]`, for engines that requests define.
    """

    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    gpu: GpuSettings = field(default_factory=GpuSettings)
    specs: tuple[EngineSpec, ...] = ()
    origins: Mapping[str, Mapping[str, Origin]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()
    left_out: tuple[Problem, ...] = ()
    left_out_names: frozenset[str] = frozenset()
    defaults: Mapping[str, Section] = field(default_factory=dict)


def load(
    config_file: Path,
    engines_d: Path | None,
    kinds: Mapping[str, EngineKind[Any]],
    *,
    broken: Mapping[str, str] | None = None,
    texts: Mapping[Path, str] | None = None,
    explicit: bool = False,
) -> Config:
    """Read, check and resolve a configuration.

    Args:
        engines_d: a directory of further files, each with `[engines.*]` only; it may be missing.
        broken: plugins that could not be used, name of the entry point → reason.
        texts: contents of files, used instead of the disk.
        explicit: `config_file` was named by somebody, so that its absence is an error.

    Raises:
        InvalidConfig: with every mistake of every file.
    """
    loader = _Loader(kinds, broken or {}, texts or {})
    if config_file in loader.texts or explicit or _there(config_file):
        loader.read(config_file, drop_in=False)
    for path in _drop_ins(engines_d, loader.texts):
        loader.read(path, drop_in=True)
    return loader.finish()


def _drop_ins(directory: Path | None, texts: Mapping[Path, str]) -> list[Path]:
    if directory is None:
        return []
    found = {path for path in texts if path.parent == directory}
    if _there(directory):
        found.update(_listed(directory))
    return sorted(path for path in found if path.suffix == ".toml" and not path.name.startswith("."))


def _there(path: Path) -> bool:
    """Something has this name, be it a link to nothing or in a place that cannot be looked into.

    To take such a file for an absent one would be to stop the engines in it.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError as error:
        problem = Problem("", f"cannot be read: {error.strerror}", "let the daemon read it", str(directory))
        raise InvalidConfig([problem]) from error


def engine_from_body(
    name: str,
    body: Mapping[str, Any],
    kinds: Mapping[str, EngineKind[Any]],
    defaults: Mapping[str, Section] | None = None,
) -> EngineSpec:
    """The engine that a request defines: the TOML's keys, SAGE's names too; null is the same as nothing.

    Args:
        defaults: kind → its `[defaults.KIND]`.

    Raises:
        InvalidConfig: with every wrong field.
    """
    report = Report()
    if fault := name_fault(name, may_be_id=True):
        report.add(Problem("name", *fault))
    values = {key: value for key, value in body.items() if value is not None and key != "name"}
    api = Section(values, {(): Origin("api")} | {(key,): Origin("api", key=key) for key in values})
    made: tuple[EngineSpec, ...] = ()
    section, kind = _with_kind(api, kinds, report)
    if kind is not None:
        section = engines.unknown_keys(section, kind, report)
        section = engines.combine((defaults or {}).get(kind.name), section)
        made = _build(name, section, kind, report)
        if len(made) > 1:
            report.error(section, ("replicas",), "a request defines one engine", "define each by itself")
    if report.failed or not made:
        raise InvalidConfig(report.sorted())
    return made[0]


def _with_kind(
    own: Section, kinds: Mapping[str, EngineKind[Any]], report: Report
) -> tuple[Section, EngineKind[Any] | None]:
    """The section by its proper keys, and its kind; None, and a problem, where there is no such kind."""
    wanted = own.values.get("kind", own.values.get("engine_kind"))
    kind = kinds.get(wanted) if isinstance(wanted, str) else None
    section = engines.canonical(own, kind, report)
    if kind is None:
        remedy = f"kinds are {', '.join(sorted(kinds))}" if kinds else "no plugin is installed"
        typo = difflib.get_close_matches("kind", own.values, n=1)
        if wanted is None and typo:
            report.error(section, (typo[0],), "is an unknown key", f'did you mean "kind"? {remedy}')
        elif wanted is None:
            report.error(section, ("kind",), "is required", f'add kind = "…"; {remedy}')
        elif not isinstance(wanted, str):
            report.error(section, ("kind",), f"must be a string, not {describe(wanted)}", remedy)
        else:
            remedy = did_you_mean(wanted, kinds) or remedy
            report.error(section, ("kind",), f"no kind is called {describe(wanted)}", remedy)
        engines.check_common(section, report)
    return section, kind


def _build(name: str, section: Section, kind: EngineKind[Any], report: Report) -> tuple[EngineSpec, ...]:
    checked = engines.check(section, kind, report)
    if checked.table is None:
        return ()
    engines.consistent(section, checked.table, checked.options, kind, report)
    engines.secrets(section, checked.table, report)
    return engines.specs(name, section, checked, kind, report)


class _Loader:
    """One pass over the files of a configuration."""

    def __init__(
        self, kinds: Mapping[str, EngineKind[Any]], broken: Mapping[str, str], texts: Mapping[Path, str]
    ) -> None:
        self.kinds = kinds
        self.broken = broken
        self.texts = texts
        self.report = Report()
        self.unusable: list[Problem] = []
        self.files: list[str] = []
        self.complete = True
        self.daemon, self.gpu = DaemonSettings(), GpuSettings()
        self.gpu_section: Section | None = None
        self.defaults: dict[str, Section] = {}
        self.tables: dict[str, Section] = {}

    def read(self, path: Path, *, drop_in: bool) -> None:
        document = sources.read(path, self.report, text=self.texts.get(path), drop_in=drop_in)
        self.files.append(str(path))
        if document is None:
            self.complete = False
            return
        for key, value in document.values.items():
            if self.known_table(document, key, value, drop_in):
                self.take(document, key)

    def known_table(self, document: sources.Document, key: str, value: Any, drop_in: bool) -> bool:
        if key in _NOT_YET:
            message, remedy = _NOT_YET[key], "remove the table"
        elif key not in _TABLES:
            message = "unknown table" if isinstance(value, dict) else "unknown key"
            remedy = did_you_mean(key, _TABLES) or f"known are {', '.join(f'[{name}]' for name in _TABLES)}"
            if isinstance(value, dict) and ("kind" in value or "engine_kind" in value):
                remedy = f"write [engines.{key}]"
        elif drop_in and key != "engines":
            message, remedy = "only engines can stand in engines.d", "move it to sagectl.toml"
        elif not isinstance(value, dict):
            message, remedy = f"must be a table, not {describe(value)}", f"write [{key}]"
        else:
            return True
        self.report.add(Problem(key, message, remedy, document.file, document.line((key,))))
        return False

    def take(self, document: sources.Document, key: str) -> None:
        if key == "daemon":
            self.daemon = daemon_settings(sources.section(document, (key,)), self.report)
        elif key == "gpu":
            section = self.gpu_section = sources.section(document, (key,))
            self.gpu = gpu_settings(section, [*self.kinds, *self.broken], self.report)
        elif key == "defaults":
            for kind, section in sources.sections(document, key, "defaults").items():
                self.take_defaults(kind, section)
        else:
            for name, section in sources.sections(document, key, "file").items():
                self.take_engine(name, section)

    def take_defaults(self, name: str, section: Section) -> None:
        kind = self.kinds.get(name)
        if not isinstance(section.values, Mapping):
            remedy = f"write [defaults.{name}]"
            self.report.error(section, (), f"must be a table, not {describe(section.values)}", remedy)
        elif kind is None:
            if name in LATER_KINDS or self.broken:
                self.report.warning(section, (), f"no kind called {describe(name)} is installed")
                return
            remedy = did_you_mean(name, self.kinds) or f"kinds are {', '.join(self.kinds)}"
            self.report.error(section, (), f"no kind is called {describe(name)}", remedy)
        else:
            section = engines.canonical(section, kind, self.report)
            if "kind" in section.values:
                self.report.error(section, ("kind",), "cannot be a default", "remove it")
            section = engines.unknown_keys(section, kind, self.report)
            section = Section({**section.values, "kind": name}, section.places)
            engines.check(section, kind, self.report, partial=True)
            self.defaults[name] = section

    def take_engine(self, name: str, section: Section) -> None:
        if not isinstance(section.values, Mapping):
            remedy = f"write [engines.{name}]"
            self.report.error(section, (), f"must be a table, not {describe(section.values)}", remedy)
            return
        if fault := name_fault(name):
            self.report.error(section, (), *fault)
        if name in self.tables:
            first = self.tables[name].place(())
            self.report.error(
                section,
                (),
                f"engine {describe(name)} is already in {first.file}:{first.line}",
                "keep it in one file",
            )
            return
        self.tables[name] = section

    def finish(self) -> Config:
        specs: list[EngineSpec] = []
        origins: dict[str, Mapping[str, Origin]] = {}
        declared: dict[str, Declared] = {}
        for name, own in self.tables.items():
            section, made = self.engine(name, own)
            declared[name] = Declared(name, section)
            specs.extend(made)
            given = engines.origins(section)
            origins.update((spec.name, given) for spec in made)
        check_ports(declared, self.report)
        check_dependencies(declared, self.report, complete=self.complete)
        if not self.report.failed:
            self.not_acted_on(declared.values())
        problems = self.report.sorted()
        if self.report.failed:
            raise InvalidConfig([*problems, *self.unusable])
        built = {spec.name for spec in specs} | {spec.group for spec in specs}
        return Config(
            daemon=self.daemon,
            gpu=self.gpu,
            specs=tuple(specs),
            origins=origins,
            files=tuple(self.files),
            warnings=problems,
            left_out=tuple(self.unusable),
            defaults=self.defaults,
            left_out_names=frozenset(
                n for one in declared.values() if one.name not in built for n in one.names
            ),
        )

    def engine(self, name: str, own: Section) -> tuple[Section, tuple[EngineSpec, ...]]:
        if self.of_broken_plugin(own):
            return engines.canonical(own, None, self.report), ()
        section, kind = _with_kind(own, self.kinds, self.report)
        if kind is None:
            return section, ()
        section = engines.unknown_keys(section, kind, self.report)
        section = engines.combine(self.defaults.get(kind.name), section)
        return section, _build(name, section, kind, self.report)

    def of_broken_plugin(self, own: Section) -> bool:
        wanted = own.values.get("kind", own.values.get("engine_kind"))
        broken = self.broken
        if not isinstance(wanted, str) or wanted in self.kinds or not broken:
            return False
        plugin = wanted if wanted in broken else ", ".join(sorted(broken))
        why = f": {broken[wanted]}" if wanted in broken else ""
        origin = own.place(("kind",))
        message = f"no kind is called {describe(wanted)}, and the plugin {plugin} is broken{why}"
        key = own.key(("kind",))
        self.unusable.append(Problem(key, message, "see `sagectl kinds`", origin.file, origin.line))
        return True

    def not_acted_on(self, declared: Collection[Declared]) -> None:
        for key in DECLARED:
            users = [engine for engine in declared if key in engine.section.values]
            if not users:
                continue
            others = f" (also in {len(users) - 1} more)" if len(users) > 1 else ""
            message = f"accepted, not acted on by this version{others}"
            self.report.warning(users[0].section, (key,), message)
