"""Which sequences share a row. Pure and deterministic."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], room: int) -> list[tuple[int, ...]]:
    """Put sequences into rows of `room` tokens, by best fit in decreasing length.

    Each goes into the fullest row that has room for it: at most 11/9 of the fewest possible rows, plus 4.
    Returns the indices of the sequences of each row; rows are in the order of their first sequence.
    Raises ValueError where one is longer than `room`.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # rows by the room that is left in them
    rooms = 0  # bit n is set where some row has room for exactly n more
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > room:
            raise ValueError(f"sequence {index} has {length} tokens, and a row has room for {room}")
        fitting = rooms >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[left].pop()
            if not open_rows[left]:
                rooms &= ~(1 << left)
        else:
            left = room
            row = len(rows)
            rows.append([])
        rows[row].append(index)
        left -= length
        if left:
            open_rows.setdefault(left, []).append(row)
            rooms |= 1 << left
    return sorted(tuple(sorted(row)) for row in rows)
