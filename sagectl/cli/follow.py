"""logs and events."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from sagectl.cli import exits, render
from sagectl.cli.session import Session, engine_names, json_option, pass_session, ref_argument

if TYPE_CHECKING:
    from sagectl.client import Event

_LOOKS = {"warning": "yellow", "error": "red", "debug": "dim"}
_DEBUG_SHARE = 5
"""So many events are fetched for each one shown, because mere changes of state are left out."""


@click.command("logs", short_help="An engine's log, across rotations.")
@ref_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "-n", "--lines", "--tail", "lines", type=click.IntRange(min=0), metavar="N", help="Only the last N lines."
)
@json_option
@pass_session
def logs_verb(session: Session, name: str, follow: bool, lines: int | None) -> int:
    """An engine's log, across rotations, as the engine wrote it.

    With --follow the last 10 lines first, unless -n says otherwise.

    \b
      sagectl logs chat
      sagectl logs chat -f -n 100
    """
    tail = 10 if follow and lines is None else lines
    pieces = session.client.logs(name, tail=tail, follow=follow)
    if session.json:
        for line in whole_lines(pieces):
            session.dump_line({"line": line})
        return exits.OK
    write_log(pieces)
    return exits.OK


def write_log(pieces: Iterable[bytes]) -> None:
    """Write a log to standard output as it comes, byte for byte."""
    sys.stdout.flush()
    out = sys.stdout.buffer
    for piece in pieces:
        out.write(piece)
        out.flush()


def whole_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream of bytes."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


@click.command("events", short_help="What happened, when and why.")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=engine_names)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only the last N events (default: 50; 10 with -f).",
)
@click.option("-a", "--all", "everything", is_flag=True, help="Every change of state too.")
@json_option
@pass_session
def events_verb(session: Session, name: str | None, follow: bool, lines: int | None, everything: bool) -> int:
    """What happened, when and why: of all engines, or of one. Survives restarts of the daemon.

    \b
      sagectl events -f
      sagectl events chat -n 100
    """
    count = lines if lines is not None else 10 if follow else 50
    past = list(session.client.events(tail=count if everything else count * _DEBUG_SHARE, engine=name))
    if name is not None and not past:
        session.client.resolve(name)  # raises for one that never was; events outlive their engine
    shown = [event for event in past if everything or not minor(event)]
    shown = shown[len(shown) - min(len(shown), count) :]
    style = render.stdout()
    if session.json:
        if not follow:
            session.dump({"events": shown})
            return exits.OK
        for event in shown:
            session.dump_line(event)
    else:
        session.out(event_lines(shown, style))
    if follow:
        last = past[-1]["id"] if past else None
        _follow_events(session, name, last, everything, style)
    return exits.OK


def _follow_events(
    session: Session, name: str | None, last: int | None, everything: bool, style: render.Style
) -> None:
    sys.stdout.flush()
    width = 0
    for event in session.client.events(engine=name, follow=True, last_event_id=last):
        if minor(event) and not everything:
            continue
        if session.json:
            session.dump_line(event)
            continue
        width = max(width, len(event["engine"] or ""))
        session.out(event_line(event, style, width))
        sys.stdout.flush()


def minor(event: Event) -> bool:
    """A mere change of state; what led to it has an event of its own."""
    level: str = event["level"]
    return level == "debug"


def event_lines(events: Sequence[Event], style: render.Style) -> Iterator[str]:
    """Events, a line each, aligned."""
    width = max((len(event["engine"] or "") for event in events), default=0)
    for event in events:
        yield event_line(event, style, width)


def event_line(event: Event, style: render.Style, width: int) -> str:
    """One event: when, who, what. Events are not cut: the end of a reason is often what matters."""
    look = _LOOKS.get(event["level"], "")
    name = (event["engine"] or "").ljust(width)
    text = render.clean(event["text"]) or event["kind"]
    if minor(event) and event["state"]:
        text = f"{event['state']} ({event['substate']})" + (f": {text}" if event["text"] else "")
    return f"{style.paint(render.local_time(event['at']), 'dim')}  {name}  {style.paint(text, look)}".rstrip()
