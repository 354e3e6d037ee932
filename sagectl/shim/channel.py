"""The poll loop of a shim, and its connection to the daemon, on which nothing ever waits."""

from __future__ import annotations

import json
import select
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

SEND_LIMIT = 1 << 20  # unsent bytes at which a daemon that does not read is hung up on
MESSAGE_LIMIT = 128 << 20  # far above what the kernel takes as arguments and environment
DEEPEST = 64  # levels of nesting; the JSON module's own limit depends on who calls it


def packed(message: dict[str, Any]) -> bytes:
    """A message as it travels: JSON after its length in 4 bytes."""
    data = json.dumps(message).encode()
    return struct.pack(">I", len(data)) + data


def take(buffer: bytearray) -> dict[str, Any] | None:
    """Remove the first message from the buffer; None while it is not complete.

    Raises ValueError for what is no message: nothing after it can be one either.
    """
    if len(buffer) < 4:
        return None
    size = struct.unpack_from(">I", buffer)[0]
    if size > MESSAGE_LIMIT:
        raise ValueError("too long")
    if len(buffer) < size + 4:
        return None
    text = bytes(buffer[4 : size + 4])
    del buffer[: size + 4]
    try:
        message = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict) or _is_deep(message):
        raise ValueError("no object, or nested too deeply")
    return message


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


class Loop:
    """Which function is called when a descriptor is ready."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` can be read."""
        self.handlers[fd] = handler
        self.poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`, if it is known."""
        if self.handlers.pop(fd, None):
            self.poll.unregister(fd)

    def turn(self, timeout: float | None) -> None:
        """Wait at most this long (seconds) and call whose descriptor is ready.

        A descriptor's number may be another's by the time its handler is called, so handlers must
        bear to be called with nothing to read.
        """
        for fd, _ in self.poll.poll(None if timeout is None else max(0.0, timeout * 1000)):
            handler = self.handlers.get(fd)
            if handler:
                handler()


class Channel:
    """The connection to the daemon; without one, messages are dropped: the next hello tells all."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.socket: socket.socket | None = None
        self.incoming, self.outgoing = bytearray(), bytearray()

    def attach(self, connection: socket.socket, handler: Callable[[], None]) -> None:
        """Talk on this connection from now on; the last one is closed: the newest daemon wins."""
        self.close()
        connection.setblocking(False)
        self.socket = connection
        self.loop.watch(connection.fileno(), handler)

    def close(self) -> None:
        """Hang up, if there is a connection."""
        if self.socket:
            self.loop.unwatch(self.socket.fileno())
            self.socket.close()
        self.socket = None
        self.incoming.clear()
        self.outgoing.clear()

    def send(self, **message: Any) -> None:
        """Send now, or as soon as the daemon reads."""
        if self.socket:
            self.outgoing += packed(message)
            self._flush()

    def _flush(self) -> None:
        assert self.socket
        try:
            while self.outgoing:
                del self.outgoing[: self.socket.send(self.outgoing)]
        except BlockingIOError:
            if len(self.outgoing) > SEND_LIMIT:
                self.close()
                return
        except OSError:
            self.close()
            return
        self.loop.poll.modify(self.socket, select.POLLIN | (select.POLLOUT if self.outgoing else 0))

    def receive(self) -> Iterator[dict[str, Any]]:
        """The messages that have arrived. Hangs up at the end, and on what is no message."""
        if self.socket and self.outgoing:
            self._flush()
        if not self.socket:
            return
        try:
            data = self.socket.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.incoming += data
        while True:
            try:
                message = take(self.incoming)
            except ValueError:
                self.close()
                return
            if message is None:
                return
            yield message
