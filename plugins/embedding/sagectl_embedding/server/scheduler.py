"""The thread that owns the model, and how requests reach it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from .batching import Item, Limits, Queue
from .metrics import Metrics
from .protocol import Refused

log = logging.getLogger("sagectl.embedding")

FAILURES = 3
"""So many failed batches in a row, and the engine calls itself broken."""
STALL = 300.0
"""Seconds after which a batch counts as stuck."""


class LoadError(Exception):
    """The model cannot be served; the text says why, and is all that there is to say."""


class Model(Protocol):
    """What the thread runs."""

    def embed(self, inputs: Sequence[Sequence[int]], dimensions: Sequence[int | None]) -> list[bytes]:
        """One embedding for each input, as little-endian float32."""
        ...


@dataclass(eq=False, slots=True)
class Job:
    """One request's inputs and its embeddings so far."""

    inputs: Sequence[Sequence[int]]
    dimensions: int | None
    done: asyncio.Future[list[bytes]]
    rows: dict[int, bytes] = field(default_factory=dict)


class Scheduler:
    """Batches across requests. All methods but the thread's own belong to the event loop."""

    def __init__(self, limits: Limits, max_queue: int, metrics: Metrics) -> None:
        self._queue = Queue(limits)
        self._max_queue = max_queue
        self._metrics = metrics
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._admitted = 0
        self._failures = 0
        self._began: float | None = None
        self._pace = 0.0
        metrics.gauge("queue_inputs", "Inputs that wait for their batch.", lambda: len(self._queue))
        metrics.gauge("queue_tokens", "Tokens of the inputs that wait.", lambda: self._queue.tokens)

    def start(self, load: Callable[[], Model], loaded: Callable[[Model], None]) -> asyncio.Future[None]:
        """Load the model in the thread and serve. The future ends with the error where loading fails."""
        ended: asyncio.Future[None] = self._loop.create_future()

        def run() -> None:
            try:
                model = load()
            except BaseException as error:
                self._loop.call_soon_threadsafe(ended.set_exception, error)
                return
            self._loop.call_soon_threadsafe(loaded, model)
            self._serve(model)

        # A daemon: the process ends with the loop, whatever the model computes or loads.
        threading.Thread(target=run, name="model", daemon=True).start()
        return ended

    @property
    def trouble(self) -> str | None:
        """Why the engine does not work although it runs; None where it does."""
        began = self._began
        if began is not None and time.monotonic() - began > STALL:
            return f"a batch has been computing for more than {STALL:g} s"
        if self._failures >= FAILURES:
            return f"the last {self._failures} batches failed"
        return None

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Keep places for a request's inputs.

        Raises:
            Refused: 503 where too many wait already.
        """
        if self._admitted + count > self._max_queue:
            seconds = max(1, min(60, math.ceil(self._queue.tokens * self._pace)))
            raise Refused(
                503,
                f"{self._admitted} inputs wait already, and at most {self._max_queue} may.",
                code="overloaded",
                retry_after=seconds,
            )
        self._admitted += count
        try:
            yield
        finally:
            self._admitted -= count

    async def embed(self, inputs: Sequence[Sequence[int]], dimensions: int | None) -> list[bytes]:
        """The embeddings, in order. Cancelled, it takes out of the queue what has not begun."""
        job = Job(inputs, dimensions, self._loop.create_future())
        with self._changed:
            self._queue.add(job, map(len, inputs), time.monotonic())
            self._changed.notify()
        try:
            return await job.done
        finally:
            if len(job.rows) < len(inputs):
                with self._changed:
                    gone = self._queue.withdraw(job)
                with self._metrics.lock:
                    self._metrics.withdrawn.add(gone)

    # --- The thread ---

    def _serve(self, model: Model) -> None:
        while True:
            batch = self._next()
            self._began = began = time.monotonic()
            outcome = self._compute(model, batch)
            seconds = time.monotonic() - began
            self._began = None
            self._count(batch, began, seconds)
            self._loop.call_soon_threadsafe(self._deliver, batch, outcome)

    def _next(self) -> list[Item]:
        with self._changed:
            while True:
                due = self._queue.due()
                wait = None if due is None else due - time.monotonic()
                if wait is not None and wait <= 0:
                    return self._queue.take()
                self._changed.wait(wait)

    def _compute(self, model: Model, batch: Sequence[Item]) -> list[bytes | Exception]:
        """One outcome for each input. A batch that fails is tried again in halves: too much memory is asked
        for no more, and an input that the model cannot stand fails alone.
        """
        jobs = [_job(item) for item in batch]
        inputs = [job.inputs[item.index] for job, item in zip(jobs, batch, strict=True)]
        try:
            rows = model.embed(inputs, [job.dimensions for job in jobs])
        except Exception as error:  # whatever torch raises; the thread must outlive it
            log.exception("a batch of %d inputs failed", len(batch))
            with self._metrics.lock:
                self._metrics.failures.add()
            if len(batch) == 1:
                self._failures += 1
                return [error]
            middle = len(batch) // 2
            return self._compute(model, batch[:middle]) + self._compute(model, batch[middle:])
        self._failures = 0
        return list(rows)

    def _count(self, batch: Sequence[Item], began: float, seconds: float) -> None:
        real = sum(item.length for item in batch)
        computed = len(batch) * max(item.length for item in batch)
        # A moving mean, so that what a refused client is told follows the load.
        self._pace += (seconds / real - self._pace) / (8 if self._pace else 1)
        metrics = self._metrics
        with metrics.lock:
            metrics.inputs.add(len(batch))
            metrics.tokens.add(real)
            metrics.padding.add(computed - real)
            metrics.batch_inputs.observe(len(batch))
            metrics.batch_tokens.observe(computed)
            metrics.batch_seconds.observe(seconds)
            for item in batch:
                metrics.queue_seconds.observe(began - item.arrived)

    # --- Back on the loop ---

    def _deliver(self, batch: Sequence[Item], outcome: Sequence[bytes | Exception]) -> None:
        for item, row in zip(batch, outcome, strict=True):
            job = _job(item)
            if job.done.done():
                continue
            if isinstance(row, Exception):
                job.done.set_exception(
                    Refused(500, f"The model failed to compute input[{item.index}]; its log says why.")
                )
                continue
            job.rows[item.index] = row
            if len(job.rows) == len(job.inputs):
                job.done.set_result([job.rows[index] for index in range(len(job.inputs))])


def _job(item: Item) -> Job:
    assert isinstance(item.job, Job)
    return item.job
