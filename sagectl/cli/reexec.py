"""daemon-reexec."""

from __future__ import annotations

import time

import click

from sagectl import errors
from sagectl.cli import exits
from sagectl.cli.session import Session, json_option, pass_session

PATIENCE = 60.0
"""Seconds for the new code to come up and adopt what runs."""
LOADING = 30.0
"""Seconds that the daemon may take to try whether that code loads."""


@click.command("daemon-reexec", short_help="Upgrade the daemon in place; engines keep running.")
@json_option
@pass_session
def daemon_reexec_verb(session: Session) -> int:
    """Have the daemon go on with the sagectl that is installed now. Engines keep running.

    The socket stays: requests made meanwhile wait, and followers of events go on where they were. If the
    new code cannot be loaded nothing happens.

    \b
      pip install --upgrade sagectl
      sagectl daemon-reexec
    """
    client = session.client
    before = client.status()["control_plane"]
    client.timeout = max(client.timeout, LOADING)
    client.reexec()
    after = _await_another(session, before["started_at"])
    if session.json:
        session.dump({"before": before["version"], "version": after["version"], "pid": after["pid"]})
    else:
        session.out(f"sagectld {before['version']} is now {after['version']} (pid {after['pid']}).")
    return exits.OK


def _await_another(session: Session, started: str) -> dict[str, str]:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            plane = session.client.status()["control_plane"]
            if plane["started_at"] != started:
                return plane
        except errors.NoDaemon:
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise errors.NoDaemon(
                "The daemon did not come back with the new code", remedy="See `journalctl -u sagectld`"
            )
        time.sleep(0.05)  # there is no stream that would outlive it
