"""What daemons, logs and programs say, awaited without polling."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sagectl.client import Client, Event
from sagectl.errors import SagectlError

PATIENCE = 30.0
"""Seconds for anything that is awaited: far more than it takes, so that a busy machine fails nothing."""


class Mailbox:
    """Where the scenarios' programs say what they do: one datagram a message."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def expect(self, beginning: str, timeout: float = PATIENCE) -> str:
        """The next unread message with this beginning; returns the rest of it. Others are kept."""
        end = time.monotonic() + timeout
        while True:
            for message in self.read:
                if message.startswith(beginning):
                    self.read.remove(message)
                    return message[len(beginning) :].strip()
            self._receive(end, beginning)

    def _receive(self, end: float, wanted: str) -> None:
        self._socket.settimeout(max(0.001, end - time.monotonic()))
        try:
            self.read.append(self._socket.recv(65536).decode())
        except TimeoutError:
            raise AssertionError(f"nobody said {wanted!r}; unread: {self.read}") from None

    def close(self) -> None:
        self._socket.close()


class Follower:
    """Every event of one run of the daemon, in order, as they come."""

    def __init__(self, client: Client, last: int | None) -> None:
        self.queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        stream = client.events(follow=True, last_event_id=last or 0, reconnect=False)
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: Iterator[Event]) -> None:
        with contextlib.suppress(SagectlError, OSError):
            for event in stream:
                self.queue.put(event)
        self.queue.put(None)


class FollowedLog:
    """An engine's log as `client.logs(follow=True)` brings it."""

    def __init__(self, client: Client, name: str) -> None:
        self.text = b""
        self.ended = False
        self._came = threading.Condition()
        pieces = client.logs(name, follow=True)
        threading.Thread(target=self._read, args=(pieces,), daemon=True).start()

    def _read(self, pieces: Iterator[bytes]) -> None:
        with contextlib.suppress(SagectlError, OSError):
            for piece in pieces:
                with self._came:
                    self.text += piece
                    self._came.notify()
        with self._came:
            self.ended = True
            self._came.notify()

    def expect(self, words: bytes, timeout: float = PATIENCE) -> None:
        """Return when the log holds these bytes."""
        with self._came:
            found = self._came.wait_for(lambda: words in self.text or self.ended, timeout)
            assert found, f"{words!r} did not come; the log ends with {self.text[-2000:]!r}"
            assert words in self.text, f"the stream ended without {words!r}: {self.text[-2000:]!r}"
