"""start, stop, restart, enable, disable, reset-failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sagectl.cli import exits, render
from sagectl.cli.report import reason_of
from sagectl.cli.session import Session, json_option, pass_session, refs_argument
from sagectl.cli.verdict import Goal
from sagectl.cli.wait import ask_and_wait

if TYPE_CHECKING:
    from sagectl.client import Engine

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A number of seconds; click's own range lets NaN through."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


SECONDS = Seconds(min=0)


def wait_options(command: CommandT) -> CommandT:
    """`--no-wait` and `--timeout`."""
    command = click.option(
        "--timeout", type=SECONDS, metavar="S", help="Wait at most S seconds; the request goes on."
    )(command)
    return click.option("--no-wait", is_flag=True, help="Only ask; do not wait until it is so.")(command)


def request(
    session: Session,
    goal: Goal,
    names: Sequence[str],
    ask: Callable[[Engine], list[Engine]],
    *,
    no_wait: bool,
    timeout: float | None,
) -> int:
    """Make a request of every engine behind `names`, and wait unless told not to."""
    engines = session.engines(names)
    if not no_wait:
        return ask_and_wait(session, goal, engines, ask, timeout=timeout)
    shown = [engine for before in engines for engine in ask(before)]
    if session.json:
        session.dump({"engines": shown})
    else:
        style = render.stdout()
        session.out(f"{e['name']}: {style.state(e)}{reason_of(e)}" for e in shown)
    return exits.OK


@click.command("start", short_help="Start engines and wait until they are ready.")
@refs_argument()
@click.option("--again", is_flag=True, help="Run a completed job once more.")
@wait_options
@json_option
@pass_session
def start_verb(
    session: Session, names: tuple[str, ...], again: bool, no_wait: bool, timeout: float | None
) -> int:
    """Start engines, what they depend on first, and wait until they are ready (a job: until it runs).

    Clears a start limit. On failure: exit 1, the reason, what to do, the last log lines.

    \b
      sagectl start chat embed
      sagectl start chat --timeout 60
    """
    client = session.client
    return request(
        session,
        Goal.UP,
        names,
        lambda e: client.start(e["engine_id"], again=again),
        no_wait=no_wait,
        timeout=timeout,
    )


@click.command("stop", short_help="Stop engines and wait until nothing of them runs.")
@refs_argument(required=False)
@click.option("--port", type=click.IntRange(1, 65535), metavar="P", help="The engine that holds this port.")
@click.option(
    "--drain", type=SECONDS, metavar="S", help="Give requests in flight S seconds (default: as configured)."
)
@wait_options
@json_option
@pass_session
def stop_verb(
    session: Session,
    names: tuple[str, ...],
    port: int | None,
    drain: float | None,
    no_wait: bool,
    timeout: float | None,
) -> int:
    """Stop engines, by name, id or port: requests in flight are finished first, then every process ends.

    What depends on them goes on.

    \b
      sagectl stop chat
      sagectl stop chat --drain 0
      sagectl stop --port 8001
    """
    client = session.client
    if port is not None:
        names = (*names, *(engine["engine_id"] for engine in client.engines(port=port)))
    if not names:
        raise click.UsageError("Which engine? Give a NAME, an id or --port.")
    return request(
        session,
        Goal.DOWN,
        names,
        lambda e: client.stop(e["engine_id"], drain=drain),
        no_wait=no_wait,
        timeout=timeout,
    )


@click.command("restart", short_help="Stop engines and start them again.")
@refs_argument()
@wait_options
@json_option
@pass_session
def restart_verb(session: Session, names: tuple[str, ...], no_wait: bool, timeout: float | None) -> int:
    """Stop engines and start them again, with the same id, name, port and counters.

    \b
      sagectl restart chat
    """
    client = session.client
    return request(
        session,
        Goal.RESTARTED,
        names,
        lambda e: client.restart(e["engine_id"]),
        no_wait=no_wait,
        timeout=timeout,
    )


def _each(
    session: Session, names: Sequence[str], ask: Callable[[str], list[Engine]], said: Callable[[Engine], str]
) -> int:
    engines = session.engines(names)
    shown = [engine for before in engines for engine in ask(before["engine_id"])]
    if session.json:
        session.dump({"engines": shown})
    else:
        session.out(f"{engine['name']}: {said(engine)}" for engine in shown)
    return exits.OK


@click.command("enable", short_help="Have engines start with the daemon.")
@refs_argument()
@json_option
@pass_session
def enable_verb(session: Session, names: tuple[str, ...]) -> int:
    """Have engines start with the daemon, whatever `autostart` says in the configuration.

    Starts nothing now. `sagectl cat NAME` shows the override.

    \b
      sagectl enable chat
    """
    return _each(session, names, session.client.enable, lambda e: "starts with the daemon from now on")


@click.command("disable", short_help="Have engines not start with the daemon.")
@refs_argument()
@json_option
@pass_session
def disable_verb(session: Session, names: tuple[str, ...]) -> int:
    """Have engines not start with the daemon, whatever `autostart` says in the configuration.

    Stops nothing now. `sagectl cat NAME` shows the override.

    \b
      sagectl disable chat
    """
    return _each(session, names, session.client.disable, lambda e: "does not start with the daemon any more")


@click.command("reset-failed", short_help="Clear failures and start limits.")
@refs_argument(required=False)
@json_option
@pass_session
def reset_failed_verb(session: Session, names: tuple[str, ...]) -> int:
    """Forget failures and clear the start limit; without a NAME, of every failed engine.

    \b
      sagectl reset-failed chat
    """
    if not names:
        engines = session.client.engines()
        names = tuple(e["engine_id"] for e in engines if e["state"] == "failed")
        if not names and not session.json:
            session.out("No engine has failed.")
            return exits.OK
    return _each(session, names, session.client.reset_failed, lambda e: f"{render.state_of(e)}")
