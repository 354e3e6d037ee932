"""Where the engines' control groups may be: cgroup v2, in a place that is the daemon's to divide."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagectl.system.unit import SUPERVISOR

log = logging.getLogger("sagectl.groups")

MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
CONTROLLERS = {"memory_max": "memory", "cpu_weight": "cpu"}
"""What enforces which key of an engine."""


@dataclass(frozen=True, slots=True)
class Groups:
    """A base for groups of engines.

    controllers: those that can limit engines here; without `memory`, say, `memory_max` means nothing.
    """

    base: Path
    controllers: frozenset[str]


def mount() -> Path | None:
    """Where cgroup v2 is mounted; None where it is not."""
    return next((place for place in MOUNTS if (place / "cgroup.controllers").exists()), None)


def own_group(pid: int, root: Path) -> Path | None:
    """The group of a process in the unified hierarchy."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    return None if path is None else root / path.lstrip("/")


def name_of(home: Path) -> str:
    """What the base of a home is called where it is not systemd's scope."""
    return f"sagectl-{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}"


def base_for(group: Path, root: Path, name: str, scope: str | None) -> Path | None:
    """Which group may be divided among engines; None for none.

    That is the delegated scope if there is one. Without systemd it is a group below the root. The group of a
    service, or of anything else of systemd's, is not ours: the service could not be restarted.

    Args:
        group: the zygote's. root: of the hierarchy.
        name: of the group below the root, so that two homes have two.
        scope: the name of the scope that was asked of systemd; None where no systemd started us.
    """
    held = group.parent if group.name == SUPERVISOR else group
    if scope is not None:
        return held if held.name == scope else None
    if group == root:
        return root / name
    return held if held == root / name else None


def unenforced(found: Groups | None, asked: Mapping[str, int | None]) -> list[str]:
    """Which of these keys of an engine nobody enforces here, in sentences without a final period."""
    has = found.controllers if found else frozenset[str]()
    return [
        f"{key} is not enforced: there is no control group with the controller {CONTROLLERS[key]} here"
        for key, value in asked.items()
        if value is not None and CONTROLLERS[key] not in has
    ]


def prepare(zygote: int, name: str, scope: str | None) -> Groups | None:
    """Make a base for the engines' groups and move the zygote into it; None where that cannot be.

    Args:
        name, scope: as for `base_for`.
    """
    root = mount()
    group = own_group(zygote, root) if root is not None else None
    base = base_for(group, root, name, scope) if root is not None and group is not None else None
    if base is None:
        return None
    try:
        for folder in (base, base / SUPERVISOR, base / "engines"):
            folder.mkdir(exist_ok=True)
        (base / SUPERVISOR / "cgroup.procs").write_text(str(zygote))
        if not (base / "engines" / "cgroup.kill").exists():
            return None  # Linux before 5.14: then a group serves nothing that the walk does not
    except OSError as error:
        log.info("engines get no control groups: %s", error)
        return None
    return Groups(base, _enable(base))


def _enable(base: Path) -> frozenset[str]:
    """Pass the controllers on to the engines' groups, as far as there are any."""
    for folder in (base, base / "engines"):
        for name in CONTROLLERS.values():
            try:
                (folder / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError as error:
                log.debug("no controller %s in %s: %s", name, folder, error)
    try:
        passed = (base / "engines" / "cgroup.subtree_control").read_text().split()
        return frozenset(passed).intersection(CONTROLLERS.values())
    except OSError:
        return frozenset()


def remove(base: Path) -> None:
    """Take an empty base away; what something lives in stays."""
    for folder, _, _ in os.walk(base, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
