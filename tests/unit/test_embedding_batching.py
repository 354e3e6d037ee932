"""Which inputs go into the next batch, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl_embedding.server.batching import PADDING_SHARE, Limits, Queue, compose

LIMITS = Limits(size=4, tokens=100, spare=8, wait=0.0)


def limits(**changes: float) -> Limits:
    values = {"size": 4, "tokens": 100, "spare": 8, "wait": 0.0} | changes
    return Limits(int(values["size"]), int(values["tokens"]), int(values["spare"]), values["wait"])


def a_queue(*lengths: int, **changes: float) -> Queue:
    queue = Queue(limits(**changes))
    for number, length in enumerate(lengths):
        queue.add(number, [length], now=0.0)
    return queue


def taken(queue: Queue) -> list[tuple[object, int]]:
    return [(item.job, item.index) for item in queue.take()]


@pytest.mark.parametrize(
    ("lengths", "batch"),
    [
        ([5], [0]),
        ([5, 5, 5], [0, 1, 2]),
        ([5, 5, 5, 5, 5], [0, 1, 2, 3]),  # full
        ([5, 90, 5], [0, 2]),  # 90 would make the others compute 170 tokens of padding
        ([90, 5, 5], [0]),  # the first is in it, whatever the others are
        ([30, 31, 32, 33], [0, 1, 2]),  # 4 × 33 tokens are more than 100
        ([200, 5], [0]),  # one input may be longer than a batch
        ([10, 12, 11, 9], [3, 0, 2, 1]),  # shortest first
        ([20, 22, 19, 21, 10, 18], [2, 0, 3, 1]),  # the nearest neighbours
    ],
)
def test_a_batch_holds_the_first_input_and_its_neighbours_in_length(
    lengths: list[int], batch: list[int]
) -> None:
    assert compose(lengths, LIMITS) == batch


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.integers(1, 16),
    st.integers(1, 2000),
    st.integers(0, 100),
)
def test_no_batch_passes_its_limits(lengths: list[int], size: int, tokens: int, spare: int) -> None:
    chosen = compose(lengths, Limits(size, tokens, spare, 0))
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen) <= size
    real = sum(lengths[index] for index in chosen)
    computed = len(chosen) * max(lengths[index] for index in chosen)
    if len(chosen) > 1:
        assert computed <= tokens
        assert computed - real <= spare + real // PADDING_SHARE
    assert [lengths[index] for index in chosen] == sorted(lengths[index] for index in chosen)


@given(st.lists(st.lists(st.integers(1, 120), min_size=1, max_size=30), min_size=1, max_size=12))
def test_every_input_is_taken_once(requests: list[list[int]]) -> None:
    queue = Queue(LIMITS)
    for number, lengths in enumerate(requests):
        queue.add(number, lengths, now=0.0)
    seen = []
    while len(queue):
        seen += taken(queue)
    assert sorted(map(str, seen)) == sorted(
        str((number, index)) for number, lengths in enumerate(requests) for index in range(len(lengths))
    )
    assert queue.tokens == 0
    assert queue.due() is None
    assert queue.take() == []


def test_a_small_request_need_not_wait_for_a_large_one_that_came_before() -> None:
    queue = Queue(LIMITS)
    queue.add("large", [10] * 100, now=0.0)
    assert taken(queue) == [("large", 0), ("large", 1), ("large", 2), ("large", 3)]
    queue.add("small", [10], now=1.0)
    batch = taken(queue)
    assert ("small", 0) in batch


def test_a_large_request_goes_on_while_small_ones_keep_coming() -> None:
    queue = Queue(LIMITS)
    queue.add("large", [10] * 20, now=0.0)
    done = 0
    for number in range(40):
        for more in range(5):
            queue.add((number, more), [10], now=float(number))
        done += sum(job == "large" for job, _ in taken(queue))
    assert done == 20


def test_an_odd_length_is_not_put_off_for_ever() -> None:
    queue = a_queue(*[10] * 8, 90, *[10] * 40)
    batches = 0
    while not any(job == 8 for job, _ in taken(queue)):
        batches += 1
    assert batches <= 2


def test_without_a_window_a_batch_is_due_at_once() -> None:
    queue = a_queue(5)
    assert queue.due() == 0.0


def test_with_a_window_the_oldest_input_decides() -> None:
    queue = Queue(limits(wait=0.5))
    queue.add("a", [5], now=10.0)
    queue.add("b", [5], now=10.4)
    assert queue.due() == 10.5


@pytest.mark.parametrize("lengths", [[5, 5, 5, 5], [60, 60]])
def test_a_full_batch_does_not_wait(lengths: list[int]) -> None:
    assert a_queue(*lengths, wait=5).due() == float("-inf")


def test_what_is_withdrawn_is_never_taken() -> None:
    queue = Queue(LIMITS)
    queue.add("gone", [5] * 10, now=0.0)
    queue.add("stays", [7], now=0.0)
    queue.take()
    assert queue.withdraw("gone") == 6
    assert queue.withdraw("gone") == 0
    assert taken(queue) == [("stays", 0)]
    assert queue.tokens == 0
