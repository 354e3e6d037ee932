"""Starts the zygote. Imports little, so that it loads while the daemon still imports all the rest."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import sagectl

PACKAGE_PARENT = str(Path(sagectl.__file__).resolve().parent.parent)
# A main script is never cached as bytecode, a module is; and -I -S keeps everything else out.
BOOTSTRAP = """import sys
sys.path.append(sys.argv[1])
from sagectl.shim.zygote import main
main(int(sys.argv[2]), sys.argv[3])"""

Started = tuple[subprocess.Popen[bytes], socket.socket]
"""A zygote's process, and the non-blocking socket for orders to it."""


def start_zygote(runtime: Path) -> Started:
    """Start it. Returns as soon as the interpreter is being loaded."""
    scratch = f"{os.path.abspath(runtime)}/zygote-{os.getpid()}"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-S", "-c", BOOTSTRAP, PACKAGE_PARENT, str(theirs.fileno()), scratch]
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
    with theirs:
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL, start_new_session=True
        )
    ours.setblocking(False)
    return process, ours
