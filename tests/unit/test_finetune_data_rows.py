"""Which sequences share a row, and what a row holds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl_finetune.data import UNTRAINED, Corpus, DataError, Settings, Tokens, pack

ROOM = 12


def fewest(lengths: Sequence[int], room: int) -> int:
    """The fewest rows that can hold them, by trying all ways."""

    def least(left: tuple[int, ...], rows: tuple[int, ...], best: int) -> int:
        if not left:
            return len(rows)
        if len(rows) > best:
            return best
        for index, row in enumerate(rows):
            if row >= left[0] and row not in rows[:index]:
                best = min(best, least(left[1:], (*rows[:index], row - left[0], *rows[index + 1 :]), best))
        return min(best, least(left[1:], (*rows, room - left[0]), best))

    return least(tuple(sorted(lengths, reverse=True)), (), len(lengths))


@given(st.lists(st.integers(1, ROOM), max_size=9))
def test_packing_wastes_little_beside_the_best_there_is(lengths: list[int]) -> None:
    rows = pack(lengths, ROOM)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= ROOM for row in rows)
    assert len(rows) <= fewest(lengths, ROOM) * 11 / 9 + 2 / 3


@given(st.lists(st.integers(1, 200), max_size=300))
def test_packing_is_best_fit(lengths: list[int]) -> None:
    """Against the plain way of it: look at all rows, take the fullest that has room."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        room = [200 - sum(lengths[other] for other in row) for row in rows]
        fitting = [left for left in room if left >= lengths[index]]
        if fitting:
            rows[max(i for i, left in enumerate(room) if left == min(fitting))].append(index)
        else:
            rows.append([index])
    found = pack(lengths, 200)
    assert sorted(sum(lengths[i] for i in row) for row in found) == sorted(
        sum(lengths[i] for i in row) for row in rows
    )
    assert found == pack(lengths, 200)
    assert found == sorted(found)


def test_what_is_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="sequence 1 has 13 tokens, and a row has room for 12"):
        pack([3, 13], ROOM)


def a_corpus(*lengths: int, rows: Sequence[int] | None = None) -> Corpus:
    """Sequences of the ids 1, 2, 3…, of which every other is trained."""
    corpus = Corpus()
    for number, length in enumerate(lengths):
        trained = bytearray(index % 2 for index in range(length))
        row = rows[number] if rows else number
        corpus.add(range(1, length + 1), trained, (0, row), length)
    return corpus


def settings(packing: bool) -> Settings:
    return Settings(ROOM, packing, "auto", "raw")


def test_a_row_of_one_sequence() -> None:
    tokens = Tokens(a_corpus(3, 5), range(2), settings(packing=False))
    assert len(tokens) == 2
    assert tokens[0] == {
        "input_ids": [1, 2, 3],
        "labels": [UNTRAINED, 2, UNTRAINED],
        "position_ids": [0, 1, 2],
        "seq_lengths": [3],
    }
    assert (tokens.tokens(), tokens.tokens_trained(), tokens.lengths()) == (8, 3, [3, 5])
    with pytest.raises(IndexError):
        tokens[2]


def test_a_packed_row_starts_again_with_each_sequence() -> None:
    tokens = Tokens(a_corpus(3, 9, 10), range(3), settings(packing=True))
    assert tokens.layout == [(0, 1), (2,)]
    row = tokens[0]
    assert row["seq_lengths"] == [3, 9]
    assert row["position_ids"] == [*range(3), *range(9)]
    assert row["input_ids"] == [*range(1, 4), *range(1, 10)]
    assert row["labels"][3] == UNTRAINED
    assert tokens.fill() == pytest.approx(22 / 24)


def test_the_first_token_of_a_sequence_is_never_trained() -> None:
    """In a packed row it would be predicted from the end of another example."""
    corpus = Corpus()
    corpus.add([7, 8], bytearray(b"\1\1"), (0, 1), 2)
    assert Tokens(corpus, [0], settings(packing=True))[0]["labels"] == [UNTRAINED, 8]


@pytest.mark.parametrize("packing", [False, True])
def test_a_split_keeps_what_came_of_one_row_together(packing: bool) -> None:
    corpus = a_corpus(*[4] * 20, rows=[number // 2 for number in range(20)])
    whole = Tokens(corpus, range(20), settings(packing))
    train, evaluate = whole.split(0.2, seed=1)
    assert sorted([*train.sequences(), *evaluate.sequences()]) == list(range(20))
    assert len(set(evaluate.sequences())) == 4
    assert {corpus.rows[index] for index in train.sequences()}.isdisjoint(
        corpus.rows[index] for index in evaluate.sequences()
    )
    again = whole.split(0.2, seed=1)
    assert [part.layout for part in again] == [train.layout, evaluate.layout]
    assert whole.split(0.2, seed=2)[1].layout != evaluate.layout


def test_a_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="none would be left to train on"):
        Tokens(a_corpus(3), range(1), settings(packing=False)).split(0.5, seed=1)


def test_the_hash_is_of_tokens_labels_and_bounds() -> None:
    assert a_corpus(3, 5).sha256() == a_corpus(3, 5).sha256()
    assert len({a_corpus(3, 5).sha256(), a_corpus(5, 3).sha256(), a_corpus(8).sha256()}) == 3
