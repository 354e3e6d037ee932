"""The daemon's ends of its connections to shims and to the zygote that forks them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sagectl.shim.channel import packed, take
from sagectl.system.shim_messages import is_known
from sagectl.system.start_zygote import Started, start_zygote
from sagectl.system.unit import Unit, scope_group


class Link:
    """A connection to one shim. Sending never waits: what the socket does not take is kept.

    on_message: called with each message that a daemon of this version knows, on the loop.
    on_close: called once when the shim hung up (with ""), or said what makes no sense (with what);
        not after `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[dict[str, Any]], None],
        on_close: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_message, self._on_close = on_message, on_close
        self._incoming, self._outgoing = bytearray(), bytearray()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send now, or as soon as the shim reads."""
        if self._sock.fileno() < 0:
            return
        waiting = bool(self._outgoing)
        self._outgoing += packed(dict(message))
        if not waiting:
            self._writable()

    def close(self) -> None:
        """Hang up."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _writable(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._sock.send(self._outgoing)]
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._writable)
            return
        except OSError:
            self._outgoing.clear()  # the reader sees the end
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._incoming += data
        messages, wrong = self._taken()
        for message in current(messages):
            if self._sock.fileno() < 0:
                return
            self._on_message(message)
        if (wrong or not data) and self._sock.fileno() >= 0:
            self.close()
            self._on_close(wrong)

    def _taken(self) -> tuple[list[dict[str, Any]], str]:
        """The whole messages that have come and are known, and what makes no sense after them."""
        messages = []
        try:
            while (message := take(self._incoming)) is not None:
                if is_known(message):
                    messages.append(message)
        except ValueError as error:
            return messages, str(error)
        return messages, ""


def current(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without each word of an engine's status that another one among them replaces.

    An engine may say what it does many thousand times a second.
    """
    replaced: set[int] = set()
    kept = []
    for message in reversed(messages):
        fields = message["fields"] if message["op"] == "notify" else {}
        if fields.keys() == {"STATUS"} and message["generation"] in replaced:
            continue
        if "STATUS" in fields:
            replaced.add(message["generation"])
        kept.append(message)
    return kept[::-1]


def connect(directory: Path) -> socket.socket:
    """A connection to the living shim of this directory. Raises OSError where there is none."""
    folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(f"/proc/self/fd/{folder}/shim.sock")  # an address has room for 107 bytes only
    except OSError:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock


class Zygote:
    """The process that forks shims. Replaced at once when it ends; what was asked meanwhile waits."""

    def __init__(
        self,
        runtime: Path,
        started: Started | None = None,
        unit: Unit | None = None,
        placed: Callable[[int], None] = lambda pid: None,
    ) -> None:
        """
        Args:
            placed: called with the pid of each later zygote.
            started: one that was started already.
            unit: the service in whose scope it is to live.
        """
        self._runtime, self._unit, self._placed = runtime, unit, placed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, socket.socket]] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._starts = 0
        self._began = 0.0
        self._take(started or start_zygote(runtime, unit))

    @property
    def pid(self) -> int | None:
        """Its process id; None while there is none."""
        return self._process.pid if self._process else None

    def _take(self, started: Started) -> None:
        self._process, self._sock = started
        self._began = self._loop.time()
        self._loop.add_reader(self._sock, self._ended)
        self._flush()

    def spawn(self, order: Mapping[str, Any], sock: socket.socket) -> None:
        """Fork a shim that talks on `sock` (which is closed here). Without success that just closes."""
        self._queue.append((json.dumps(order).encode(), sock))
        self._flush()

    def _flush(self) -> None:
        while self._queue and self._sock:
            data, sock = self._queue[0]
            try:
                socket.send_fds(self._sock, [data], [sock.fileno()])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                return  # it is gone; the reader sees that
            self._queue.popleft()
            sock.close()
        if self._sock:
            self._loop.remove_writer(self._sock)

    def replace(self, age: float) -> None:
        """Kill it and start another, if it has lived for `age` seconds; what it had not begun is lost."""
        if self._sock and self._loop.time() - self._began >= age:
            self._disconnect()
            self._restart()

    def _ended(self) -> None:
        self._disconnect()
        self._starts += 1
        # one that dies again and again must not keep the daemon busy
        self._loop.call_later(0 if self._starts < 3 else 1.0, self._restart)

    def _restart(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            # Where a scope cannot be had it lives in the service's own group.
            scope = scope_group(self._unit) if self._unit is not None else None
            self._take(start_zygote(self._runtime, self._unit if scope is not None else None))
            self._placed(self._process.pid)

    def _disconnect(self) -> None:
        if self._sock:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None

    def close(self) -> None:
        """Let it end; its shims stay."""
        self._disconnect()
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        for _, sock in self._queue:
            sock.close()
        self._queue.clear()
