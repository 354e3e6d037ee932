from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sagectl.system import sdnotify


def test_fields_arrive_as_lines_at_a_path(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        assert sdnotify.notify({"READY": "1", "STATUS": "two\nlines"}, environ)
        assert systemd.recv(1024) == b"READY=1\nSTATUS=two lines"


def test_fields_arrive_at_an_abstract_socket() -> None:
    name = f"sagectl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        assert sdnotify.notify({"STOPPING": "1"}, {"NOTIFY_SOCKET": "@" + name})
        assert systemd.recv(1024) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "vsock:2:1234", "@nobody-listens-here"])
def test_without_a_listener_nothing_is_raised(address: str) -> None:
    assert not sdnotify.notify({"READY": "1"}, {"NOTIFY_SOCKET": address} if address else {})


def test_a_reload_carries_the_monotonic_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert sdnotify.reloading()
        first, second = systemd.recv(1024).decode().splitlines()
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_interval_is_for_this_process_only(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert sdnotify.watchdog_interval(environ) == seconds
