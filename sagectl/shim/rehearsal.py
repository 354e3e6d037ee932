"""What the zygote does before its first fork, so that shims share more of their memory.

The first uses of functions and types fill caches and specialize bytecode, on pages that a fork
shares until they are written to. Done once here, that is not done again, and kept, in every shim.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket

from sagectl.shim.launch import CAUGHT
from sagectl.shim.shim import Shim

ROUNDS = 8  # the eighth call of a function specializes its bytecode


def rehearse(scratch: str) -> None:
    """Live a shim's life some times, in the directory `scratch`, and leave nothing of it."""
    descriptors = set(os.listdir("/proc/self/fd"))
    # The shims of earlier rounds are garbage that still knows numbers of descriptors, and closes them when it
    # is collected: that must not be in the middle of a round that has other files under these numbers.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            os.makedirs(scratch, mode=0o700)
            os.chdir(scratch)
            _live(scratch)
            _close_all_but(descriptors)
    except OSError:
        pass  # it only spares memory
    finally:
        signal.set_wakeup_fd(-1)
        for number in CAUGHT:
            signal.signal(number, signal.SIG_DFL)
        os.chdir("/")
        _close_all_but(descriptors)
        _remove(scratch)
        gc.collect()
        if collecting:
            gc.enable()


def _live(scratch: str) -> None:
    log = {"path": f"{scratch}/log", "max_bytes": 1 << 20, "keep": 1}
    one = Shim({"name": "rehearsal", "dir": scratch, "log": log, "mode": "new"})
    ours, theirs = socket.socketpair()
    one.attach(theirs)
    env = {"PATH": os.environ.get("PATH", os.defpath)}
    one.op_launch({"generation": 1, "argv": ["true"], "env": env, "cwd": "/", "context": {"engine": ""}})
    one.op_context({"context": {"engine": " "}})
    if one.engine.main:
        ended = select.poll()
        ended.register(one.engine.main_fd, select.POLLIN)
        ended.poll(1000)
    one.loop.turn(0)
    one.op_end({})
    # Here, not when they are collected: by then their numbers may be those of the next round's.
    ours.close()
    one.channel.close()
    one.close_sockets()


def _remove(scratch: str) -> None:
    """What a round left that could not end: on a full disk, say."""
    with contextlib.suppress(OSError):
        for entry in os.listdir(scratch):
            os.unlink(f"{scratch}/{entry}")
        os.rmdir(scratch)


def _close_all_but(descriptors: set[str]) -> None:
    for name in set(os.listdir("/proc/self/fd")) - descriptors:
        with contextlib.suppress(OSError):
            os.close(int(name))
