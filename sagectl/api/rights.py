"""Who is on the other end of the socket, and what they may do: the kernel's word, and two levels."""

from __future__ import annotations

import errno
import grp
import pwd
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from sagectl.errors import DaemonRefusal, Forbidden

_SO_PEERGROUPS = 59  # Linux 4.13; the socket module has no name for it
_GROUPS_BYTES = 1024  # the most that socket.getsockopt takes: 256 groups


class Level(IntEnum):
    """What a peer may do; each includes those before."""

    NOTHING = 0
    """Ask whether the daemon is alive."""
    OPERATE = 1
    """Look, start, stop, restart, reset failures."""
    DEFINE = 2
    """Define engines, enable and disable, reload, shut down."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as it was then."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """The credentials that the kernel noted when this Unix socket was connected."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("iII", packed)
    return Peer(pid=pid, uid=uid, gid=gid, groups=_groups(connection, uid))


def _groups(connection: socket.socket, uid: int) -> frozenset[int]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as error:
        if error.errno not in (errno.ERANGE, errno.ENOPROTOOPT):
            raise
        return _groups_in_database(uid)
    return frozenset(struct.unpack(f"{len(packed) // 4}I", packed))


def _groups_in_database(uid: int) -> frozenset[int]:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return frozenset()
    return frozenset(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)


def group_id(group: str | None) -> int | None:
    """The id of `[daemon] group`. Raises DaemonRefusal where there is no such group."""
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise DaemonRefusal(
            f'[daemon] group = "{group}": this machine has no such group',
            remedy=f"Make it with `groupadd --system {group}`, or leave the key out",
        ) from None


@dataclass(frozen=True, slots=True)
class Rights:
    """owner_uid: the daemon's own user. group, gid: `[daemon] group`, None where there is none."""

    owner_uid: int
    group: str | None = None
    gid: int | None = None

    def level(self, peer: Peer) -> Level:
        """What this peer may do."""
        if peer.uid in (0, self.owner_uid):
            return Level.DEFINE
        if self.gid is not None and (peer.gid == self.gid or self.gid in peer.groups):
            return Level.OPERATE
        return Level.NOTHING

    def demand(self, needed: Level, peer: Peer) -> None:
        """Raise Forbidden where the peer's level is below."""
        level = self.level(peer)
        if level >= needed:
            return
        if level is Level.OPERATE:
            raise Forbidden(
                f"User {peer.uid} may look, start and stop here, but not define, enable, reload or shut down",
                remedy=f"Ask as root or as the daemon's own user ({self.owner_uid})",
            )
        members = f"a member of the group {self.group}, " if self.group else ""
        raise Forbidden(
            f"User {peer.uid} has no rights on this daemon",
            remedy=f"Ask as {members}root or the daemon's own user ({self.owner_uid})",
        )
