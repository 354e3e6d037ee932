"""run: an engine in the foreground, with no configuration."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.definition import WordsAfterDashes, body, definition_options
from sagectl.cli.excerpt import failure_details
from sagectl.cli.session import Session, json_option
from sagectl.cli.verdict import Goal
from sagectl.cli.wait import SAFETY, ask_and_wait, newest_event

if TYPE_CHECKING:
    from sagectl.client import Engine


@click.command("run", cls=WordsAfterDashes, short_help="An engine with no configuration, in the foreground.")
@click.argument("model", required=False)
@definition_options
@click.option("-d", "--detach", is_flag=True, help="Print the engine's id and leave it running.")
@json_option
@click.pass_context
def run_verb(context: click.Context, /, model: str | None, detach: bool, **options: Any) -> int:
    """Run an engine with no configuration: its log goes to the terminal, Ctrl-C stops it.

    What follows `--` are further flags of the model's server, or the command of kind exec.

    \b
      sagectl run Qwen/Qwen2.5-0.5B-Instruct --port 8001 --gpu-util 0.7
      sagectl run ./my-model --detach -o max_model_len=4096
      sagectl run --engine-kind exec -- llama-server -m x.gguf --port {port}
    """
    session = context.ensure_object(Session)
    definition = body(model, context.meta.get("words", ()), **options)
    since = newest_event(session)
    engine = session.client.define(definition)
    if detach:
        if session.json:
            session.dump(engine)
        else:
            session.out(engine["engine_id"])
        return exits.OK
    return Foreground(session, engine, since).run()


class Foreground:
    """A transient engine that lives as long as this command."""

    def __init__(self, session: Session, engine: Engine, since: int) -> None:
        self._session = session
        self._engine = engine
        self._since = since
        self._inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._style = render.stderr()

    def run(self) -> int:
        """Show log and states until the engine is down; return 0 where it ended well or was stopped."""
        self._note(f"{self._engine['name']} ({self._engine['engine_id']}); Ctrl-C stops it.")
        for work in (self._copy_log, self._watch):
            threading.Thread(target=work, daemon=True).start()
        try:
            with _terminated_like_interrupted():
                return self._until_down()
        except KeyboardInterrupt:
            return self._stop()

    def _until_down(self) -> int:
        said = ""
        while True:
            try:
                self._engine = engine = self._session.client.engine(self._engine["engine_id"])
            except errors.UnknownEngine:
                self._note(f"{self._engine['name']} was removed meanwhile.")
                return exits.FAILURE
            except errors.NoDaemon:
                self._note("The daemon went away; the engine goes on without it.")
                raise
            text = _words(engine)
            if text != said:
                self._note(text)
                said = text
            if engine["state"] == "failed":
                self._session.note(failure_details(self._session, engine, self._style, lines=0))
                self._note(
                    f"`sagectl explain {engine['name']}` tells more; `sagectl engine prune` forgets it"
                )
                return exits.FAILURE
            if engine["state"] == "inactive" and (
                engine["substate"] == "completed" or engine["desired"] == "stopped"
            ):
                return exits.OK
            self._next()

    def _next(self) -> None:
        """Wait until something happened to the engine, or for a while."""
        try:
            self._inbox.get(timeout=SAFETY)
            while True:
                self._inbox.get_nowait()
        except queue.Empty:
            return

    def _stop(self) -> int:
        self._note("stopping; Ctrl-C once more leaves it to the daemon")
        session = self._session
        code = ask_and_wait(session, Goal.DOWN, [self._engine], lambda e: session.client.stop(e["engine_id"]))
        if code == exits.OK:
            session.client.forget(self._engine["engine_id"])
        return code

    def _watch(self) -> None:
        try:
            for event in self._session.client.events(follow=True, last_event_id=self._since):
                if event["engine_id"] == self._engine["engine_id"] or event["kind"] == "lost":
                    self._inbox.put(event["kind"])
        except (errors.SagectlError, OSError):
            return  # the engine is read again every few seconds anyway

    def _copy_log(self) -> None:
        from sagectl.cli.follow import write_log

        try:
            write_log(self._session.client.logs(self._engine["engine_id"], follow=True))
        except (errors.SagectlError, OSError):
            return  # said by the main thread, which asks the same daemon

    def _note(self, text: str) -> None:
        sys.stdout.flush()
        self._session.note(self._style.paint(f"sagectl: {text}", "cyan"))


def _words(engine: Engine) -> str:
    text = render.state_of(engine)
    if engine["state"] == "active" and engine["address"]:
        return f"{text} on http://{engine['address']}"
    return f"{text}: {render.clean(engine['reason'])}" if engine["reason"] else text


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM stops the engine as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
