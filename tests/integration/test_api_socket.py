"""The API's socket: made, replaced, handed in, and removed."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from sagectl.api.server import ApiServer, bind
from sagectl.errors import DaemonRefusal
from sagectl.system.journal import Journal
from sagectl.system.store import Store
from tests.integration.api_support import FakeControl, Served, serving


async def test_the_socket_is_private_from_the_first_moment_and_gone_in_the_end(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        async with serving(tmp_path) as served:
            found = served.path.stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert found.st_mode & 0o777 == 0o660
        assert not served.path.exists()
        assert os.umask(0) == 0
    finally:
        os.umask(mask)


async def test_a_socket_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    async with serving(tmp_path) as served:
        assert (await served.ask("GET", "/healthz")).status == 200


async def test_a_socket_that_another_daemon_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(served.path))
            await served.server.stop()
            assert served.path.exists()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(DaemonRefusal, match="not a socket"):
        bind(tmp_path / "s", None)
    assert (tmp_path / "s").read_text() == "precious"


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DaemonRefusal, match="No such file or directory"):
        bind(tmp_path / "none" / "s", None)


async def test_a_socket_can_be_handed_in_and_is_not_removed(tmp_path: Path) -> None:
    path, store = tmp_path / "given", Store(tmp_path / "db")
    given = socket.socket(socket.AF_UNIX)
    given.bind(str(path))
    control = FakeControl(Journal(store), tmp_path)
    server = ApiServer(control, path, owner_uid=os.getuid(), group=None, listening=given)  # type: ignore[arg-type]
    await server.start()
    assert (await Served(control, server, path).ask("GET", "/healthz")).status == 200
    await server.stop()
    assert path.exists()
    store.close()
