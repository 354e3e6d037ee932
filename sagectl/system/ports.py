"""TCP ports: whether one is free, who has it, which is the next one."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Container
from pathlib import Path

GATEWAY = 8889
"""The gateway's, unless configured otherwise: never given to an engine that asked for none."""
_LISTEN = "0A"


def why_taken(host: str, port: int) -> str | None:
    """Why nothing can listen there now, a clause such as `port 8001 is held by pid 7 (nginx)`; None if free.

    Found by binding, so that a closed connection in TIME_WAIT is no obstacle.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        return f"the host {host!r} cannot be resolved ({error})"
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT and len(addresses) > 1:
                continue
            return _words(host, port, error)
    return None


def _words(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        who = holder(port)
        return f"port {port} is held by {who}" if who else f"port {port} is in use"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine"
    if error.errno == errno.EACCES:
        return f"this user may not listen on port {port}"
    return f"port {port} on {host} cannot be used ({error.strerror})"


def is_free(host: str, port: int) -> bool:
    """Something could listen there now."""
    return why_taken(host, port) is None


def first_free(host: str, start: int, taken: Container[int] = ()) -> int | None:
    """The first port from `start` on that is not in `taken`, not the gateway's and not in use, or None.

    It looks at no more than 1000 ports, so that a host that is not ours is told soon.
    """
    for port in range(start, min(start + 1000, 65536)):
        if port not in taken and port != GATEWAY and is_free(host, port):
            return port
    return None


def holder(port: int) -> str | None:
    """Who listens on this TCP port, as `pid 123 (nginx)`; None where nobody does or it is not ours to see."""
    inodes = listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal()):
        if _has_socket(pid, wanted):
            return f"pid {pid} ({_command(pid)})"
    return None


def listening_inodes(port: int) -> set[str]:
    """The inodes of the TCP sockets that listen on this port, IPv4 and IPv6."""
    suffix = f":{port:04X}"
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[1].endswith(suffix) and fields[3] == _LISTEN:
                found.add(fields[9])
    return found


def _has_socket(pid: int, wanted: set[str]) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"{directory}/{name}") in wanted:
                return True
        except OSError:
            continue
    return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
