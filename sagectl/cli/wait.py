"""Waits until engines are as asked for, and shows meanwhile what is awaited.

The daemon's events say when to look again; an engine is also read again every `SAFETY` seconds, so
that a lost event delays the end and never prevents it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import click

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.live import INTERVAL, Live
from sagectl.cli.report import Awaited, conclude, reason_of, tell
from sagectl.cli.session import Session
from sagectl.cli.verdict import Goal, judge, settles_in

if TYPE_CHECKING:
    from sagectl.client import Engine

SAFETY = 5.0
PATIENCE = 10.0
"""Seconds for which a daemon that went away (an upgrade, a restart) is waited for."""
_STREAMED_LOGS = 4
_SHOWN = 8
_REASON_LINES = 3


@dataclass(slots=True)
class Wait:
    """The wait for several engines.

    timeout: seconds; ends the waiting, not the request.
    aside: success is told on standard error, because standard output belongs to something else.
    """

    session: Session
    goal: Goal
    engines: dict[str, Awaited]
    since: int
    timeout: float | None = None
    aside: bool = False
    started: float = field(default_factory=time.monotonic)
    _inbox: queue.SimpleQueue[tuple[str, str, str]] = field(default_factory=queue.SimpleQueue)
    _live: Live | None = None
    _style: render.Style = field(default_factory=render.stderr)
    _absent_since: float | None = None

    # --- the loop ---

    def run(self) -> None:
        """Return when every engine has a verdict, or `timeout` seconds are over."""
        if self._style.width is not None and not self.session.json:
            self._live = Live(unicode=self._style.unicode)
        self._judge()
        if not self.open:
            return
        self._spawn(self._read_events)
        if self._live and self.goal is not Goal.DOWN:
            for awaited in self.open[:_STREAMED_LOGS]:
                self._spawn(self._read_log, awaited.id)
        read_at = time.monotonic()
        try:
            while self.open and self._left() > 0:
                self._show()
                due = read_at + self._patience() - time.monotonic()
                if self._receive(min(due, self._left())) or due <= 0:
                    self._read()
                    read_at = time.monotonic()
        finally:
            if self._live:
                self._live.clear()
        self._judge()

    @property
    def open(self) -> list[Awaited]:
        """The engines without a verdict."""
        return [a for a in self.engines.values() if a.verdict is None]

    @property
    def passed(self) -> float:
        """Seconds since the request."""
        return time.monotonic() - self.started

    def _patience(self) -> float:
        """Seconds after which to read again, whatever is heard."""
        settling = [settles_in(a.now) for a in self.open if a.now is not None]
        return min([SAFETY, *(seconds + 0.01 for seconds in settling if seconds > 0)])

    def _left(self) -> float:
        return SAFETY if self.timeout is None else self.timeout - self.passed

    def _receive(self, seconds: float) -> bool:
        """Take what the threads found, waiting at most so long; is there a reason to read again?"""
        patience = max(0.0, min(seconds, INTERVAL) if self._live else seconds)
        stirred = False
        try:
            sort, engine_id, text = self._inbox.get(timeout=patience)
            while True:
                stirred |= self._take(sort, engine_id, text)
                sort, engine_id, text = self._inbox.get_nowait()
        except queue.Empty:
            return stirred

    def _take(self, sort: str, engine_id: str, text: str) -> bool:
        awaited = self.engines.get(engine_id)
        if sort == "log" and awaited is not None:
            awaited.line = text
            return False
        if sort == "warning" and awaited is not None and text not in awaited.said:
            awaited.warned = text
            self._say(f"{awaited.name}: {text}", "yellow")
        return sort == "lost" or awaited is not None

    def _read(self) -> None:
        try:
            for engine_id, awaited in self.engines.items():
                if awaited.verdict is None:
                    awaited.now = self._engine(engine_id)
        except errors.NoDaemon:
            self._absent()
            return
        self._absent_since = None
        self._judge()

    def _engine(self, engine_id: str) -> Engine | None:
        try:
            return self.session.client.engine(engine_id)
        except errors.UnknownEngine:
            return None

    def _absent(self) -> None:
        now = time.monotonic()
        if self._absent_since is None:
            self._absent_since = now
            self._say("the daemon went away; waiting for it to come back", "yellow")
        elif now - self._absent_since > PATIENCE:
            raise errors.NoDaemon(
                "The daemon went away while this waited", remedy="Start it again; engines that run go on"
            )
        self._inbox.put(("lost", "", ""))
        time.sleep(0.2)

    def _judge(self) -> None:
        for awaited in self.open:
            awaited.after = self.passed
            awaited.verdict = judge(self.goal, awaited.before, awaited.now, awaited.after)
            if awaited.verdict is not None and not self.session.json:
                if self._live:
                    self._live.clear()
                tell(self.session, awaited, awaited.verdict, aside=self.aside)

    # --- what the threads do ---

    def _spawn(self, target: Callable[..., None], *args: str) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()

    def _read_events(self) -> None:
        try:
            for event in self.session.client.events(follow=True, last_event_id=self.since):
                sort = "lost" if event["kind"] == "lost" else "event"
                # Errors are followed by what comes of them: a warning (restarting), or the verdict.
                if event["level"] == "warning" and sort == "event":
                    sort = "warning"
                self._inbox.put((sort, event["engine_id"] or "", render.clean(event["text"])))
        except (errors.SagectlError, OSError):
            self._inbox.put(("lost", "", ""))

    def _read_log(self, engine_id: str) -> None:
        from codecs import getincrementaldecoder

        decoder = getincrementaldecoder("utf-8")("replace")
        rest = ""
        try:
            for chunk in self.session.client.logs(engine_id, tail=0, follow=True):
                *lines, rest = (rest + decoder.decode(chunk)).replace("\r", "\n").split("\n")
                if text := next((t for t in map(render.clean, reversed([*lines, rest])) if t.strip()), ""):
                    self._inbox.put(("log", engine_id, text))
        except (errors.SagectlError, OSError):
            return  # the log's newest line is a courtesy

    # --- what is shown ---

    def _show(self) -> None:
        if self._live is None:
            for awaited in self.open:
                self._show_plain(awaited)
            return
        lines: list[str] = []
        frame = self._live.frame()
        for awaited in self.open[:_SHOWN]:
            lines += self._lines(awaited, frame)
        if len(self.open) > _SHOWN:
            lines.append(f"  and {len(self.open) - _SHOWN} more")
        self._live.draw(lines)

    def _lines(self, awaited: Awaited, frame: str) -> Iterator[str]:
        style, now = self._style, awaited.now
        width = (style.width or 80) - 1
        if now is None:
            return
        head = f"{frame} {awaited.name}: "
        state = str(now["substate"])
        tail = f" {render.duration(int(self.passed))}" if self.passed >= 1 else ""
        tail += f"  {render.clean(now['reason'])}" if now["reason"] else ""
        room = width - render.cells(head) - len(state)
        if state == "queued" and render.cells(tail) > room:
            # Who waits for what is told in full: a start may wait for hours, and the end says for how much.
            yield head + style.state(now, state) + tail.partition("  ")[0]
            reason = render.wrapped(render.clean(now["reason"]), replace(style, width=width), "  ")
            yield from list(reason)[:_REASON_LINES]
            return
        yield head + style.state(now, state) + render.cut(tail.rstrip(), max(room, 0), unicode=style.unicode)
        if awaited.line and now["substate"] == "starting":
            line = render.cut(f"  {awaited.line}", width, unicode=style.unicode)
            yield style.paint(line, "dim")

    def _show_plain(self, awaited: Awaited) -> None:
        now = awaited.now
        if now is None or self.session.json:
            return
        text = f"{awaited.name}: {render.state_of(now)}{reason_of(now)}"
        before = f"{awaited.name}: {render.state_of(awaited.before)}{reason_of(awaited.before)}"
        if text not in (awaited.said, before) and awaited.warned != now["reason"]:
            awaited.said = text
            self.session.note(text)

    def _say(self, text: str, look: str) -> None:
        if self.session.json:
            return
        if self._live:
            self._live.clear()
        self.session.note(self._style.paint(text, look))


def newest_event(session: Session) -> int:
    """The id of the newest event, from which a later subscription misses nothing."""
    return max((event["id"] or 0 for event in session.client.events(tail=1)), default=0)


@contextmanager
def interruptible(wait: Wait) -> Iterator[None]:
    """Ctrl-C during a wait says that the request goes on."""
    try:
        yield
    except KeyboardInterrupt:
        names = " ".join(awaited.name for awaited in wait.open)
        hint = f"`sagectl status {names}` shows how far it is"
        wait.session.note(f"Interrupted. The {wait.goal.value} goes on; {hint}.")
        raise click.exceptions.Exit(exits.INTERRUPTED) from None


def ask_and_wait(
    session: Session,
    goal: Goal,
    engines: Sequence[Engine],
    ask: Callable[[Engine], list[Engine]],
    *,
    timeout: float | None = None,
) -> int:
    """Make a request of each engine, wait for all of them, report, and return the exit code."""
    since = newest_event(session)
    awaited = {e["engine_id"]: Awaited(before=e, now=e) for e in engines}
    started = time.monotonic()
    refused = 0
    for engine in engines:
        try:
            reply = ask(engine)
        except errors.SagectlError as error:
            if len(engines) == 1:
                raise
            session.complain(error, engine["name"])
            del awaited[engine["engine_id"]]
            refused += 1
            continue
        for shown in reply:
            if shown["engine_id"] in awaited:
                awaited[shown["engine_id"]].now = shown
    code = _finish(Wait(session, goal, awaited, since, timeout, started=started))
    return code or (exits.FAILURE if refused else exits.OK)


def follow_up(
    session: Session, goal: Goal, engine: Engine, since: int, *, timeout: float | None = None
) -> int:
    """Wait for the request that defined this engine; says everything on standard error."""
    awaited = {engine["engine_id"]: Awaited(before=engine, now=engine)}
    return _finish(Wait(session, goal, awaited, since, timeout, aside=True))


def _finish(wait: Wait) -> int:
    with interruptible(wait):
        wait.run()
    return conclude(wait.session, wait.goal, list(wait.engines.values()))
