from __future__ import annotations

import socket
import struct

import pytest

from sagectl.system.connections import Connection, busy, parse_message, sent_within


def conn(sent: int, received: int, last_sent: int, last_received: int) -> Connection:
    return Connection("127.0.0.1:5", sent, received, last_sent, last_received)


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        (conn(0, 0, 50, 50), False),  # connected, nothing asked
        (conn(0, 300, 50, 50), True),  # the first request, not answered
        (conn(500, 300, 60_000, 60_000), False),  # answered long ago in the same tick
        (conn(500, 300, 30_000, 40_000), False),  # answered and idle
        (conn(500, 600, 30_000, 5_000), True),  # the second request, not answered
        (conn(500, 300, 20, 5_000), True),  # streaming
        (conn(500, 300, 999, 5_000), True),
        (conn(500, 300, 1000, 5_000), False),
    ],
)
def test_a_connection_is_busy_while_its_request_waits_or_streams(
    connection: Connection, expected: bool
) -> None:
    assert busy(connection) is expected


def test_sending_to_anybody_counts_as_progress() -> None:
    idle, fresh, streaming = conn(9, 9, 90_000, 90_000), conn(0, 9, 10, 10), conn(9, 9, 400, 6000)
    assert not sent_within([idle, fresh], 5.0)
    assert sent_within([idle, fresh, streaming], 5.0)


def message(family: int, peer: str, info: bytes) -> bytes:
    address = socket.inet_pton(family, peer).ljust(16, b"\0")
    head = bytes([family, 1, 0, 0]) + struct.pack(">HH", 8001, 50000) + bytes(16) + address
    other = struct.pack("=HH", 5, 8) + b"\x01\0\0\0"
    return head.ljust(72, b"\0") + other[:5].ljust(8, b"\0") + struct.pack("=HH", 4 + len(info), 2) + info


def tcp_info(length: int) -> bytes:
    info = bytearray(256)
    struct.pack_into("=I", info, 44, 7)
    struct.pack_into("=I", info, 52, 9)
    struct.pack_into("=Q", info, 120, 111)
    struct.pack_into("=Q", info, 128, 222)
    struct.pack_into("=Q", info, 200, 333)
    return bytes(info[:length])


def test_a_netlink_message_is_parsed() -> None:
    assert parse_message(message(socket.AF_INET, "10.0.0.1", tcp_info(248))) == Connection(
        "10.0.0.1:50000", 333, 222, 7, 9
    )
    assert parse_message(message(socket.AF_INET6, "::1", tcp_info(248))) == Connection(
        "[::1]:50000", 333, 222, 7, 9
    )


def test_an_older_kernel_has_acknowledged_bytes_only() -> None:
    parsed = parse_message(message(socket.AF_INET, "10.0.0.1", tcp_info(192)))
    assert parsed is not None
    assert parsed.bytes_sent == 111


def test_a_message_without_tcp_info_is_left_out() -> None:
    assert parse_message(message(socket.AF_INET, "10.0.0.1", b"")[:-4]) is None
    assert parse_message(message(socket.AF_INET, "10.0.0.1", tcp_info(104))) is None
