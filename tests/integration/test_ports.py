from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from sagectl.system import ports


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def port_of(sock: socket.socket) -> int:
    port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


def test_a_listening_port_is_taken_and_its_holder_named(listener: socket.socket) -> None:
    port = port_of(listener)
    assert not ports.is_free("127.0.0.1", port)
    holder = ports.holder(port)
    assert holder is not None
    assert holder.startswith(f"pid {os.getpid()} (")
    assert ports.why_taken("127.0.0.1", port) == f"port {port} is held by {holder}"


def test_a_listener_on_every_address_takes_the_port_of_one() -> None:
    with socket.create_server(("0.0.0.0", 0)) as sock:
        assert not ports.is_free("127.0.0.1", port_of(sock))


def test_a_closed_port_is_free_although_its_connections_linger(listener: socket.socket) -> None:
    port = port_of(listener)
    with socket.create_connection(("127.0.0.1", port)):
        server, _ = listener.accept()
        server.close()  # the listener's side closes first and goes through TIME_WAIT
    listener.close()
    assert ports.is_free("127.0.0.1", port)
    assert ports.holder(port) is None


def test_the_first_free_port_skips_those_in_use_and_those_promised(listener: socket.socket) -> None:
    port = port_of(listener)
    found = ports.first_free("127.0.0.1", port, taken={port + 1})
    assert found is not None
    assert found > port + 1


def test_no_port_is_free_on_an_address_of_another_machine() -> None:
    assert ports.why_taken("192.0.2.1", 8001) == "192.0.2.1 is not an address of this machine"
    assert ports.first_free("192.0.2.1", 65000) is None
