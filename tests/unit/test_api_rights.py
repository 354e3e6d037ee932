"""Two levels of rights, by the kernel's word on the peer."""

from __future__ import annotations

import os
import socket

import pytest

from sagectl.api.rights import Level, Peer, Rights, group_id, peer_of
from sagectl.errors import DaemonRefusal, Forbidden

RIGHTS = Rights(owner_uid=1000, group="sagectl", gid=700)


def peer(uid: int, gid: int = 1, *groups: int) -> Peer:
    return Peer(pid=1, uid=uid, gid=gid, groups=frozenset(groups))


@pytest.mark.parametrize(
    ("who", "level"),
    [
        (peer(0), Level.DEFINE),
        (peer(1000), Level.DEFINE),
        (peer(1001, 700), Level.OPERATE),
        (peer(1001, 5, 6, 700), Level.OPERATE),
        (peer(1001, 5, 6), Level.NOTHING),
    ],
)
def test_who_may_what(who: Peer, level: Level) -> None:
    assert RIGHTS.level(who) is level


def test_without_a_group_only_root_and_the_owner_have_rights() -> None:
    alone = Rights(owner_uid=1000)
    assert alone.level(peer(1001, 0, 0)) is Level.NOTHING
    assert alone.level(peer(1000)) is Level.DEFINE


def test_an_operator_who_defines_is_told_who_may() -> None:
    RIGHTS.demand(Level.OPERATE, peer(7, 700))
    with pytest.raises(Forbidden, match="may look, start and stop here, but not define"):
        RIGHTS.demand(Level.DEFINE, peer(7, 700))


def test_a_stranger_is_told_which_group_would_help() -> None:
    with pytest.raises(Forbidden) as caught:
        RIGHTS.demand(Level.OPERATE, peer(7))
    assert "the group sagectl" in caught.value.remedy


def test_anyone_may_ask_for_nothing() -> None:
    RIGHTS.demand(Level.NOTHING, peer(7))


def test_the_kernel_says_who_connected() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        found = peer_of(ours)
    assert (found.pid, found.uid, found.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert found.groups == set(os.getgroups())


def test_a_group_that_is_not_there_is_refused_with_how_to_make_it() -> None:
    with pytest.raises(DaemonRefusal, match="no such group") as caught:
        group_id("no-such-group-here")
    assert "groupadd --system no-such-group-here" in caught.value.remedy
    assert group_id(None) is None
