"""The systemd unit that the daemon is of, and the scope beside it. Small: the zygote needs it early."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("sagectl.systemd")

SUPERVISOR = "supervisor"
"""The zygote's and the shims' own group: one with controllers for those below may hold no process itself."""
FIRST_DESCRIPTOR = 3
HANDOVER = "sagectld-handover"
"""What a daemon calls the socket that it leaves to the next image of itself."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The service that this process is of. user: of a user's manager instead of the system's."""

    name: str
    user: bool

    @property
    def scope(self) -> str:
        """The scope in which its engines live, which outlives it."""
        return f"{self.name.removesuffix('.service')}-engines.scope"

    @property
    def ask(self) -> tuple[str, ...]:
        """How systemctl and systemd-run are told whom to ask."""
        return ("--user",) if self.user else ()


def own_unit(pid: int, environ: Mapping[str, str], cgroups: str) -> Unit | None:
    """The unit whose main process this is; None where systemd did not start it.

    Args:
        cgroups: the contents of /proc/self/cgroup.
    """
    if environ.get("SYSTEMD_EXEC_PID") != str(pid):
        return None
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        name = path.rpartition("/")[2]
        if controllers in ("", "name=systemd") and name.endswith(".service"):
            return Unit(name, "/user@" in path)
    return None


def this_unit() -> Unit | None:
    """The unit of this very process."""
    try:
        cgroups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return None
    return own_unit(os.getpid(), os.environ, cgroups)


def scope_command(unit: Unit) -> tuple[str, ...]:
    """What runs a command in a scope of its own, beside the service and stopped after it.

    Delegated: the groups below it are ours. Ordered before the service, which for a shutdown means that the
    daemon has drained its engines before systemd signals what is in the scope.
    """
    return (
        "systemd-run",
        *unit.ask,
        "--scope",
        "--quiet",
        "--collect",
        f"--unit={unit.scope}",
        "--slice=sagectl.slice",
        "--description=Engines of sagectld",
        "--property=Delegate=yes",
        f"--property=Before={unit.name}",
        "--",
    )


def scope_group(unit: Unit) -> Path | None:
    """The scope's control group, where it exists."""
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        base = Path(mount)
        if not (base / "cgroup.procs").exists():
            continue
        if not unit.user:
            found = base / "sagectl.slice" / unit.scope
        else:
            manager = f"user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service"
            found = base / manager / "sagectl.slice" / unit.scope
        if (found / "cgroup.procs").exists():
            return found
    return None


def inherited_socket(path: Path, environ: Mapping[str, str]) -> tuple[socket.socket, bool] | None:
    """The listening socket that was handed over, and whether it is ours to remove in the end.

    It is ours where an earlier image of this daemon left it, and systemd's after socket activation. None
    where there is none, or one that listens elsewhere. See sd_listen_fds(3).
    """
    if environ.get("LISTEN_PID") != str(os.getpid()) or not environ.get("LISTEN_FDS", "").isdecimal():
        return None
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(environ["LISTEN_FDS"])):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
        except OSError:
            continue
        found = socket.socket(fileno=os.dup(number))
        address = found.getsockname() if found.family == socket.AF_UNIX else ""
        if isinstance(address, str) and address and os.path.realpath(address) == os.path.realpath(path):
            os.close(number)
            found.setblocking(False)
            return found, names[:1] == [HANDOVER]
        log.warning("the socket %s that was handed over is not %s: it is not used", address or number, path)
        found.close()
    return None
