"""sd_notify(3): tell the supervisor how far we are, and that a stop takes longer."""

from __future__ import annotations

import contextlib
import os
import socket


def send(**fields: str) -> None:
    """Say these fields to $NOTIFY_SOCKET; nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    text = "\n".join(f"{name}={value}" for name, value in fields.items())
    # A daemon that is down or slow must not hold up the training.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(text.encode(), address)


def status(text: str) -> None:
    """A line for `sagectl status`; empty to take it back."""
    send(STATUS=text)


def extend(seconds: float) -> None:
    """Ask that the end be awaited for this long from now."""
    send(EXTEND_TIMEOUT_USEC=str(int(seconds * 1_000_000)))
