"""What the daemon needs from the kernel, checked before it does anything."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_GET_CHILD_SUBREAPER = 37


def check() -> list[str]:
    """Why this machine cannot host the daemon, a sentence each without a final period; [] if it can."""
    if sys.platform != "linux":
        return [f"sagectld runs on Linux only, this is {sys.platform}"]
    reasons = []
    if not os.path.exists("/proc/self/stat"):
        reasons.append("/proc is not mounted, and processes are identified by it: mount -t proc proc /proc")
    reasons += _without_pidfd()
    value = ctypes.c_int()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0) != 0:
        why = os.strerror(ctypes.get_errno())
        reasons.append(f"the kernel has no PR_SET_CHILD_SUBREAPER ({why}): it needs Linux 3.4 or newer")
    return reasons


def _without_pidfd() -> list[str]:
    try:
        pidfd = os.pidfd_open(os.getpid())
    except (AttributeError, OSError) as error:
        return [f"pidfd_open does not work ({error}): it needs Linux 5.3, allowed by seccomp"]
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except (AttributeError, OSError) as error:
        return [f"pidfd_send_signal does not work ({error}): it needs Linux 5.1, allowed by seccomp"]
    finally:
        os.close(pidfd)
    return []
