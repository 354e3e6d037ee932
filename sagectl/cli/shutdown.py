"""shutdown."""

from __future__ import annotations

import click

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.session import Session, json_option, pass_session


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
    from sagectl.cli.follow import event_line

    # Subscribed before the request, so that the stream's end is the end of the daemon.
    events = session.client.events(tail=0, follow=True, reconnect=False)
    session.client.shutdown()
    style = render.stderr()
    try:
        for event in events:
            if not session.json:
                session.note(event_line(event, style, 0))
    except errors.NoDaemon:
        return
    except KeyboardInterrupt:
        session.note("Interrupted. The shutdown goes on; `sagectl status` shows how far it is.")
        raise click.exceptions.Exit(exits.INTERRUPTED) from None
