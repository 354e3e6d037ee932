"""What the daemon tells systemd, by sd_notify(3)'s protocol."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


def notify(fields: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> bool:
    """Send `KEY=VALUE` lines to $NOTIFY_SOCKET: `READY`, `STOPPING`, `STATUS`, `WATCHDOG`, `MAINPID`, ….

    Returns whether they were sent; never raises and never waits, whatever became of systemd.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A newline in a value would be read as a further field.
    text = "\n".join(f"{key}={' '.join(value.splitlines())}" for key, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(text.encode(errors="replace"), address)
    except OSError:
        return False
    return True


def ready(status: str = "") -> bool:
    """The daemon is up, or done with a reload."""
    return notify({"READY": "1", "MAINPID": str(os.getpid()), **({"STATUS": status} if status else {})})


def reloading() -> bool:
    """A reload begins; `ready` ends it (Type=notify-reload)."""
    return notify({"RELOADING": "1", "MONOTONIC_USEC": str(time.monotonic_ns() // 1000)})


def stopping(status: str = "") -> bool:
    """The daemon goes down."""
    return notify({"STOPPING": "1", **({"STATUS": status} if status else {})})


def extend_timeout(seconds: float) -> bool:
    """Ask systemd for this much more time to start, reload or stop."""
    return notify({"EXTEND_TIMEOUT_USEC": str(int(seconds * 1_000_000))})


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds within which systemd wants `WATCHDOG=1` (send it twice as often), None where it does not."""
    pid = environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isdecimal() and int(text) > 0 else None
