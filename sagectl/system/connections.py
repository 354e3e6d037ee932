"""What the kernel knows of the connections to an engine's port: who is being answered, who waits."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_DONE, _ERROR = 3, 2
_DIAG_INFO = 2
_ESTABLISHED = 1
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_SOCKET_ID = struct.Struct(">HH16s16s")
_MESSAGE_LENGTH = 72
# Offsets within struct tcp_info.
_LAST_SENT, _LAST_RECEIVED, _ACKED, _RECEIVED, _SENT = 44, 52, 120, 128, 200

STREAMING_MS = 1000
"""A connection that was sent to within this time is taken to be in the middle of an answer."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An established connection, seen from the engine.

    peer: `address:port` of the client.
    bytes_sent, bytes_received: of payload, by the engine; since it was established.
    last_sent_ms, last_received_ms: milliseconds since payload last went out or came in. They count
        from the connection's beginning where there was none yet.
    """

    peer: str
    bytes_sent: int
    bytes_received: int
    last_sent_ms: int
    last_received_ms: int


def busy(connection: Connection) -> bool:
    """A request on it is not answered yet, or its answer was being sent within the last second."""
    if connection.bytes_received == 0:
        return False
    if connection.bytes_sent == 0 or connection.last_received_ms < connection.last_sent_ms:
        return True
    return connection.last_sent_ms < STREAMING_MS


def sent_within(connections: Iterable[Connection], seconds: float) -> bool:
    """The engine sent something to anybody within the last `seconds`."""
    return any(c.bytes_sent > 0 and c.last_sent_ms < seconds * 1000 for c in connections)


def in_flight(port: int) -> int:
    """How many requests to this local port are being answered or wait for it.

    Without sock_diag (a sandbox, say) every established connection counts as one.
    """
    try:
        return sum(busy(connection) for connection in connections(port))
    except OSError:
        return count_established(port)


def activity(port: int) -> int:
    """Bytes that were sent on all connections which are open now; 0 where the kernel does not tell.

    It falls when connections close, so a change of any kind means that something moved.
    """
    try:
        return sum(connection.bytes_sent for connection in connections(port))
    except OSError:
        return 0


def advancing(port: int, seconds: float) -> bool:
    """Whoever listens on this port sent something within the last `seconds`; False where unknown."""
    try:
        return sent_within(connections(port), seconds)
    except OSError:
        return False


def connections(port: int) -> list[Connection]:
    """The established connections to this local TCP port, IPv4 and IPv6.

    Raises:
        OSError: the kernel has no sock_diag, or does not let us ask.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            netlink.send(_request(family, port))
            found += _replies(netlink)
        return found


def _request(family: int, port: int) -> bytes:
    """A dump of the established sockets whose local port is `port`; the kernel does the filtering."""
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_DIAG_INFO - 1), 1 << _ESTABLISHED)
    body += _SOCKET_ID.pack(port, 0, bytes(16), bytes(16)) + bytes(4) + b"\xff" * 8
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + body


def _replies(netlink: socket.socket) -> list[Connection]:
    found: list[Connection] = []
    while True:
        data = netlink.recv(1 << 17)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if kind == _DONE:
                return found
            if kind == _ERROR:
                (number,) = struct.unpack_from("=i", data, offset + _HEADER.size)
                raise OSError(-number, "sock_diag refused the question")
            connection = parse_message(data[offset + _HEADER.size : offset + length])
            if connection is not None:
                found.append(connection)
            offset += (length + 3) & ~3


def parse_message(message: bytes) -> Connection | None:
    """One `inet_diag_msg` with its attributes; None where it brings no `tcp_info`."""
    family = message[0]
    _, peer_port, _, peer = _SOCKET_ID.unpack_from(message, 4)
    offset = _MESSAGE_LENGTH
    while offset + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, offset)
        if length < 4:
            return None
        if kind == _DIAG_INFO:
            return _from_tcp_info(_peer_name(family, peer, peer_port), message[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return None


def _peer_name(family: int, address: bytes, port: int) -> str:
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(socket.AF_INET, address[:4])}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]:{port}"


def _from_tcp_info(peer: str, info: bytes) -> Connection | None:
    if len(info) < _RECEIVED + 8:
        return None
    # Kernels before 4.19 have no count of bytes sent; what was acknowledged is nearly the same.
    sent_at = _SENT if len(info) >= _SENT + 8 else _ACKED
    (sent,) = struct.unpack_from("=Q", info, sent_at)
    (received,) = struct.unpack_from("=Q", info, _RECEIVED)
    (last_sent,) = struct.unpack_from("=I", info, _LAST_SENT)
    (last_received,) = struct.unpack_from("=I", info, _LAST_RECEIVED)
    return Connection(peer, sent, received, last_sent, last_received)


def count_established(port: int) -> int:
    """The established connections to this local port, from /proc/net/tcp and tcp6."""
    suffix = f":{port:04X}"
    # The table is read in pieces and may show a line twice when it changes in between.
    found: set[tuple[str, str]] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        fields = (line.split() for line in lines)
        found.update((f[1], f[2]) for f in fields if f[1].endswith(suffix) and f[3] == "01")
    return len(found)
