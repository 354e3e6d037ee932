"""Starts the zygote. Imports little, so that it loads while the daemon still imports all the rest."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import sagectl
from sagectl.system.unit import SUPERVISOR, Unit, scope_command, scope_group

PACKAGE_PARENT = str(Path(sagectl.__file__).resolve().parent.parent)
# A main script is never cached as bytecode, a module is; and -I -S keeps everything else out.
BOOTSTRAP = """import sys
sys.path.append(sys.argv[1])
from sagectl.shim.zygote import main
main(int(sys.argv[2]), sys.argv[3])"""

_MANAGER = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
"""By which systemd-run finds a user's manager."""

Started = tuple[subprocess.Popen[bytes], socket.socket]
"""A zygote's process, and the non-blocking socket for orders to it."""


def start_zygote(runtime: Path, unit: Unit | None = None) -> Started:
    """Start it. Returns as soon as the interpreter is being loaded.

    Args:
        unit: the service of which we are; the zygote, and with it all engines, then live in a scope beside
            it, which is made or joined.
    """
    scratch = f"{os.path.abspath(runtime)}/zygote-{os.getpid()}"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-S", "-c", BOOTSTRAP, PACKAGE_PARENT, str(theirs.fileno()), scratch]
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
    group = scope_group(unit) if unit is not None else None

    def popen(command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL, start_new_session=True
        )

    with theirs:
        if unit is None or group is not None:
            process = popen(command)
        else:
            env |= {key: os.environ[key] for key in _MANAGER if key in os.environ}
            try:
                process = popen([*scope_command(unit), *command])
            except FileNotFoundError:  # no systemd-run: then it lives in the service's own group
                process = popen(command)
    if group is not None:
        # What cannot be moved stays in the service's own group, where KillMode=process spares it.
        with contextlib.suppress(OSError):
            inner = group / SUPERVISOR
            (inner if inner.exists() else group).joinpath("cgroup.procs").write_text(str(process.pid))
    ours.setblocking(False)
    return process, ours
