"""What a reload changes, and how: in place, by a restart, or later. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from sagectl.core.engine import EngineSpec
from sagectl.plugin import Mode

LEFT_OUT = "\0"
"""Stands for a secret in an engine that was read back from where secrets are not kept. No value of
an environment variable can be this. Against it a real value is a change, but not one of the launch."""

_LAUNCH = frozenset(
    {
        "kind",
        "mode",
        "model",
        "options",
        "python",
        "host",
        "port",
        "gpus",
        "gpu_ids",
        "gpu_memory",
        "user",
        "limits",
        "nice",
        "oom_score_adjust",
        "cpu_affinity",
        "memory_max",
        "cpu_weight",
        "env_file",
        "probe_choice",
    }
)
"""With `env`, the fields of EngineSpec that shape the launch; all others can change while it runs."""

_SPELLED = {"probe_choice": "probe", "default_port": "port", "group": "replicas"}


@dataclass(frozen=True, slots=True)
class Change:
    """An engine whose declaration differs, and the keys in which it does, as in the TOML."""

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """What a reload does.

    in_place: takes effect now; nothing is restarted.
    restarts: a running engine's launch changed.
    needs_restart: likewise, but it is a job, or restarts were not wanted.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    in_place: tuple[Change, ...] = ()
    restarts: tuple[Change, ...] = ()
    needs_restart: tuple[Change, ...] = ()
    unchanged: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing changes."""
        return not (self.added or self.removed or self.in_place or self.restarts or self.needs_restart)


def plan(
    old: Mapping[str, EngineSpec],
    new: Mapping[str, EngineSpec],
    *,
    restart: bool = True,
    running: Container[str] = (),
    keep: Container[str] = (),
    warnings: tuple[str, ...] = (),
) -> ReloadPlan:
    """Compare what was declared with what is.

    Args:
        restart: False for `reload --no-restart`.
        running: names of the engines that have a process or are getting one.
        keep: names that are still declared although `new` lacks them; they are left alone.
    """
    in_place: list[Change] = []
    restarts: list[Change] = []
    needs_restart: list[Change] = []
    unchanged = 0
    for name in sorted(old.keys() & new.keys()):
        keys = changed_keys(old[name], new[name])
        if not keys:
            unchanged += 1
        elif name not in running or not launch_changed(old[name], new[name]):
            in_place.append(Change(name, keys))
        elif restart and Mode.RUN not in (old[name].mode, new[name].mode):
            restarts.append(Change(name, keys))
        else:
            needs_restart.append(Change(name, keys))
    return ReloadPlan(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(name for name in old.keys() - new.keys() if name not in keep)),
        in_place=tuple(in_place),
        restarts=tuple(restarts),
        needs_restart=tuple(needs_restart),
        unchanged=unchanged,
        warnings=warnings,
    )


def launch_changed(old: EngineSpec, new: EngineSpec) -> bool:
    """A process launched from `old` is not what `new` asks for."""
    if any(getattr(old, name) != getattr(new, name) for name in _LAUNCH):
        return True
    return old.env.keys() != new.env.keys() or any(
        LEFT_OUT not in (old.env[key], new.env[key]) for key in _different(old.env, new.env)
    )


def changed_keys(old: EngineSpec, new: EngineSpec) -> tuple[str, ...]:
    """The keys in which two declarations differ, as the TOML spells them."""
    keys: dict[str, None] = {}
    for field in fields(EngineSpec):
        keys.update((key, None) for key in _differing(field.name, old, new))
    return tuple(keys)


def _differing(name: str, old: EngineSpec, new: EngineSpec) -> tuple[str, ...]:
    before, after = getattr(old, name), getattr(new, name)
    if before == after:
        return ()
    if name in ("env", "labels", "limits"):
        return tuple(f"{name}.{key}" for key in _different(before, after))
    if name == "declared":
        return _different(before, after)
    if name in ("restart", "probe", "stop"):
        return _fields(before, after, f"{name}.")
    if name == "options":
        # Of another kind, or of one that is gone, there is nothing to compare.
        return _fields(before, after, "") if type(before) is type(after) else ("kind",)
    return (_SPELLED.get(name, name),)


def _different(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)))


def _fields(before: Any, after: Any, prefix: str) -> tuple[str, ...]:
    names = [field.name for field in fields(before)] if is_dataclass(before) else []
    return tuple(prefix + name for name in names if getattr(before, name) != getattr(after, name))
