"""gpu: the devices, who holds what of them, and who waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sagectl import errors
from sagectl.cli import exits, gpu_view, render
from sagectl.cli.lifecycle import Seconds
from sagectl.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EVERY = 2.0
"""Seconds between two pictures, as the daemon measures."""
AT_MOST = 0.25
"""Seconds between two pictures while events storm."""


@click.command("gpu", short_help="GPUs: who holds what of their memory, and who waits.")
@click.option(
    "-w",
    "--watch",
    is_flag=False,
    flag_value=EVERY,
    type=Seconds(min=0.1),
    metavar="[SECONDS]",
    help="Draw it again every SECONDS (2) and at each event, until Ctrl-C.",
)
@json_option
@pass_session
def gpu_verb(session: Session, watch: float | None) -> int:
    """The GPUs, what is reserved of their memory and what is measurably used, by engine.

    \b
    measured   what engines really hold; reserved: what was promised to them
    foreign    what processes hold that are no engine's, the driver's own part included
    kept free  [gpu] reserve; free: what may still be given away

    \b
      sagectl gpu
      sagectl gpu --watch
      sagectl gpu --json | jq '.devices[] | {gpu_id, memory_free_gb}'
    """
    if watch is not None:
        return _watch(session, watch)
    _print(session, session.client.gpu())
    return exits.OK


def _print(session: Session, gpus: Mapping[str, Any]) -> None:
    if session.json:
        session.dump(gpus)
    else:
        session.out(gpu_view.lines(gpus, render.stdout()))


# --- Watching ----------------------------------------------------------------------------------


def _watch(session: Session, every: float) -> int:
    first = session.client.gpu()  # raises where no daemon answers
    try:
        if session.json or not sys.stdout.isatty():
            _repeat(session, first, every)
        else:
            _redraw(session, first, every)
    except KeyboardInterrupt:
        return exits.OK
    return exits.OK


def _repeat(session: Session, gpus: Mapping[str, Any], every: float) -> None:
    """Print it again and again: as JSON a line each, else under the time."""
    for now in _readings(session, gpus, lambda: time.sleep(every)):
        if session.json:
            session.dump_line({"error": str(now)} if isinstance(now, errors.NoDaemon) else now)
            continue
        session.out(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}")
        style = render.stdout()
        session.out([str(now)] if isinstance(now, errors.NoDaemon) else gpu_view.lines(now, style))
        sys.stdout.flush()


def _redraw(session: Session, gpus: Mapping[str, Any], every: float) -> None:
    from sagectl.cli.screen import Screen

    stirred = threading.Event()
    threading.Thread(target=_listen, args=(session, stirred), daemon=True).start()
    last: list[str] = []
    with Screen(stirred.set) as screen:

        def pause() -> None:
            time.sleep(min(AT_MOST, every))
            stirred.wait(max(0.0, every - AT_MOST))
            stirred.clear()

        for now in _readings(session, gpus, pause):
            style = render.stdout()
            head = f"sagectl gpu  {time.strftime('%H:%M:%S')}  every {every:g} s, Ctrl-C ends"
            if isinstance(now, errors.NoDaemon):
                warning = style.paint(render.cut("No daemon answers; trying again.", style.width), "red")
                screen.draw([warning, "", *last])
                continue
            last = list(gpu_view.lines(now, style))
            if len(last) + 2 > screen.rows:
                last = list(gpu_view.compact(now, style))
            screen.draw([style.paint(render.cut(head, style.width), "dim"), "", *last])


def _readings(
    session: Session, first: Mapping[str, Any], pause: Callable[[], None]
) -> Iterator[Mapping[str, Any] | errors.NoDaemon]:
    """The GPUs now and after each pause; that no daemon answers (an upgrade, say) ends nothing."""
    yield first
    while True:
        pause()
        try:
            found: Mapping[str, Any] | errors.NoDaemon = session.client.gpu()
        except errors.NoDaemon as error:
            found = error
        yield found


def _listen(session: Session, stirred: threading.Event) -> None:
    """Set the flag at each event. Without events the picture still comes at its interval."""
    try:
        for _ in session.client.events(follow=True, tail=0):
            stirred.set()
    except (errors.SagectlError, OSError):
        return
