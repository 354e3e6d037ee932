"""What all handlers share: the daemon's operations, the limits, and the counts for /metrics."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sagectl.api import views
from sagectl.api.limits import Limits
from sagectl.api.problems import Rejected
from sagectl.core.engine import Engine
from sagectl.errors import UnknownEngine

if TYPE_CHECKING:
    from sagectl.daemon.control import Control


@dataclass(slots=True)
class Service:
    """answered: requests by method, path of the route and status."""

    control: Control
    limits: Limits
    openapi: bytes
    started: float = field(default_factory=time.monotonic)
    answered: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    connections: int = 0
    _long: set[asyncio.Task[Any]] = field(default_factory=set)

    async def engine_json(self, engine: Engine) -> dict[str, Any]:
        """This engine, with its progress where it is a job."""
        progress = await self.control.progress(engine) if views.has_progress(engine) else None
        return views.engine_json(
            engine,
            log_path=str(self.control.log_path(engine)),
            progress=progress,
            measured_gb=self.control.measured_gb(engine),
        )

    async def engines_json(self, engines: Sequence[Engine]) -> list[dict[str, Any]]:
        """These engines, likewise."""
        return [await self.engine_json(engine) for engine in engines]

    def current(self, engine: Engine) -> Engine:
        """The engine as it is now; as it was where it is gone meanwhile."""
        try:
            return self.control.resolve(engine.id)[0]
        except UnknownEngine:
            return engine

    @property
    def long_requests(self) -> int:
        """How many requests follow or wait now."""
        return len(self._long)

    @contextmanager
    def long_request(self) -> Iterator[None]:
        """Around a request that follows or waits. Raises Rejected (503) where there are too many."""
        if len(self._long) >= self.limits.long_requests:
            raise Rejected(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{len(self._long)} requests follow or wait already",
                remedy="End some of them, or ask without `follow` and `wait`",
            )
        task = asyncio.current_task()
        assert task is not None
        self._long.add(task)
        try:
            yield
        finally:
            self._long.discard(task)

    def end_long_requests(self) -> None:
        """The API ends; whoever follows or waits does not keep it."""
        for task in self._long:
            task.cancel()
