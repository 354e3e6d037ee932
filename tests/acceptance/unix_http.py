"""`requests` over the daemon's Unix socket, for tools that speak nothing else."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

GLANCE = 0.1  # seconds without a byte after which an answer that has no end was read enough


class UnixConnection(urllib3.connection.HTTPConnection):
    """Connects to a socket's path instead of a host and a port."""

    path: str

    def _new_conn(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)
        sock.connect(self.path)
        return sock


class UnixAdapter(HTTPAdapter):
    """Sends everything to one Unix socket. Of an answer that goes on and on, what comes first is taken."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool = urllib3.HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = type("Connection", (UnixConnection,), {"path": path})  # type: ignore[assignment]

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> urllib3.HTTPConnectionPool:
        """The one connection pool."""
        return self._pool

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send, and read the answer."""
        response = super().send(request, *args, **{**kwargs, "stream": True})
        if "Content-Length" not in response.headers:
            response._content = _beginning(response.raw)
            response.raw.close()
        return response


def _beginning(raw: urllib3.HTTPResponse) -> bytes:
    raw._connection.sock.settimeout(GLANCE)  # type: ignore[union-attr]
    read = b""
    with contextlib.suppress(TimeoutError, urllib3.exceptions.ReadTimeoutError):
        while piece := raw.read1():
            read += piece
    return read


def session_over(path: str) -> requests.Session:
    """A session whose `http://localhost` is the daemon at this socket."""
    session = requests.Session()
    session.mount("http://", UnixAdapter(path))
    return session
