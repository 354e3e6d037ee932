"""The API on its Unix socket: the socket itself, and the way of a request from the line to its route."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from sagectl.api import problems
from sagectl.api.connections import Connection, Door
from sagectl.api.limits import Limits
from sagectl.api.openapi import document
from sagectl.api.reply import encode
from sagectl.api.requests import check_ref, no_body, read_definition, read_query
from sagectl.api.rights import Level, Peer, Rights, group_id
from sagectl.api.routes import Call, NotAllowed, Route, Router
from sagectl.api.service import Service
from sagectl.api.table import ROUTES
from sagectl.errors import DaemonRefusal, SagectlError

if TYPE_CHECKING:
    from sagectl.daemon.control import Control

log = logging.getLogger(__name__)

_LONGEST_PATH = 107
_MODE = 0o660


class ApiServer:
    """Answers on `socket_path` with what `control` offers.

    Args:
        owner_uid: the daemon's own user, who may do everything, as root may.
        group: `[daemon] group`, whose members may look, start and stop.
        listening: an already bound socket instead of a new one at `socket_path`.
        ours: that one is to be removed in the end (an earlier image of this daemon made it).
    """

    def __init__(
        self,
        control: Control,
        socket_path: Path,
        *,
        owner_uid: int,
        group: str | None,
        listening: socket.socket | None = None,
        ours: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._path = socket_path
        self._rights = Rights(owner_uid, group, group_id(group))
        self._listening = listening
        self._ours = ours
        self._inode: int | None = None
        self._limits = limits or Limits()
        self._router = Router(ROUTES)
        self.service = Service(control, self._limits, encode(document(ROUTES)))
        self.door = Door(self._answer, self._limits)

    async def start(self) -> None:
        """Bind and accept. Raises DaemonRefusal where the socket cannot be made."""
        listening = self._listening
        if listening is None:
            listening = self._listening = bind(self._path, self._rights.gid)
            self._ours = True
        if self._ours:
            self._inode = _inode(self._path) or -1  # removed while it was handed over: `reachable` tells
        await self.door.open(listening)

    def handover(self) -> int:
        """A descriptor of the listening socket, which then outlives `stop`; who connects meanwhile waits."""
        assert self._listening is not None
        self._inode = None
        return os.dup(self._listening.fileno())

    def reachable(self) -> bool:
        """The socket that was made is still where clients look for it."""
        return self._inode is None or _inode(self._path) == self._inode

    async def reopen(self) -> None:
        """Make the socket again; connections go on. Raises DaemonRefusal."""
        listening = bind(self._path, self._rights.gid)
        self._inode = _inode(self._path)
        self.door.stop_accepting()
        self._listening = listening
        await self.door.open(listening)

    async def stop(self) -> None:
        """Stop accepting, end those who follow or wait, give other answers a moment, remove the socket."""
        self.door.stop_accepting()
        if self._inode is not None and _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)
        self._inode = None
        self.service.end_long_requests()
        await self.door.close()

    def regroup(self, group: str | None) -> None:
        """`[daemon] group` changed. Raises DaemonRefusal, changing nothing."""
        gid = group_id(group)
        if self._inode is not None:
            _give_to(self._path, gid)
        self._rights = Rights(self._rights.owner_uid, group, gid)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.begin()
        self.service.connections = len(self.door.connections)
        route: Route | None = None
        status = 500
        try:
            self._rights.demand(_needed_at_all(request), connection.peer)
            route, ref = self._router.find(request.method, request.rel_url.raw_path)
            response = await self._call(route, ref, request, connection.peer)
            status = response.status
        except SagectlError as error:
            response = problems.response(error)
            status = response.status
            if isinstance(error, NotAllowed):
                response.headers["Allow"] = error.allow
        except asyncio.CancelledError:
            status = 499  # the client left, as nginx counts it
            raise
        finally:
            connection.end(unread=request.can_read_body)
            path, method = (route.path, request.method) if route else ("other", "other")
            self.service.answered[method, path, status] += 1
        if connection.last:
            response.force_close()
        return response

    async def _call(self, route: Route, ref: str, request: web.BaseRequest, peer: Peer) -> web.StreamResponse:
        self._rights.demand(route.level, peer)
        if ref:
            check_ref(ref)
        query = read_query(request, route.params)
        body = (
            await read_definition(request, self._limits)
            if route.takes_body
            else await no_body(request, self._limits)
        )
        return await route.answer(Call(self.service, request, ref, query, body))


def _needed_at_all(request: web.BaseRequest) -> Level:
    """A stranger learns nothing, not even which paths there are."""
    return Level.NOTHING if request.path == "/healthz" else Level.OPERATE


def bind(path: Path, gid: int | None) -> socket.socket:
    """A bound socket at `path`, with its mode and group set before anyone can connect.

    What an earlier daemon left there is replaced: the caller holds the daemon's lock. Raises DaemonRefusal.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _remove_left_over(path)
        mask = os.umask(0o177)
        try:
            _bind(listening, path)
        finally:
            os.umask(mask)
        if gid is not None:
            _give_to(path, gid)
        path.chmod(_MODE)
    except OSError as error:
        listening.close()
        raise DaemonRefusal(
            f"The API's socket {path} cannot be made: {error.strerror or error}",
            remedy="See to its directory, which must be the daemon's own",
        ) from error
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_left_over(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise DaemonRefusal(f"{path} is in the way: it is not a socket", remedy="Move it away")
    path.unlink()


def _bind(listening: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        listening.bind(str(path))
        return
    # Too long for an address, but its directory's descriptor makes it short.
    folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        listening.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _give_to(path: Path, gid: int | None) -> None:
    try:
        os.chown(path, -1, os.getegid() if gid is None else gid)
    except PermissionError:
        raise DaemonRefusal(
            f"User {os.getuid()} may not give {path} to the group {gid}",
            remedy="Become a member of that group, or leave [daemon] group out",
        ) from None


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None
