"""Keeping in touch with one engine's shim: connecting to it, having it made, replacing it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sagectl.shim import tree
from sagectl.system.shim_link import Link, connect

RECALLED = 1.0  # seconds that a living shim has to put its files back
HUNG = 5.0  # seconds without an answer after which a living shim is killed and replaced
ATTEMPTS = 5  # to reach a shim, before that counts as trouble
LASTING = 5.0  # seconds that a connection should hold
LOSSES = 10  # connections in a row that did not, after which the next one is not made at once

log = logging.getLogger("sagectl.shim")


class ShimOwner(Protocol):
    """Whom a `ShimKeeper` works for. Called on the event loop."""

    def made(self) -> None:
        """A shim is being made where none ever was, so nothing can be alive: it may be told what to do."""

    def greeted(self, hello: dict[str, Any], replaced: int) -> None:
        """A shim said hello; `replaced` is the pid of a dead one in whose place it is, else 0."""

    def received(self, message: dict[str, Any]) -> None:
        """A message other than hello."""

    def lost(self) -> bool:
        """The connection is gone. True: see that there is one again."""

    def unreachable(self, text: str) -> bool:
        """No shim can be had, and why. True: stop trying."""


class ShimKeeper:
    """At most one connection to at most one shim.

    spawn: has a shim made that talks on the given socket; True where none ever was.
    unmade: told that nothing came of that in time.
    """

    def __init__(
        self,
        directory: Path,
        owner: ShimOwner,
        spawn: Callable[[socket.socket], bool],
        unmade: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._directory, self._owner, self._spawn, self._unmade = directory, owner, spawn, unmade
        self._link: Link | None = None
        self._hello: asyncio.Future[bool] | None = None
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        self._losses, self._since = 0, 0.0  # connections lost soon after their hello; when that was
        self._fd = -1  # pidfd of the shim
        self.stray: tuple[int, int] | None = None  # a living shim that was found without its files
        self.pid = 0
        self.talking = False  # its hello was read on this connection
        self.ordered = 0  # the generation whose launch was sent on this connection before the hello

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send to the shim; False where there is none to talk to."""
        if self._link is None or not self.talking:
            return False
        self._link.send(message)
        return True

    def order(self, generation: int, message: Mapping[str, Any]) -> None:
        """Send a launch to a shim that is still being made."""
        if self._link:
            self._link.send(message)
            self.ordered = generation

    def reach(self) -> asyncio.Task[None]:
        """See that there is a shim, and that we talk with it; the task is done when that is so."""
        if self._task is None:
            self._task = self._loop.create_task(self._until_greeted())
            self._task.add_done_callback(self._reached)
        return self._task

    async def close(self) -> None:
        """Hang up; the shim stays as it is."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._link:
            self._link.close()
        self.talking = False
        self.forget()

    def forget(self) -> None:
        """The shim is no more; reap it if it was ours, which it is where its zygote died before it."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            reap(os.P_PIDFD, self._fd)
            os.close(self._fd)
        self._fd, self.pid = -1, 0

    def _reached(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and not self.talking and not task.exception() and self._owner.lost():
            self.reach()  # lost again just now

    async def _until_greeted(self) -> None:
        attempts = 0
        if self._losses > LOSSES:
            await asyncio.sleep(1.0)
        while True:
            self._hello = self._loop.create_future()
            spawned = not self._connect() and not await self._recall()
            if spawned:
                ours, theirs = socket.socketpair()
                self._attach(ours)
                if self._spawn(theirs):
                    self._owner.made()
            try:
                async with asyncio.timeout(HUNG):
                    if await self._hello:
                        return
            except TimeoutError:
                self._kill_hung()
                if spawned:
                    self._unmade()
            attempts += 1
            text = self._trouble or f"its shim ends at once (see {self._directory}/shim.crash)"
            if attempts >= ATTEMPTS and self._owner.unreachable(text):
                return
            await asyncio.sleep(0.01 if attempts < ATTEMPTS else 1.0)

    def _connect(self) -> bool:
        if self._fd >= 0 and tree.has_ended(self._fd):
            return False
        holder = self._lock_holder()
        fields = tree.process_stat(holder[0]) if holder else None
        if holder and fields and fields[0] == b"T":
            tree.kill_verified(*holder, signal.SIGCONT)  # stopped by somebody it would never answer
        try:
            self._attach(connect(self._directory))
        except OSError:
            return False
        return True

    def _attach(self, sock: socket.socket) -> None:
        if self._link:
            self._link.close()
        self.talking, self.ordered = False, 0
        self._link = Link(sock, self._received, self._lost)

    def _received(self, message: dict[str, Any]) -> None:
        if message["op"] == "hello":
            self._greeted(message)
        elif message["op"] == "fatal":
            self._trouble = message["text"]
        else:
            self._owner.received(message)

    def _greeted(self, hello: dict[str, Any]) -> None:
        pid, before = hello["shim_pid"], self.pid
        if pid != before:
            self.forget()
            with contextlib.suppress(OSError):  # it died meanwhile: the end of the connection tells
                self._fd, self.pid = os.pidfd_open(pid), pid
                self._loop.add_reader(self._fd, self._died)
        self.talking, self._since = True, self._loop.time()
        self._owner.greeted(hello, before if before != pid else 0)
        if self._hello and not self._hello.done():
            self._hello.set_result(True)

    def _lost(self, wrong: str = "") -> None:
        if wrong:
            self._trouble = f"its shim does not make sense: it sent {wrong}"
            log.warning("%s: %s", self._directory.name, self._trouble)
        if self.talking:
            lasted = self._loop.time() - self._since
            self._losses = self._losses + 1 if lasted < LASTING else 0
        self._link, self.talking = None, False
        if self._hello and not self._hello.done():
            self._hello.set_result(False)
        if self._owner.lost():
            self.reach()

    def _died(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._link and self.talking:
            self._link.close()
            self._lost()

    async def _recall(self) -> bool:
        """A shim lives, but somebody removed its files: it puts them back, or makes room for another."""
        old = self._living()
        if old is None:
            return False
        for number in (signal.SIGCONT, signal.SIGHUP):
            tree.kill_verified(*old, number)
        end = self._loop.time() + RECALLED
        while self._loop.time() < end and self._living() is not None:
            await asyncio.sleep(0.005)  # it has no line to us on which it could tell
            if self._connect():
                return True
        self._kill_hung()
        return False

    def _living(self) -> tuple[int, int] | None:
        """The shim that holds the directory's lock, or the one that was found without it; if it lives."""
        for found in (self._lock_holder(), self.stray):
            if found is not None and tree.start_time(found[0]) == found[1]:
                fields = tree.process_stat(found[0])
                if fields and tree.alive(fields):
                    return found
        return None

    def _lock_holder(self) -> tuple[int, int] | None:
        try:
            pid, since = map(int, (self._directory / "shim.lock").read_text().split())
        except (OSError, ValueError):
            return None
        return pid, since

    def _kill_hung(self) -> None:
        """One that does not answer is worth less than a new one that adopts."""
        old = self._living()
        if old is not None:
            tree.kill_verified(*old, signal.SIGKILL)

    def wake(self) -> bool:
        """Continue a shim that somebody stopped; True where that was so."""
        fields = tree.process_stat(self.pid) if self.pid else None
        if not fields or fields[0] != b"T" or self._fd < 0:
            return False
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._fd, signal.SIGCONT)
        return True


def reap(kind: int, number: int) -> None:
    """Reap this child if it is one of ours and has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(kind, number, os.WEXITED | os.WNOHANG)
