"""How far a job is, told at each change for as long as somebody listens. Nothing of it is kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from sagectl.core.engine import Engine, State
from sagectl.errors import UnknownEngine
from sagectl.system.inotify import Changes
from sagectl.system.journal import Journal, Subscription

PAUSE = 0.25
"""Seconds between two readings: a job may do hundreds of steps a second."""
_DOWN = (State.INACTIVE, State.FAILED)


class Jobs(Protocol):
    """What of `Control` is needed here."""

    @property
    def journal(self) -> Journal: ...

    def resolve(self, ref: str) -> Sequence[Engine]: ...

    async def progress(self, engine: Engine) -> dict[str, Any] | None: ...


async def follow(jobs: Jobs, engine: Engine) -> AsyncGenerator[tuple[Engine, Mapping[str, Any] | None], None]:
    """The job and its progress, now and whenever its state or its progress is another, until it is down.

    The last one is of the job when it is down. Close it with `aclose`.
    """
    said: Any = None
    with jobs.journal.subscribe(None, engine.name) as news:
        ears = _Ears(news)
        try:
            while (current := _now(jobs, engine.id)) is not None:
                ears.listen_at(current.plan.progress_file if current.plan else None)
                found = await jobs.progress(current)
                if said != (told := (current.state, current.sub, found)):
                    said = told
                    yield current, found
                if current.state in _DOWN:
                    return
                await ears.hear()
                await asyncio.sleep(PAUSE)
        finally:
            await ears.close()


def _now(jobs: Jobs, engine_id: str) -> Engine | None:
    try:
        return jobs.resolve(engine_id)[0]
    except UnknownEngine:  # forgotten meanwhile
        return None


class _Ears:
    """Wakes when the engine has an event or the directory of its progress file a new file."""

    def __init__(self, news: Subscription) -> None:
        self._news = news
        self._changes: Changes | None = None
        self._directory: str | None = None
        self._waiting: dict[str, asyncio.Future[Any]] = {}

    def listen_at(self, file: str | None) -> None:
        """The file is there or will be; None: it is not known where."""
        directory = None if file is None else os.path.dirname(file)
        if directory is None or directory == self._directory:
            return
        self._directory = directory
        if self._changes is None:
            self._changes = Changes()
        self._changes.watch_directory(directory)

    async def hear(self) -> None:
        """Return at the first of them since the last time."""
        if "news" not in self._waiting:
            self._waiting["news"] = asyncio.ensure_future(anext(self._news))
        if self._changes is not None and "changes" not in self._waiting:
            self._waiting["changes"] = asyncio.ensure_future(self._changes.wait())
        done, _ = await asyncio.wait(self._waiting.values(), return_when=asyncio.FIRST_COMPLETED)
        self._waiting = {what: waiting for what, waiting in self._waiting.items() if waiting not in done}
        for one in done:
            one.result()

    async def close(self) -> None:
        """Hear nothing any more."""
        for waiting in self._waiting.values():
            waiting.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await waiting
        if self._changes is not None:
            self._changes.close()
