"""The zygote: an interpreter that has everything loaded and forks itself into shims.

An interpreter's start costs more than all else that a launch does, and what is loaded before a fork
is shared by all. It ends when the daemon does; its shims stay.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket

from sagectl.shim import rehearsal, shim

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
prctl = ctypes.CDLL(None, use_errno=True).prctl


def main(fd: int, scratch: str) -> None:
    """Serve the daemon on the SOCK_SEQPACKET socket `fd` until it closes. `scratch` may be made and used.

    A packet is `{name, dir, log: {path, max_bytes, keep}, mode: new | adopt}` as JSON together with
    the shim's end of a connection to the daemon. The shim's hello is the answer; where there is no
    shim, that connection closes.
    """
    control = socket.socket(fileno=fd)
    area = argument_area()
    set_title(area, "sagectl-zygote", "sagectl-zygote")
    rehearsal.rehearse(scratch)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # shims that end are reaped by the kernel
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # a collection in a shim would otherwise write to, and so copy, all that is shared
    while True:
        data, fds, _, _ = socket.recv_fds(control, 65536, 1)
        if not data:
            return
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # the daemon sees its connection close, and tries again
        if pid == 0:
            control.close()
            be_shim(json.loads(data), fds[0], area)
        for received in fds:
            os.close(received)


def be_shim(order: dict[str, object], fd: int, area: tuple[int, int]) -> None:
    """In the forked process: run the shim and end with it, leaving a trace of a crash."""
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):  # or the daemon's terminal, or a pipe from it, would stay open
            os.dup2(null, standard)
        os.close(null)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        set_title(area, f"sagectl-shim {order['name']}", f"shim:{order['name']}")
        os.set_inheritable(fd, False)  # received descriptors are; an engine with it would hold the line open
        shim.main(order, socket.socket(fileno=fd))
    except BaseException:  # a shim has nobody to raise to
        import traceback  # rarely needed, and large

        with open(f"{order['dir']}/shim.crash", "w") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(0)


def argument_area() -> tuple[int, int]:
    """Where the kernel reads the process's arguments, as (address, length)."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    start, end = int(fields[45]), int(fields[46])
    return start, end - start


def set_title(area: tuple[int, int], title: str, comm: str) -> None:
    """How ps shows this process: `title` as its command line, `comm` (15 bytes) as its name."""
    address, length = area
    if length > 1:
        text = os.fsencode(title)[: length - 2]
        # a last byte that is not 0 tells the kernel that the arguments were overwritten up to a first 0
        ctypes.memmove(address, text + bytes(length - 1 - len(text)) + b"\n", length)
    prctl(PR_SET_NAME, ctypes.c_char_p(os.fsencode(comm)[:15]), 0, 0, 0)
