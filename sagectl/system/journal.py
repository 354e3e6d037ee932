"""What happened to the engines: recorded in the store, read back, and followed by subscribers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

from sagectl.system.store import Entry, Store

__all__ = ["Entry", "Journal", "Lost", "Subscription"]

_RECENT = 1000
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Lost:
    """In a subscription: events between the last one and the next are gone from the journal."""

    count: int
    """At most how many; 0 where that is not known (the journal was rebuilt, or the position is bogus)."""


class Journal:
    """The events. All methods belong to the event loop's thread and none of them waits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: deque[Entry] = deque(maxlen=_RECENT)
        self._subscriptions: set[Subscription] = set()
        self.recorded: Callable[[], None] = lambda: None
        """Told of every event, so that somebody sees to its being written."""

    @property
    def last_id(self) -> int:
        """The id of the newest event, 0 where there was never one."""
        return self._store.last_id

    def record(
        self,
        engine: str | None,
        engine_id: str | None,
        kind: str,
        text: str,
        level: str = "info",
        state: str | None = None,
        substate: str | None = None,
    ) -> int:
        """Append an event and wake the subscribers. Returns its id; the store commits it at its flush.

        engine, engine_id: None where it is about the daemon itself.
        kind: a stable word such as `started`, `ready`, `exited`.
        level: `info`, `warning` or `error`.
        """
        entry = self._store.add_event(
            kind, text, level=level, engine=engine, engine_id=engine_id, state=state, substate=substate
        )
        self._recent.append(entry)
        for subscription in self._subscriptions:
            subscription.wake()
        self.recorded()
        return entry.id

    def tail(self, count: int, engine: str | None = None) -> Sequence[Entry]:
        """The newest `count` events (of the engine with this name), oldest first."""
        return self._store.newest_events(count, engine)

    def since(self, event_id: int, limit: int = _BATCH) -> Sequence[Entry]:
        """The first `limit` events after this id, oldest first."""
        if not self._recent or event_id + 1 < self._recent[0].id:
            return self._store.events(after=event_id, limit=limit)
        skip = max(0, event_id + 1 - self._recent[0].id)
        return list(islice(self._recent, skip, skip + limit))

    def subscribe(self, after: int | None = None, engine: str | None = None) -> Subscription:
        """Follow the events after this id (None: from now on), of one engine (by name) or of all.

        Use it as `with journal.subscribe() as events: async for event in events`, or call `close`.
        """
        return Subscription(self, self.last_id if after is None else after, engine)

    def attach(self, subscription: Subscription) -> None:
        """Wake this subscription at each event; `Subscription` calls it."""
        self._subscriptions.add(subscription)

    def detach(self, subscription: Subscription) -> None:
        """The opposite of `attach`."""
        self._subscriptions.discard(subscription)


class Subscription:
    """An async iterator of `Entry` and `Lost` that holds a position, not a queue.

    However slow its reader is, it costs the journal nothing: it reads on from memory or from the
    store, and says `Lost` only where the store has dropped events meanwhile. Ends after `close`.
    """

    def __init__(self, journal: Journal, position: int, engine: str | None) -> None:
        self._journal = journal
        self._position = position
        self._engine = engine
        self._batch: deque[Entry | Lost] = deque()
        self._woken = asyncio.Event()
        self._closed = False
        journal.attach(self)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Entry | Lost:
        while not self._closed:
            if not self._batch:
                self._woken.clear()
                self._fill()
            if self._batch:
                return self._batch.popleft()
            if self._position >= self._journal.last_id:
                await self._woken.wait()
        raise StopAsyncIteration

    def _fill(self) -> None:
        if self._position == self._journal.last_id:
            return
        if self._position > self._journal.last_id:
            self._batch.append(Lost(0))
            self._position = self._journal.last_id
            return
        entries = self._journal.since(self._position, _BATCH)
        if not entries:
            # Neither in memory nor in the store, which was rebuilt or cannot be read: never spin on it.
            self._batch.append(Lost(0))
            self._position = self._journal.last_id
            return
        gap = entries[0].id - self._position - 1
        if gap > 0:
            self._batch.append(Lost(gap))
        self._position = entries[-1].id
        self._batch.extend(e for e in entries if self._engine is None or e.engine == self._engine)

    def wake(self) -> None:
        """The journal has something new."""
        self._woken.set()

    def close(self) -> None:
        """End the iteration, also for a reader that waits now."""
        self._closed = True
        self._journal.detach(self)
        self._woken.set()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
