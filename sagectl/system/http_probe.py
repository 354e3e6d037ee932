"""HTTP for probes: a parser, the judgement of an answer, and a connection on the running event loop.

A general HTTP client costs ten times the CPU, and 200 engines are asked every few seconds.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagectl.plugin import HttpProbe

MAX_BODY = 1 << 20
MAX_HEAD = 1 << 16
_RECEIVE = 65536
_BODILESS = (204, 304)

OUR_FAULT = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EAGAIN}
)
"""Errors of the machine or of the daemon, from which nothing follows about an engine."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, its body cut after 1 MiB. `status` 0: only a connection was asked for, and made."""

    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Trouble:
    """No (proper) response, and why."""

    text: str
    errno: int | None = None


class MalformedResponse(Exception):
    """The peer does not speak HTTP/1."""


class ResponseReader:
    """Parses one HTTP/1 response. After `feed` or `end` returned True, `status` and `body` are final.

    keep_alive: the connection can be used for the next request.
    """

    def __init__(self, method: str = "GET") -> None:
        self.status = 0
        self.body = bytearray()
        self.keep_alive = False
        self.started = False
        self._head_only = method == "HEAD"
        self._buffer = bytearray()
        self._in_body = False
        self._length: int | None = None
        self._chunked = False
        self._chunk_left = 0
        self._in_trailers = False

    def feed(self, data: bytes) -> bool:
        """Take received bytes. Returns whether the response is complete (or long enough).

        Raises:
            MalformedResponse: it is not HTTP.
        """
        self.started = True
        self._buffer += data
        if not self._in_body and not self._read_head():
            return False
        complete = self._read_chunks() if self._chunked else self._read_plain()
        if complete and self._buffer:
            self.keep_alive = False  # bytes that nobody asked for
        if not complete and len(self.body) >= MAX_BODY:
            self.keep_alive = False
            return True
        return complete

    def end(self) -> bool:
        """The peer closed the connection. Returns whether the response is complete by that."""
        self.keep_alive = False
        return self._in_body and self._length is None and not self._chunked

    def _read_head(self) -> bool:
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD:
                    raise MalformedResponse("its header does not end")
                if not b"HTTP/1.".startswith(bytes(self._buffer[:7])):
                    raise MalformedResponse(f"it answered {bytes(self._buffer[:40])!r}, which is not HTTP")
                return False
            lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            del self._buffer[: end + 4]
            self._read_status(lines[0])
            if self.status >= 200 or self.status == 101:
                self._read_fields(lines)
                self._in_body = True
                return True

    def _read_status(self, line: str) -> None:
        version, _, rest = line.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
            raise MalformedResponse(f"it answered {line[:40]!r}, which is not HTTP")
        self.status = int(code)
        self.keep_alive = version == "HTTP/1.1"

    def _read_fields(self, lines: Sequence[str]) -> None:
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
        connection = fields.get("connection", "").lower()
        self.keep_alive = "close" not in connection and (self.keep_alive or "keep-alive" in connection)
        if self._head_only or self.status in _BODILESS or self.status == 101:
            self._length = 0
        elif "chunked" in fields.get("transfer-encoding", "").lower():
            self._chunked = True
        elif (length := fields.get("content-length")) is not None:
            if not (length.isascii() and length.isdigit()):
                raise MalformedResponse(f"its Content-Length is {length[:40]!r}")
            self._length = int(length)
        else:
            self.keep_alive = False

    def _read_plain(self) -> bool:
        wanted = MAX_BODY if self._length is None else min(self._length, MAX_BODY)
        take = min(wanted - len(self.body), len(self._buffer))
        self.body += self._buffer[:take]
        del self._buffer[:take]
        return self._length is not None and len(self.body) == self._length

    def _read_chunks(self) -> bool:
        while len(self.body) < MAX_BODY:
            if self._chunk_left:
                # A chunk is followed by an empty line, counted in `_chunk_left` but not in the body.
                take = min(self._chunk_left, len(self._buffer))
                self.body += self._buffer[: max(0, min(take, self._chunk_left - 2))]
                del self._buffer[:take]
                self._chunk_left -= take
                if self._chunk_left:
                    return False
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD:
                    raise MalformedResponse("a chunk's length does not end")
                return False
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            if self._in_trailers:
                if not line:
                    return True
                continue
            self._start_chunk(line)
        return False

    def _start_chunk(self, line: bytes) -> None:
        digits = line.split(b";")[0].strip()
        if not digits or digits.strip(b"0123456789abcdefABCDEF"):
            raise MalformedResponse(f"a chunk's length is {digits[:20]!r}")
        size = int(digits, 16)
        if size == 0:
            self._in_trailers = True
        else:
            self._chunk_left = size + 2


def judge(probe: HttpProbe, answer: Answer) -> str | None:
    """Why this answer does not satisfy the probe, None where it does."""
    said = f"{probe.method} {probe.path} answered {answer.status}"
    if not 200 <= answer.status <= 399:
        text = " ".join(answer.body[:1000].decode(errors="replace").split())
        return f"{said}: {text[:200]}" if text else said
    if probe.contains is not None and probe.contains.encode() not in answer.body:
        return f"{said} without {probe.contains!r} in its body"
    if probe.json_path:
        return _judge_json(said, probe.json_path, answer.body)
    return None


