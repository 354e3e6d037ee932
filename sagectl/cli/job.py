"""Follows a job to its end: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from sagectl import errors
from sagectl.cli import exits, progress, render
from sagectl.cli.curve import Curve
from sagectl.cli.excerpt import failure_details
from sagectl.cli.live import INTERVAL, Live
from sagectl.cli.session import Session

if TYPE_CHECKING:
    from sagectl.client import Engine, EngineProgress, Serving, Step

LOOK = 1.0
"""Seconds between two readings of a job that tells nothing by itself."""
PLAIN_EVERY = 10.0
"""Seconds between two plain lines that tell of progress alone."""
PATIENCE = 60.0
"""Seconds for which a daemon that went away is waited for."""


class Follow:
    """One job, until it is complete, stopped or failed. Ending this does nothing to the job."""

    def __init__(self, session: Session, engine: Engine, since: int, *, output: str | None = None) -> None:
        """
        Args:
            since: the newest event that is not news.
            output: where the result will be, told at the end.
        """
        self._session = session
        self._engine = engine
        self._since = since
        self._output = output
        self._style = render.stderr()
        terminal = self._style.width is not None and not session.json
        self._live = Live(unicode=self._style.unicode) if terminal else None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams = False
        """Its progress comes by itself."""
        self._streamable = True
        self._losses = Curve()
        self._heard = True
        self._read_at = 0.0
        self._known_at = time.monotonic()
        self._said, self._said_state, self._said_at = "", "", 0.0
        self._absent_since: float | None = None

    def run(self) -> int:
        """Show how the job goes on; 0 where it completed, 1 where it failed, 3 where it was stopped."""
        threading.Thread(target=self._read_events, daemon=True).start()
        self._losses = Curve(self._past())
        try:
            while True:
                if self._heard or not (self._streams or time.monotonic() - self._read_at < LOOK):
                    self._heard = False
                    self._read()
                    code = self._verdict()
                    if code is not None:
                        return code
                self._show()
                self._receive(INTERVAL if self._live else LOOK)
        except KeyboardInterrupt:
            self._clear()
            self._leave()
            return exits.INTERRUPTED
        finally:
            self._clear()

    # --- reading ---

    def _past(self) -> list[Step]:
        if self._live is None:
            return []
        try:
            return self._session.client.history(self._engine["engine_id"])
        except errors.SagectlError:
            return []  # an older daemon, or none: what comes is shown all the same

    def _read(self) -> None:
        now = self._read_at = time.monotonic()
        try:
            self._engine = self._session.client.engine(self._engine["engine_id"])
        except errors.NoDaemon:
            if self._absent_since is None:
                self._absent_since = now
                self._note("The daemon went away; the job goes on without it. Waiting for it to come back.")
            elif now - self._absent_since > PATIENCE:
                raise
            return
        self._absent_since, self._known_at = None, now
        self._measure()
        if self._streamable and not self._streams:
            self._streams = True
            threading.Thread(target=self._read_progress, daemon=True).start()

    def _measure(self) -> None:
        found = self._engine["progress"]
        loss = progress.loss(self._engine)
        if found and loss is not None:
            self._losses.add(found["done"], loss)

    def _receive(self, seconds: float) -> None:
        try:
            self._inbox.get(timeout=seconds)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    # --- what comes by itself: a thread for each stream, which only fills the inbox ---

    def _read_events(self) -> None:
        try:
            for event in self._session.client.events(follow=True, last_event_id=self._since):
                if event["engine_id"] == self._engine["engine_id"] or event["kind"] == "lost":
                    text = event["text"] if event["level"] in ("warning", "error") else ""
                    self._inbox.put(partial(self._hear_event, event["level"], render.clean(text)))
        except (errors.SagectlError, OSError):
            return  # its progress tells of its end, too

    def _hear_event(self, level: str, text: str) -> None:
        self._heard = True
        if text and not self._session.json:
            self._note(f"{self._engine['name']}: {text}", "red" if level == "error" else "yellow")

    def _read_progress(self) -> None:
        streamable = True
        try:
            for told in self._session.client.follow_progress(self._engine["engine_id"]):
                self._inbox.put(partial(self._hear_progress, told))
        except (errors.UnknownRoute, errors.MalformedRequest):
            streamable = False  # an older daemon
        except (errors.SagectlError, OSError):
            pass  # until the daemon is back, or has room, the job is read again and again
        self._inbox.put(partial(self._lose_progress, streamable))

    def _hear_progress(self, told: EngineProgress) -> None:
        self._engine["progress"] = told["progress"]
        self._heard |= told["state"] != self._engine["state"]
        self._measure()

    def _lose_progress(self, streamable: bool) -> None:
        self._streams, self._streamable = False, streamable

    # --- the end ---

    def _verdict(self) -> int | None:
        engine = self._engine
        state, substate = engine["state"], engine["substate"]
        if state == "failed" or engine["blocked"]:
            self._end("red", engine["reason"])
            if not self._session.json:
                self._session.note(failure_details(self._session, engine, self._style))
            return exits.FAILURE
        if state != "inactive":
            return None
        if substate == "completed" and engine["serving"] is not None:
            return self._served(engine["serving"])
        if substate == "completed":
            self._end("green", f"the result is in {self._output}" if self._output else "")
            return exits.OK
        if engine["desired"] != "stopped":
            return None
        done = progress.headline(engine["progress"], running=False)
        self._end("yellow", f"{done + '; ' if done else ''}`sagectl start {engine['name']}` goes on")
        return exits.NOT_ACTIVE

    def _served(self, serving: Serving) -> int | None:
        """The end of a job whose result is to be served; None while that is under way."""
        if serving["phase"] == "pending":
            return None
        well = serving["phase"] == "served"
        where = f"; the result is in {serving['model']}"
        self._end("green" if well else "red", serving["text"] + where)
        return exits.OK if well else exits.FAILURE

    def _end(self, look: str, text: str) -> None:
        self._clear()
        engine = self._engine
        if self._session.json:
            self._session.dump_line(engine)
            return
        state = self._style.paint(render.state_of(engine), look)
        if self._live and (drawn := self._losses.drawn(self._width() - 6, unicode=self._style.unicode)):
            self._session.note(f"loss {drawn}")
        self._session.note(f"{engine['name']}: {state}" + (f": {render.clean(text)}" if text else ""))

    def _leave(self) -> None:
        name = self._engine["name"]
        if not self._session.json:
            self._session.note(
                f"No longer followed. The job goes on: `sagectl stop {name}` stops and saves it, "
                f"`sagectl fine-tune --follow --name {name}` follows it again."
            )

    # --- showing ---

    def _show(self) -> None:
        if self._live:
            self._live.draw(list(self._picture(self._live.frame())))
            return
        engine = self._engine
        told = self._text()
        state = render.state_of(engine)
        soon = time.monotonic() - self._said_at < PLAIN_EVERY
        if told == self._said or (state == self._said_state and soon):
            return
        self._said, self._said_state, self._said_at = told, state, time.monotonic()
        if self._session.json:
            self._session.dump_line(engine)
        else:
            self._session.note(f"{engine['name']}: {told}")

    def _text(self) -> str:
        engine = self._engine
        parts = [render.state_of(engine)]
        parts += [render.clean(engine["reason"])] if engine["reason"] else []
        if engine["progress"] and engine["state"] == "active":
            found = (progress.headline(engine["progress"]), progress.details(engine["progress"]))
            parts.append(", ".join(part for part in found if part))
        return ": ".join(part for part in parts if part)

    def _picture(self, frame: str) -> Iterator[str]:
        engine, style = self._engine, self._style
        width = self._width()

        def fitted(text: str, look: str = "") -> str:
            return style.paint(render.cut(text, width, unicode=style.unicode), look)

        up = engine["uptime_seconds"]
        since = time.monotonic() - self._known_at
        state = f" {render.duration(round(up + since))}" if up is not None else ""
        reason = f": {render.clean(engine['reason'])}" if engine["reason"] else ""
        yield fitted(
            f"{frame} {engine['name']}: {engine['substate']}{state}{reason}", render.state_colour(engine)
        )
        found = engine["progress"]
        if not found or engine["state"] not in ("active", "deactivating"):
            return
        drawn = progress.bar(found, unicode=style.unicode, width=min(progress.BAR, max(4, width // 3)))
        yield fitted("  " + " ".join(part for part in (drawn, progress.headline(found)) if part))
        if told := progress.details(found):
            yield fitted(f"  {told}", "dim")
        if drawn := self._losses.drawn(width - len("  loss "), unicode=style.unicode):
            yield fitted(f"  loss {drawn}")

    def _width(self) -> int:
        return (self._style.width or 80) - 1

    def _note(self, text: str, look: str = "") -> None:
        self._clear()
        self._session.note(self._style.paint(text, look))

    def _clear(self) -> None:
        if self._live:
            self._live.clear()
