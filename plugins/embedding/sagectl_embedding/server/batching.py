"""Which inputs go into the next batch, and when. Pure: nothing here reads a clock or runs a model."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

LOOKAHEAD = 8
"""How many batches' worth of waiting inputs are looked at for neighbours in length."""
PADDING_SHARE = 8
"""One part of padding is accepted for this many parts of real tokens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may hold.

    size: inputs.
    tokens: inputs times the longest of them, which is what the model computes; one input alone may be longer.
    spare: tokens of padding that cost less than a batch of its own.
    wait: seconds that an input may wait for others to join it; 0 for none.
    """

    size: int
    tokens: int
    spare: int
    wait: float


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """One waiting input: the `index`-th of the request `job`.

    turn: when its turn comes; see `Queue.add`.
    number: breaks ties, by arrival.
    """

    turn: int
    number: int
    job: Hashable = field(compare=False)
    index: int = field(compare=False)
    length: int = field(compare=False)
    arrived: float = field(compare=False)


def compose(lengths: Sequence[int], limits: Limits) -> list[int]:
    """Indices of one batch. The first input is always in it; then come its neighbours in length.

    A batch is padded to its longest input, so it grows towards whichever neighbour costs less padding, until
    it is full or the padding would cost more than a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    low = high = order.index(0)
    real = lengths[0]
    while high - low + 1 < limits.size:
        grown = [
            (first, last)
            for first, last in ((low, high + 1), (low - 1, high))
            if first >= 0 and last < len(order)
        ]
        best: tuple[int, int, int, int] | None = None
        for first, last in grown:
            new = order[last] if last > high else order[first]
            computed = (last - first + 1) * lengths[order[last]]
            total = real + lengths[new]
            padding = computed - total
            if computed > limits.tokens or padding > limits.spare + total // PADDING_SHARE:
                continue
            if best is None or padding < best[0]:
                best = (padding, total, first, last)
        if best is None:
            break
        _, real, low, high = best
    return order[low : high + 1]


class Queue:
    """The inputs that wait, in a fair order.

    A request's inputs get consecutive turns that begin now, so a request of one input that comes after one of
    thousand is served beside its first inputs, not behind its last. Each batch moves "now" on by a turn at
    least, so nobody waits for ever, however many keep coming.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._items: list[Item] = []
        self._turn = 0
        self._number = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, job: Hashable, lengths: Iterable[int], now: float) -> None:
        """Let a request's inputs wait."""
        for index, length in enumerate(lengths):
            self._number += 1
            item = Item(self._turn + index, self._number, job, index, length, now)
            heapq.heappush(self._items, item)
            self.tokens += length

    def withdraw(self, job: Hashable) -> int:
        """Forget what still waits of a request; how many inputs that were."""
        kept = [item for item in self._items if item.job is not job]
        gone = len(self._items) - len(kept)
        if gone:
            self._items = kept
            heapq.heapify(self._items)
            self.tokens = sum(item.length for item in kept)
        return gone

    def due(self) -> float | None:
        """When the next batch should begin, on the clock that `add` was told; None while nothing waits."""
        if not self._items:
            return None
        if len(self._items) >= self._limits.size or self.tokens >= self._limits.tokens:
            return float("-inf")
        return min(item.arrived for item in self._items) + self._limits.wait

    def take(self) -> list[Item]:
        """Remove and return the next batch, shortest input first; empty where nothing waits."""
        if not self._items:
            return []
        count = min(len(self._items), LOOKAHEAD * self._limits.size)
        seen = [heapq.heappop(self._items) for _ in range(count)]
        self._turn = max(self._turn + 1, seen[0].turn)
        chosen = compose([item.length for item in seen], self._limits)
        picked = set(chosen)
        for position, item in enumerate(seen):
            if position not in picked:
                heapq.heappush(self._items, item)
        batch = [seen[position] for position in chosen]
        self.tokens -= sum(item.length for item in batch)
        return batch
