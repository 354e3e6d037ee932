from __future__ import annotations

import os
import pwd

import pytest

from sagectl.daemon import accounts
from sagectl.daemon.accounts import Account, account

OTHER = pwd.struct_passwd(("sagectl", "x", 4711, 4712, "", "/var/lib/sagectl", "/bin/false"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, pwd.struct_passwd]:
    """A machine with the users that the test puts in; the daemon is root."""
    users: dict[str, pwd.struct_passwd] = {}
    monkeypatch.setattr(pwd, "getpwnam", lambda name: users[name])
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return users


def test_a_root_daemon_runs_engines_as_sagectl_where_that_user_exists(
    machine: dict[str, pwd.struct_passwd],
) -> None:
    machine["sagectl"] = OTHER
    assert account(None) == Account(
        4711,
        4712,
        (4712,),
        {"HOME": "/var/lib/sagectl", "USER": "sagectl", "LOGNAME": "sagectl", "SHELL": "/bin/false"},
    )


def test_without_that_user_they_run_as_root(machine: dict[str, pwd.struct_passwd]) -> None:
    assert account(None) is None


def test_root_can_be_asked_for_by_name(machine: dict[str, pwd.struct_passwd]) -> None:
    machine["sagectl"] = OTHER
    machine["root"] = pwd.struct_passwd(("root", "x", 0, 0, "", "/root", "/bin/sh"))
    assert account("root") is None


def test_an_unknown_user_is_named(machine: dict[str, pwd.struct_passwd]) -> None:
    with pytest.raises(LookupError, match="there is no user 'nosuch' on this machine"):
        account("nosuch")


def test_a_users_daemon_cannot_run_engines_as_somebody_else(
    machine: dict[str, pwd.struct_passwd], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine["sagectl"] = OTHER
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert accounts.account(None) is None
    with pytest.raises(PermissionError, match="only a daemon that runs as root"):
        account("sagectl")
