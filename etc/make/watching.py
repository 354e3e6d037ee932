"""Tells what becomes of the engines that `make up` starts, with a bar for the one that trains."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from sagectl.cli import progress, render
from sagectl.client import Client
from sagectl.errors import SagectlError, UnknownEngine

Seen: TypeAlias = dict[str, Any]
LOOK = 0.25
"""Seconds between two readings of the engines."""
PLAIN_EVERY = 10.0
"""Seconds between two lines about progress where there is no terminal."""


class Display:
    """Lines on standard error; on a terminal with one below them that is drawn anew in place."""

    def __init__(self) -> None:
        self._style = render.stderr()
        self._drawn = False
        self._plain_at = 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(f"{text}\n")

    def progress(self, engine: Seen) -> None:
        """How far a job is."""
        told = f"{engine['name']}: {self._told(engine)}"
        width = self._style.width
        if width is not None:
            # The cursor goes back to where a line of the daemon, which writes here too, would begin.
            self._write(f"\r{render.cut(told, width - 1, unicode=self._style.unicode)}\x1b[K\r")
            self._drawn = True
        elif time.monotonic() - self._plain_at >= PLAIN_EVERY:
            self._plain_at = time.monotonic()
            self._write(f"{told}\n")

    def clear(self) -> None:
        """Take away the line that is drawn anew."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _told(self, engine: Seen) -> str:
        found = engine["progress"]
        width = self._style.width
        bar = progress.bar(found, unicode=self._style.unicode) if width is not None and width >= 72 else ""
        parts = [" ".join(part for part in (bar, progress.headline(found)) if part)]
        loss = (found.get("details") or {}).get("loss")
        parts += [f"loss {loss:.4g}"] if isinstance(loss, float) else []
        return ", ".join(part for part in parts if part)

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


class Watcher:
    """Waits until each engine is ready, completed or failed; starts those that ended the last time.

    job: the engine that trains what the first of the others serves; None where nothing is to be trained.
    """

    def __init__(self, client: Client, names: Sequence[str], job: str | None, ended: threading.Event) -> None:
        self._client, self._job, self._ended = client, job, ended
        self._names = ([job] if job else []) + list(names)
        self._served = names[0]
        self._told = dict.fromkeys(self._names, "")
        self._display = Display()
        self.settled: dict[str, Seen] = {}

    def run(self) -> dict[str, Seen]:
        """Tell each change until all have settled, or it has ended; the engines by name, as they then are."""
        try:
            while self._open() and not self._ended.wait(LOOK):
                for name in self._open():
                    self._look(name)
        finally:
            self._display.clear()
        return {name: self.settled[name] for name in self._names if name in self.settled}

    def _open(self) -> list[str]:
        return [name for name in self._told if name not in self.settled]

    def _look(self, name: str) -> None:
        try:
            engine: Seen = {**self._client.engine(name)}
        except UnknownEngine:
            del self._told[name]  # the user's own configuration names its engines otherwise
            return
        except SagectlError:
            return
        if not self._told[name] and engine["state"] in ("failed", "inactive"):
            # So it ended the last time, and sagectld keeps to that; who says `make up` wants it to run.
            self._told[name] = "asked"
            with contextlib.suppress(SagectlError):  # its state says it, or the user has come first
                self._start(engine)
            return
        self._tell(name, engine)
        if self._is_settled(engine):
            self.settled[name] = engine

    def _start(self, engine: Seen) -> None:
        if engine["name"] != self._job or engine["substate"] != "completed":
            self._client.start(engine["name"])
            return
        # It was complete with what an older version trained, which the other one serves already.
        with contextlib.suppress(SagectlError):  # the user may have no such engine
            self._client.stop(self._served)
        self._client.start(engine["name"], again=True)
        self._client.start(self._served)

    def _tell(self, name: str, engine: Seen) -> None:
        state = render.state_of(engine)  # type: ignore[arg-type]
        if state != self._told[name]:
            reason = _outcome(engine) if engine["substate"] == "completed" else engine.get("reason")
            # That nothing listens yet is no news of what has just begun.
            reason = "" if engine["substate"] in ("preflight", "starting") else reason
            self._display.say(f"{name}: {state}" + (f": {render.clean(reason)}" if reason else ""))
            self._told[name] = state
        if name == self._job and engine["state"] == "active" and engine["progress"]:
            self._display.progress(engine)

    def _is_settled(self, engine: Seen) -> bool:
        if engine["state"] == "failed" or engine["substate"] in ("ready", "completed"):
            return True
        trained = self.settled.get(self._job or "", {"substate": "completed"})
        if engine["name"] == self._job:
            return bool(engine["state"] == "inactive")  # somebody stopped it
        return bool(engine["substate"] == "queued" and trained["substate"] != "completed")


def _outcome(engine: Seen) -> str:
    found = engine["progress"] or {}
    loss = (found.get("details") or {}).get("loss")
    parts = [f"{found['done']:g} steps"] if found.get("done") else []
    parts += [f"loss {loss:.4g}"] if isinstance(loss, float) else []
    return ", ".join(parts)
