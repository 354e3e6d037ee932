"""Watches jobs that run: what goes wrong with one, and that it gets no further, are events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sagectl.core.engine import Engine, Sub
from sagectl.system.journal import Journal

LOOK_SECONDS = 15.0
STALL_SECONDS = 600.0
"""So long nothing changes before it is said: loading and evaluating large models takes minutes."""
_REMEMBERED = 50

Progress = Mapping[str, Any] | None


@dataclass(slots=True)
class _Job:
    """found: the progress as last read, since `at`. event: what it last said. stalled: that is said."""

    generation: int
    found: Progress
    at: float
    event: str = ""
    stalled: bool = False


class Jobs:
    """Reads the progress of running jobs every few seconds."""

    def __init__(
        self,
        engines: Iterable[Engine],
        progress: Callable[[Engine], Awaitable[Progress]],
        journal: Journal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            engines: all there are, whenever it is iterated.
            progress: how far a job is, None where that is not known.
        """
        self._engines = engines
        self._progress = progress
        self._journal = journal
        self._clock = clock
        self._jobs: dict[str, _Job] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Read each running job once, and say what is news."""
        running = [
            engine
            for engine in self._engines
            if engine.sub is Sub.RUNNING and engine.plan is not None and engine.plan.progress_file is not None
        ]
        before, self._jobs = self._jobs, {}
        for engine in running:
            found = await self._progress(engine)
            job = before.get(engine.id)
            if job is None or job.generation != engine.generation:
                job = _Job(engine.generation, found, self._clock())
            self._jobs[engine.id] = job
            self._tell_event(engine, job, found)
            self._tell_stall(engine, job, found)

    def _tell_event(self, engine: Engine, job: _Job, found: Progress) -> None:
        event = (found or {}).get("details", {}).get("event")
        text = event if isinstance(event, str) else ""
        if text == job.event:
            return
        job.event = text
        # An earlier daemon may have said it.
        known = (entry.text for entry in self._journal.tail(_REMEMBERED, engine.name))
        if text and text not in known:
            self._journal.record(engine.name, engine.id, "job-warning", text, "warning")

    def _tell_stall(self, engine: Engine, job: _Job, found: Progress) -> None:
        now = self._clock()
        if found != job.found:
            if job.stalled:
                text = f"gets further again, after {_minutes(now - job.at)}"
                self._journal.record(engine.name, engine.id, "resumed-progress", text)
            job.found, job.at, job.stalled = found, now, False
        elif not job.stalled and now - job.at >= STALL_SECONDS:
            job.stalled = True
            where = f" at {found['done']:g} {found['unit']}" if found else ""
            text = (
                f"no progress for {_minutes(now - job.at)}{where}; `sagectl logs {engine.name}` may say why"
            )
            self._journal.record(engine.name, engine.id, "stalled", text, "warning")


def _minutes(seconds: float) -> str:
    return f"{round(seconds / 60)} min"
