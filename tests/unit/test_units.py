"""Sizes, shares, durations and signals as people write them."""

from __future__ import annotations

import math
import signal
from typing import Any

import pytest

from sagectl.config.units import (
    BadValue,
    describe,
    parse_duration,
    parse_share,
    parse_signal,
    parse_size,
)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("20GiB", 20 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 KiB", 1536),
        ("64kB", 64_000),
        ("7B", 7),
        ("2TiB", 2 * 2**40),
        (4096, 4096),
        (0, 0),
    ],
)
def test_a_size_is_read(written: Any, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    ("written", "message", "remedy"),
    [
        ("20", '"20" has no unit', "20GiB"),
        ("20G", '"G" is not a unit of size', 'write "20GiB"'),
        ("20gb", '"gb" is not a unit of size', 'write "20GB"'),
        ("20 apples", '"apples" is not a unit of size', "20GiB"),
        ("-1GiB", '"-1GiB" is not a size', "20GiB"),
        (-1, "-1 is negative", "20GiB"),
        ("", '"" is not a size', "20GiB"),
        (True, "true is not a size", "20GiB"),
        (1.5, "1.5 is not a size", "20GiB"),
        (10**40, "a number of 41 digits is larger than any memory", "20GiB"),
        ("9999999TiB", '"9999999TiB" is larger than any memory', "20GiB"),
        ("٣GiB", '"٣GiB" is not a size', "20GiB"),
        ([], "an empty array is not a size", "20GiB"),
    ],
)
def test_a_wrong_size_is_refused_with_what_is_accepted(written: Any, message: str, remedy: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse_size(written)
    assert caught.value.message == message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(("written", "share"), [("40%", 0.4), ("100 %", 1.0), ("0.5%", 0.005)])
def test_a_share_is_read(written: str, share: float) -> None:
    assert parse_share(written) == pytest.approx(share)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("101%", "101% is more than the whole card"),
        ("0%", "0% leaves nothing"),
        ("40", '"40" is not a share'),
        ("-4%", '"-4%" is not a share'),
        (0.4, "0.4 is not a share"),
    ],
)
def test_a_wrong_share_is_refused(written: Any, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse_share(written)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90),
        ("5min", 300),
        ("1h", 3600),
        ("1h 30min", 5400),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2d", 172_800),
        (3, 3),
        (0.5, 0.5),
        (0, 0),
    ],
)
def test_a_duration_is_read(written: Any, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("5", '"5" is not a duration'),
        ("", '"" is not a duration'),
        ("5 parsecs", '"parsecs" is not a unit of time'),
        ("-5s", '"-5s" is not a duration'),
        (-5, "-5 is negative"),
        (-0.5, "-0.5 is negative"),
        (math.nan, "nan is not a duration"),
        (math.inf, "inf is not a duration"),
        (-math.inf, "-inf is not a duration"),
        (True, "true is not a duration"),
        pytest.param(10**400, "a number of 401 digits is longer than ten years", id="huge"),
        ("99999d", '"99999d" is longer than ten years'),
        ({}, "a table is not a duration"),
    ],
)
def test_a_wrong_duration_is_refused(written: Any, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse_duration(written)
    assert caught.value.message == message


@pytest.mark.parametrize("written", ["SIGINT", "INT", "sigint", 2])
def test_a_signal_is_read_by_name_and_number(written: Any) -> None:
    assert parse_signal(written) == signal.SIGINT


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("SIGNOPE", '"SIGNOPE" is not a signal'),
        ("", '"" is not a signal'),
        (0, "0 is not a signal"),
        (-2, "-2 is not a signal"),
        (999, "999 is not a signal"),
        (True, "true is not a signal"),
        ("SIGSTOP", "SIGSTOP ends no process"),
        ("_IGN", '"_IGN" is not a signal'),
    ],
)
def test_a_wrong_signal_is_refused(written: Any, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse_signal(written)
    assert caught.value.message == message


def test_long_values_are_cut_in_messages() -> None:
    assert describe("x" * 1000) == f'"{"x" * 60}…"'
    assert describe(7**5000) == "a number of 4226 digits"