def _judge_json(said: str, path: Sequence[str | int], body: bytes) -> str | None:
    way = ".".join(str(step) for step in path)
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return f"{said}, but its body is not JSON"
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return f"{said}, but {way} is missing"
    return None if value else f"{said}, but {way} is {json.dumps(value)}"


def request_bytes(probe: HttpProbe, host: str, port: int, env: Mapping[str, str] | None = None) -> bytes:
    """The request of a probe, as it goes over the wire. `env`: the engine's, for `bearer_env`."""
    name = f"[{host}]" if ":" in host else host
    head = f"{probe.method} {probe.path} HTTP/1.1\r\nHost: {name}:{port}\r\n"
    head += "User-Agent: sagectl\r\nAccept: */*\r\n"
    token = (env or {}).get(probe.bearer_env, "").strip() if probe.bearer_env else ""
    if token.isascii() and token.isprintable() and token:  # anything else would break the header
        head += f"Authorization: Bearer {token}\r\n"
    body = b"" if probe.body is None else probe.body.encode()
    if probe.body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """Where to reach whoever listens there: pairs of address family and socket address.

    Raises:
        OSError: the name means nothing.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


class Wire:
    """One engine's address and the connection that is kept to it between asks.

    `done` is called once for each `ask` that was not given up, possibly before `ask` returns.
    """

    def __init__(
        self, addresses: Sequence[tuple[int, Any]], done: Callable[[Answer | Trouble], None]
    ) -> None:
        self._addresses = addresses
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._which = 0
        self._tried = 0
        self._sock: socket.socket | None = None
        self._writing = False
        self._reused = False
        self._keep = True
        self._request = b""
        self._left = b""
        self._method = ""
        self._reader: ResponseReader | None = None

    def ask(self, method: str, request: bytes) -> None:
        """Send a request. An empty one asks for no more than a connection, and closes it."""
        self._method, self._request = method, request
        self._reader = ResponseReader(method)
        self._tried = 0
        self._reused = self._sock is not None
        self._left = request
        if self._sock is None:
            self._connect()
        else:
            self._send()

    def close(self) -> None:
        """Give up what was asked, and the connection."""
        self._reader = None
        self._drop()

    def _drop(self) -> None:
        if self._sock is None:
            return
        self._loop.remove_reader(self._sock)
        if self._writing:
            self._loop.remove_writer(self._sock)
            self._writing = False
        self._sock.close()
        self._sock = None

    def _connect(self) -> None:
        family, address = self._addresses[self._which]
        self._left = self._request
        try:
            self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            # On loopback it is established when this returns, although it says EINPROGRESS.
            result = self._sock.connect_ex(address)
        except OSError as error:
            self._lost(error)
            return
        if result not in (0, errno.EINPROGRESS):
            self._lost(OSError(result, os.strerror(result)))
            return
        self._send()

    def _send(self) -> None:
        assert self._sock is not None
        try:
            sent = self._sock.send(self._left)
        except BlockingIOError:
            sent = -1
        except OSError as error:
            self._lost(error)
            return
        if 0 <= sent == len(self._left):
            self._sent()
            return
        self._left = self._left[max(sent, 0) :]
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._send)

    def _sent(self) -> None:
        assert self._sock is not None
        if self._writing:
            self._loop.remove_writer(self._sock)
            self._writing = False
        if not self._request:
            self._finish(Answer(0))
        elif not self._reused:
            self._loop.add_reader(self._sock, self._receive)

    def _receive(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        reader = self._reader
        if reader is None:
            # Closed while idle, or something that nobody asked for. A server that closes first
            # keeps the port in TIME_WAIT, in the way of its own restart: from now on we close.
            self._keep = False
            self._drop()
            return
        try:
            complete = reader.feed(data) if data else reader.end()
        except MalformedResponse as error:
            self._finish(Trouble(str(error)))
            return
        if complete:
            self._finish(Answer(reader.status, bytes(reader.body)), keep=reader.keep_alive)
        elif not data:
            self._lost(None)

    def _lost(self, error: OSError | None) -> None:
        self._drop()
        if self._reader is None:
            return
        if self._reused and not self._reader.started:
            # The server closed the idle connection just as it was used again: no failure of anybody.
            self._reused = False
            self._keep = False
            self._connect()
            return
        if error is None:
            self._finish(Trouble("it closed the connection before its answer was complete"))
            return
        self._tried += 1
        if error.errno == errno.ECONNREFUSED and self._tried < len(self._addresses):
            self._which = (self._which + 1) % len(self._addresses)
            self._reused = False
            self._connect()
            return
        self._finish(Trouble(_reason(error), error.errno))

    def _finish(self, result: Answer | Trouble, *, keep: bool = False) -> None:
        self._reader = None
        if not (keep and self._keep):
            self._drop()
        self._done(result)


def _reason(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "connection refused: nothing listens there yet, or no more"
    if error.errno == errno.ECONNRESET:
        return "it reset the connection"
    return error.strerror or str(error)
