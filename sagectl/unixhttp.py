"""HTTP/1.1 over a Unix socket: just what the client needs, without http.client's 20 ms of imports."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

_LINE = 65536
_PIECE = 65536
_LONGEST_PATH = 107
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~@")


class Broken(Exception):
    """The peer ended the connection early."""


class Foreign(Broken):
    """The peer says what no sagectl daemon says."""


class Response:
    """An answer whose head has been read. Close it, or use it with `with`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self.status, self.headers = self._head()
        while self.status == 100:
            self.status, self.headers = self._head()

    def _head(self) -> tuple[int, dict[str, str]]:
        words = self._line().split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise Foreign("it does not speak HTTP")
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return int(words[1]), headers

    def _line(self) -> str:
        line = self._stream.readline(_LINE)
        if len(line) >= _LINE:
            raise Foreign("it does not speak HTTP")
        if not line.endswith(b"\n"):
            raise Broken("it closed the connection in the middle of an answer")
        return line.rstrip(b"\r\n").decode("latin-1")

    def patience(self, seconds: float | None) -> None:
        """How long each further read may take; None: for ever."""
        self._connection.settimeout(seconds)

    def read(self) -> bytes:
        """All of the body."""
        return b"".join(self.pieces())

    def lines(self) -> Iterator[str]:
        """The body's lines in UTF-8, without their ends."""
        rest = b""
        for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.removesuffix(b"\r").decode("utf-8", "replace")

    def server_sent(self) -> Iterator[tuple[int | None, str]]:
        """The body's server-sent events: id (None for one without) and data ("" for an id alone)."""
        event_id: int | None = None
        data: list[str] = []
        for line in self.lines():
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                yield event_id, "\n".join(data)
                event_id, data = None, []
            elif field == "data":
                data.append(value)
            elif field == "id" and value.isdigit():
                event_id = int(value)

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives. Raises Broken where it ends before its time."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks()
        elif "content-length" in self.headers:
            yield from self._counted(_number(self.headers["content-length"], 10))
        elif self.status not in (204, 304):
            while piece := self._stream.read1(_PIECE):
                yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := _number(self._line().partition(";")[0], 16):
            yield from self._counted(size)
            self._line()
        while self._line():
            pass

    def _counted(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._stream.read1(min(size, _PIECE))
            if not piece:
                raise Broken("it closed the connection in the middle of an answer")
            size -= len(piece)
            yield piece

    def close(self) -> None:
        """Leave, also in the middle of the body."""
        self._stream.close()
        self._connection.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise Foreign("it does not speak HTTP") from None


def request(
    path: str, method: str, target: str, body: bytes | None, headers: Mapping[str, str], patience: float
) -> Response:
    """Send a request on a new connection and read the head of the answer.

    patience: seconds that connecting, sending and each read may take.

    Raises: OSError, Broken.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect(connection, path, patience)
        fields = {"Host": "localhost", "Connection": "close", **headers}
        if body is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        elif method == "POST":
            fields["Content-Length"] = "0"
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        message = f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b"")
        try:  # noqa: SIM105  (contextlib's suppress would cost an import)
            connection.sendall(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have answered without reading all of it, with 413 say
        return Response(connection)
    except BaseException:
        connection.close()
        raise


def _connect(connection: socket.socket, path: str, patience: float) -> None:
    connection.settimeout(patience)
    end = time.monotonic() + patience
    folder, name = os.path.split(path)
    # A longer path does not fit into the address; through its directory's descriptor it does.
    descriptor = (
        os.open(folder or ".", os.O_PATH | os.O_CLOEXEC) if len(os.fsencode(path)) > _LONGEST_PATH else -1
    )
    try:
        address = path if descriptor < 0 else f"/proc/self/fd/{descriptor}/{name}"
        while True:
            try:
                return connection.connect(address)
            except BlockingIOError:  # the daemon's queue of new connections is full
                if time.monotonic() > end:
                    raise TimeoutError("its queue of new connections is full") from None
                time.sleep(0.01)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def quote(text: str) -> str:
    """Percent-encode one segment of a path or one value of a query."""
    return "".join(
        chr(b) if b in _UNRESERVED else f"%{b:02X}" for b in text.encode("utf-8", "surrogateescape")
    )


def query(parameters: Mapping[str, Any]) -> str:
    """`?a=1&b=text`, or "". Booleans become 1 and 0; what is None is left out."""
    given = [
        (k, str(int(v)) if isinstance(v, bool) else str(v)) for k, v in parameters.items() if v is not None
    ]
    return "?" + "&".join(f"{k}={quote(v)}" for k, v in given) if given else ""
