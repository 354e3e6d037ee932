from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from sagectl.system import connections
from sagectl.system.ports import first_free


@pytest.fixture(params=["127.0.0.1", "::1", "dual"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    host = "::" if request.param == "dual" else request.param
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Below the range from which the kernel gives ports to clients, which would be counted too.
    port = first_free(host, 20_000 + os.getpid() % 10_000)
    assert port is not None
    with socket.create_server((host, port), family=family, dualstack_ipv6=request.param == "dual") as sock:
        yield sock


def reach(listener: socket.socket) -> tuple[socket.socket, socket.socket, int]:
    host, port = listener.getsockname()[:2]
    client = socket.create_connection(("127.0.0.1" if host == "::" else host, port))
    server, _ = listener.accept()
    return client, server, port


def test_a_request_is_in_flight_until_it_is_answered(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server, port = reach(listener)
    with client, server:
        assert connections.in_flight(port) == 0
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert connections.in_flight(port) == 1
        assert not connections.advancing(port, 5.0)
        server.sendall(b"HTTP/1.1 200 OK\r\n")
        assert connections.in_flight(port) == 1, "it may be in the middle of a stream"
        assert connections.advancing(port, 5.0)
        assert connections.activity(port) == 17
        monkeypatch.setattr(connections, "STREAMING_MS", 0)
        assert connections.in_flight(port) == 0
    assert connections.in_flight(port) == 0


def test_only_connections_of_the_port_are_listed(listener: socket.socket) -> None:
    client, server, port = reach(listener)
    with client, server:
        (connection,) = connections.connections(port)
        assert connection.peer.endswith(f":{client.getsockname()[1]}")
        assert connections.connections(client.getsockname()[1])[0].peer.endswith(f":{port}")


def test_a_request_that_nobody_accepted_is_in_flight(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    with socket.create_connection(("127.0.0.1" if host == "::" else host, port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert connections.in_flight(port) == 1


def test_many_connections_need_more_than_one_message(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    pairs = []
    try:
        for _ in range(300):
            client = socket.create_connection(("127.0.0.1" if host == "::" else host, port))
            pairs += [client, listener.accept()[0]]
        assert len(connections.connections(port)) == 300
    finally:
        for sock in pairs:
            sock.close()


def test_without_sock_diag_established_connections_count(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(port: int) -> list[connections.Connection]:
        raise PermissionError("no netlink here")

    monkeypatch.setattr(connections, "connections", refused)
    client, server, port = reach(listener)
    with client, server:
        assert connections.in_flight(port) == 1
        assert connections.activity(port) == 0
        assert not connections.advancing(port, 5.0)
