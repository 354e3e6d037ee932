"""Where the engines' control groups may be: cgroup v2, in a place that is the daemon's to divide."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sagectl.system.unit import SUPERVISOR

log = logging.getLogger("sagectl.groups")

MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
WANTED = ("memory", "cpu", "pids")


@dataclass(frozen=True, slots=True)
class Groups:
    """A base for groups of engines.

    controllers: those that can limit engines here; without `memory`, say, `memory_max` means nothing.
    """

    base: Path
    controllers: frozenset[str]


def mount(mounts: Iterable[Path] = MOUNTS) -> Path | None:
    """Where cgroup v2 is mounted; None where it is not."""
    return next((place for place in mounts if (place / "cgroup.controllers").exists()), None)


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


def prepare(zygote: int, name: str, *, scoped: bool) -> Groups | None:
    """Make a base for the engines' groups and move the zygote into it; None where that cannot be.

    Args:
        name: of the base where it is not systemd's scope, so that two homes have two.
        scoped: the zygote is in a delegated scope of its own. Otherwise only the root group is divided, which
            means that there is no systemd here whose groups these would be.
    """
    root = mount()
    group = own_group(zygote, root) if root is not None else None
    if root is None or group is None:
        return None
    base = group
    if scoped:
        if group.name in (SUPERVISOR, "engines"):
            base = group.parent
    elif group == root:
        base = root / name
    elif group.parent.name == name:
        base = group.parent
    else:
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
        for name in WANTED:
            try:
                (folder / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError as error:
                log.debug("no controller %s in %s: %s", name, folder, error)
    try:
        passed = (base / "engines" / "cgroup.subtree_control").read_text().split()
        return frozenset(passed).intersection(WANTED)
    except OSError:
        return frozenset()


def remove(base: Path) -> None:
    """Take an empty base away; what something lives in stays."""
    for folder, _, _ in os.walk(base, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
