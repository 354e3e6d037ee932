"""The system account that an engine runs as."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_USER = "sagectl"
"""Whom a root daemon runs engines as where the TOML names nobody and this user exists."""


@dataclass(frozen=True, slots=True)
class Account:
    """Numbers and variables of a system user."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    variables: Mapping[str, str]


def account(name: str | None) -> Account | None:
    """The account to switch to; None where the engine runs as the daemon does.

    Raises:
        LookupError: there is no such user.
        PermissionError: it is another user, and only root can switch.
    """
    if name is None:
        name = DEFAULT_USER if os.geteuid() == 0 and _exists(DEFAULT_USER) else None
    if name is None:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise LookupError(f"there is no user {name!r} on this machine") from None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise PermissionError(f"only a daemon that runs as root can start an engine as user {name!r}")
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    variables = {"HOME": entry.pw_dir, "USER": name, "LOGNAME": name, "SHELL": entry.pw_shell}
    return Account(entry.pw_uid, entry.pw_gid, groups, variables)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
