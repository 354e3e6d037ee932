"""shutdown."""

from __future__ import annotations

import os
import select

import click

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.session import Session, json_option, pass_session

_EXIT_SECONDS = 5.0


@click.command("shutdown", short_help="Stop every engine, then the daemon.")
@click.option("--no-wait", is_flag=True, help="Only ask; do not wait until it is so.")
@json_option
@pass_session
def shutdown_verb(session: Session, no_wait: bool) -> int:
    """Stop every engine, then the daemon, and wait until it is gone, showing what happens.

    \b
      sagectl shutdown
    """
    if no_wait:
        session.client.shutdown()
    else:
        _shut_down_and_watch(session)
    if session.json:
        session.dump({"shutdown": "requested" if no_wait else "done"})
    else:
        session.out("Engines and daemon stop." if no_wait else "Engines and daemon have stopped.")
    return exits.OK


def _shut_down_and_watch(session: Session) -> None:
    from sagectl.cli.follow import event_line, minor

    status = session.client.status()
    pid: int = status["control_plane"]["pid"]
    width = max((len(engine["name"]) for engine in status["engines"]), default=0)
    # Subscribed before the request, so that the stream's end is the end of the daemon.
    events = session.client.events(tail=0, follow=True, reconnect=False)
    session.client.shutdown()
    style = render.stderr()
    try:
        for event in events:
            if not session.json and not minor(event):
                session.note(event_line(event, style, width))
    except errors.NoDaemon:
        pass  # that it went away is what was asked for
    except KeyboardInterrupt:
        session.note("Interrupted. The shutdown goes on; `sagectl status` shows how far it is.")
        raise click.exceptions.Exit(exits.INTERRUPTED) from None
    _wait_for_exit(pid)


def _wait_for_exit(pid: int) -> None:
    """Wait until the process itself is gone too, so that another daemon can start right away."""
    try:
        process = os.pidfd_open(pid)
    except OSError:  # gone already, or of another PID namespace
        return
    try:
        select.select([process], [], [], _EXIT_SECONDS)
    finally:
        os.close(process)
