"""The connections of the API, and the watch over them: however many there are and whatever they do,
the daemon keeps a bounded number of them and a bounded amount of memory for each."""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import select
import socket
import sys
import termios
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from aiohttp import web

from sagectl.api import problems
from sagectl.api.limits import Limits
from sagectl.api.problems import Rejected
from sagectl.api.reply import encode
from sagectl.api.rights import Peer, peer_of
from sagectl.errors import MalformedRequest, SagectlError

log = logging.getLogger(__name__)

_BATCH = 16
"""Connections accepted per turn of the loop. Each is read before `Limits.connections` more arrive, so
a flood of silent ones does not drive out one that asks something."""
_BACKLOG = 1024
_HEARING = 1.0
"""Seconds that new connections have to ask something when the daemon ends."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(web.RequestHandler):
    """aiohttp's protocol for one connection, with the times that `Door` watches."""

    __slots__ = (
        "_door",
        "_peer",
        "asked",
        "busy",
        "first_byte",
        "half_closed",
        "last",
        "line",
        "quiet_since",
        "streaming",
        "unread",
    )

    def __init__(self, door: Door, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            tcp_keepalive=False,
            auto_decompress=False,
            lingering_time=door.limits.farewell,
            keepalive_timeout=door.limits.idle,
        )
        self._door = door
        self._peer: Peer | None = None
        self.line: asyncio.Transport | None = None
        self.busy = False
        self.asked = False
        self.half_closed = False
        self.last = False
        self.streaming = False
        self.quiet_since = loop.time()
        self.first_byte: float | None = None
        self.unread = (0, 0, loop.time())

    @property
    def peer(self) -> Peer:
        """Who connected."""
        if self._peer is None:
            assert self.line is not None
            self._peer = peer_of(self.line.get_extra_info("socket"))
        return self._peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or turn it away."""
        assert isinstance(transport, asyncio.Transport)
        self.line = transport
        if self._door.admit(self):
            super().connection_made(transport)
        else:
            transport.write(_TURNED_AWAY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Note when a request begins to arrive."""
        if self.first_byte is None and not self.busy and not self.last:
            self.first_byte = self._loop.time()
        if self.transport is not None:
            super().data_received(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that only closed its sending side (`socat`, `nc -N`)."""
        if self.line is None or not (self.busy or self.first_byte is not None) or hung_up(self.line):
            return None
        self.half_closed = True
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._door.forget(self)
        super().connection_lost(exc)

    def begin(self) -> None:
        """A request is complete, and handled from now on."""
        self.busy = self.asked = True
        self.streaming = False
        self.first_byte = None

    def end(self, *, unread: bool) -> None:
        """Its handler is done. Where it left some of the body unread, no other request can follow."""
        self.busy = False
        self.last = unread or self.half_closed
        self.quiet_since = self._loop.time()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A problem for what is no HTTP, and for what went wrong in here."""
        error: SagectlError
        if status == HTTPStatus.BAD_REQUEST:
            first_line = (message or str(exc) or "").strip().partition("\n")[0].rstrip(":")
            error = MalformedRequest(
                "This is no valid HTTP/1.1 request" + f" ({first_line})" * bool(first_line)
            )
        else:
            log.error("API: %s %s failed", request.method, request.path, exc_info=exc)
            error = Rejected(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "The daemon failed to answer, by a fault of its own; it runs on",
                remedy="Its log has the traceback: report it",
            )
        if self.streaming:
            raise ConnectionError("a part of the answer was sent already")
        answer = problems.response(error)
        answer.force_close()
        return answer


def hung_up(transport: asyncio.Transport) -> bool:
    """Has the peer closed both directions?"""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return bool(poll.poll(0))


def queued_for(transport: asyncio.Transport) -> int:
    """What the kernel holds for the peer, in its own units; it changes whenever the peer reads."""
    number = array.array("i", [0])
    with suppress(OSError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, number)
    return number[0]


def _raw(error: SagectlError) -> bytes:
    answer = encode(problems.document(error))
    status = problems.status_of(error)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {problems.CONTENT_TYPE}\r\n"
        f"Content-Length: {len(answer)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + answer


_TURNED_AWAY = _raw(
    Rejected(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Too many connections are in use",
        remedy="Close some that follow logs or events, or try again",
    )
)
_TOO_SLOW = _raw(
    Rejected(
        HTTPStatus.REQUEST_TIMEOUT,
        "The request's head did not arrive in time",
        remedy="Send it at once",
    )
)


class Door:
    """Accepts connections on a listening socket, and closes those that take too much."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.limits = limits
        self.connections: dict[Connection, None] = {}
        self._handler = handler
        self._server: web.Server | None = None
        self._listening: asyncio.Server | None = None
        self._retired: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, listening: socket.socket) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        server = self._server or web.Server(self._handler, handler_cancellation=True)
        self._server = server
        # From 3.13 on asyncio removes the socket's file, which may be another daemon's by then.
        more: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._listening = await loop.create_unix_server(
            lambda: Connection(self, server, loop), sock=listening, backlog=_BATCH, **more
        )
        listening.listen(_BACKLOG)

    def stop_accepting(self) -> None:
        """Accept no more; connections live on.

        The listening socket is closed later: asyncio drops what it accepted and has not made a connection of
        when its server is closed.
        """
        if self._listening is not None:
            for listening in self._listening.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            self._retired.append(self._listening)
            self._listening = None

    async def close(self) -> None:
        """End every connection, after at most `Limits.farewell` seconds for answers under way."""
        self.stop_accepting()
        await self._hear_out()
        for server in self._retired:
            server.close()
        self._retired.clear()
        for connection in list(self.connections):
            if not connection.busy:
                self._drop(connection)
        if self._server is not None:
            await self._server.shutdown(self.limits.farewell)
            self._server = None
        for connection in list(self.connections):
            if connection.line is not None:
                connection.line.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _hear_out(self) -> None:
        """Who has just connected is about to ask: it gets its answer, not a connection that was reset."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _HEARING
        await asyncio.sleep(0.002)  # those that were accepted just now become connections on the loop
        while loop.time() < end and any(not c.asked and not c.busy for c in self.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.002)  # their bytes arrive on the loop

    def admit(self, connection: Connection) -> bool:
        """Count it in; where there are too many, at the cost of the one that is silent longest."""
        if len(self.connections) >= self.limits.connections:
            idle = [c for c in self.connections if not c.busy]
            if not idle:
                return False
            self._drop(min(idle, key=lambda c: (c.first_byte is not None, c.quiet_since)))
        self.connections[connection] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limits.sweep, self._sweep)
        return True

    def forget(self, connection: Connection) -> None:
        """This connection is gone."""
        self.connections.pop(connection, None)

    def _drop(self, connection: Connection, last_words: bytes = b"") -> None:
        """Close at once. A close that waits for a reader would wait for ever."""
        self.forget(connection)
        line = connection.line
        if line is None:
            return
        if line.get_write_buffer_size() > 0:
            line.abort()
        elif not line.is_closing():
            line.write(last_words)
            line.close()
            if line.get_write_buffer_size() > 0:
                line.abort()

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.connections):
            self._look_at(connection, now)
        self._timer = None
        if self.connections:
            self._timer = asyncio.get_running_loop().call_later(self.limits.sweep, self._sweep)

    def _look_at(self, connection: Connection, now: float) -> None:
        line = connection.line
        assert line is not None
        waiting, queued = line.get_write_buffer_size(), queued_for(line)
        waited, before, since = connection.unread
        # Of a log that never ends there may always be as much left as before: the kernel's queue tells then.
        if waiting == 0 or waiting < waited or queued != before:
            since = now
        connection.unread = (waiting, queued, since)
        stalled = now - since > self.limits.stalled
        if stalled or (connection.half_closed and hung_up(line)):
            line.abort()
        elif connection.busy or waiting:
            return
        elif connection.first_byte is not None:
            if now - connection.first_byte > self.limits.header:
                self._drop(connection, _TOO_SLOW)
        elif connection.half_closed or now - connection.quiet_since > self.limits.idle:
            self._drop(connection)
