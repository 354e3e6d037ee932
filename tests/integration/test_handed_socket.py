"""The listening socket that systemd, or an earlier image of the daemon, hands over."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sagectl.system.unit import FIRST_DESCRIPTOR, inherited_socket

Seen = Callable[[Path, dict[str, str]], str]


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    """What a child finds that has a socket listening at `tmp_path / "s"` as its first descriptor: "none", or
    "ours" or "theirs" (who removes it), with its address.
    """

    def child(path: Path, environ: dict[str, str]) -> str:
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.dup2(listening.fileno(), FIRST_DESCRIPTOR)
            found = inherited_socket(path, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"} | environ)
            word = "none" if found is None else f"{'ours' if found[1] else 'theirs'} {found[0].getsockname()}"
            os.write(write, word.encode())
            os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        with os.fdopen(read) as stream:
            return stream.read()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        yield child


def test_it_is_taken_over_and_known_whose_it_is(seen: Seen, tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert seen(path, {}) == f"theirs {path}"
    assert seen(path, {"LISTEN_FDNAMES": "sagectld.socket"}) == f"theirs {path}"
    assert seen(path, {"LISTEN_FDNAMES": "sagectld-handover"}) == f"ours {path}"
    assert seen(tmp_path / "x" / ".." / "s", {}) == f"theirs {path}"


@pytest.mark.parametrize(
    "environ", [{"LISTEN_PID": "1"}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": "many"}, {"LISTEN_FDS": ""}]
)
def test_one_for_another_process_or_place_is_none_of_ours(
    seen: Seen, tmp_path: Path, environ: dict[str, str]
) -> None:
    assert seen(tmp_path / "s", environ) == "none"
    assert seen(tmp_path / "elsewhere", {}) == "none"
