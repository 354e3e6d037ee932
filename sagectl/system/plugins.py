"""Finds engine kinds: entry points in the group `sagectl`, each on its own, so that one broken package
costs nothing but its own kinds."""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from sagectl.config.options import options_of
from sagectl.config.schema import ENGINE_KEYS
from sagectl.plugin import PROJECT, EngineKind, Mode

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
# The package's attribute of this name is the marker, not the module.
_HOOKSPECS = importlib.import_module("sagectl.plugin.hookspec")
_FIELDS = ("name", "summary", "mode", "options", "default_port")
_METHODS = ("listens", "facts", "plan", "explain", "progress")


@dataclass(frozen=True, slots=True)
class KindSource:
    """A usable kind, and the package that it comes from."""

    kind: EngineKind[Any]
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A package whose kinds are not usable.

    name: of its entry point. reason: one line. detail: the traceback, "" where there is none.
    """

    name: str
    distribution: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Kinds:
    """What was found, by the kind's name, and what could not be used."""

    kinds: Mapping[str, KindSource]
    broken: tuple[BrokenPlugin, ...] = ()

    def by_name(self) -> dict[str, EngineKind[Any]]:
        """The kinds alone, as the configuration wants them."""
        return {name: source.kind for name, source in self.kinds.items()}

    def broken_by_name(self) -> dict[str, str]:
        """Broken plugin → why, as the configuration wants them."""
        return {plugin.name: plugin.reason for plugin in self.broken}

    def describe(self) -> list[dict[str, Any]]:
        """All of it as JSON values, for `sagectl kinds`."""
        usable = [
            {
                "name": name,
                "summary": source.kind.summary,
                "mode": source.kind.mode.value,
                "default_port": source.kind.default_port,
                "distribution": source.distribution,
                "version": source.version,
                "options": options_of(source.kind).describe(),
                "broken": None,
            }
            for name, source in sorted(self.kinds.items())
        ]
        broken = [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "broken": plugin.reason,
                "detail": plugin.detail,
            }
            for plugin in self.broken
        ]
        return usable + broken


class _Unusable(Exception):
    """A plugin loads, and yet cannot be used; the text says why."""


def discover(points: Iterable[EntryPoint] | None = None) -> Kinds:
    """Load every plugin. Never raises for what a plugin does, `sys.exit` included.

    Args:
        points: for tests; by default those that are installed.
    """
    kinds: dict[str, KindSource] = {}
    broken: list[BrokenPlugin] = []
    found = entry_points(group=PROJECT) if points is None else points
    for point in sorted(set(found), key=lambda p: (_distribution(p), p.name)):
        distribution = _distribution(point)
        try:
            brought = _load(point)
            for kind in brought:
                _check(kind)
            _refuse_twice(brought, kinds)
        except KeyboardInterrupt:
            raise
        except _Unusable as error:
            broken.append(BrokenPlugin(point.name, distribution, str(error)))
        # A plugin may raise anything at all, and sys.exit too: it must not take the others with it.
        except BaseException as error:
            reason = _one_line(error)
            broken.append(BrokenPlugin(point.name, distribution, reason, traceback.format_exc()))
        else:
            version = point.dist.version if point.dist is not None else ""
            kinds.update({kind.name: KindSource(kind, distribution, version) for kind in brought})
    return Kinds(kinds, tuple(broken))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value.partition(":")[0]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text[:300]}" if text else name


def _load(point: EntryPoint) -> Sequence[EngineKind[Any]]:
    """Import the plugin and call its hook. A manager of its own: pluggy stops at the first error."""
    plugin = point.load()
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(_HOOKSPECS)
    if manager.register(plugin, name=point.name) is None:
        raise _Unusable("pluggy does not take it")
    manager.check_pending()
    if not manager.hook.sagectl_engine_kinds.get_hookimpls():
        raise _Unusable("implements no hook: mark sagectl_engine_kinds with @hookimpl")
    brought: list[EngineKind[Any]] = []
    results = manager.hook.sagectl_engine_kinds()
    if not results:
        raise _Unusable("sagectl_engine_kinds returned nothing")
    for result in results:
        if isinstance(result, str | bytes) or not isinstance(result, Iterable):
            raise _Unusable(f"sagectl_engine_kinds returned a {type(result).__name__}, not a sequence")
        brought.extend(result)
    return brought


def _check(kind: object) -> None:
    """Refuse what does not keep the contract, as precisely as can be said."""
    what = f"the kind {type(kind).__name__}"
    if isinstance(kind, type):
        raise _Unusable(f"returned the class {kind.__name__} instead of an instance of it")
    absent = [name for name in _FIELDS if not hasattr(kind, name)]
    absent += [name for name in _METHODS if not callable(getattr(kind, name, None))]
    if absent or not isinstance(kind, EngineKind):
        raise _Unusable(f"{what} lacks {', '.join(absent)}")
    if not isinstance(kind.name, str) or not _NAME.fullmatch(kind.name):
        raise _Unusable(f"{what} is called {kind.name!r}, which is no name for a kind")
    if not isinstance(kind.mode, Mode):
        raise _Unusable(f"the mode of kind {kind.name} is {kind.mode!r}, not a sagectl.plugin.Mode")
    port = kind.default_port
    if port is not None and not (isinstance(port, int) and 1 <= port <= 65535):
        raise _Unusable(f"the default_port of kind {kind.name} is {port!r}, not a port")
    if not isinstance(kind.summary, str):
        raise _Unusable(f"the summary of kind {kind.name} is {kind.summary!r}, not a text")
    try:
        options = options_of(kind)
    except TypeError as error:
        raise _Unusable(f"kind {kind.name}: {error}") from error
    if shadowed := sorted(ENGINE_KEYS & options.fields.keys()):
        raise _Unusable(f"kind {kind.name} has options that every engine has already: {', '.join(shadowed)}")


def _refuse_twice(brought: Sequence[EngineKind[Any]], kinds: Mapping[str, KindSource]) -> None:
    names = [kind.name for kind in brought]
    for name in names:
        if name in kinds:
            other = f"{kinds[name].distribution} {kinds[name].version}".rstrip()
            raise _Unusable(f"kind {name} is already brought by {other}")
        if names.count(name) > 1:
            raise _Unusable(f"brings kind {name} twice")
