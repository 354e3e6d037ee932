"""Tables, widths and times of the command line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl.cli import render
from sagectl.cli.render import Cell, Column, Style

PLAIN = Style()
COLUMNS = (Column("NAME", shrink=4), Column("KIND", drop=1), Column("REASON", shrink=5))
ROWS = [("chat", "llm", ""), ("embed", "embedding", "exited with code 1")]


def lines(style: Style, rows: Sequence[render.Row] = ROWS) -> list[str]:
    return list(render.table(COLUMNS, rows, style))


def test_a_table_is_aligned_and_complete_in_a_pipe() -> None:
    assert lines(PLAIN) == [
        "NAME   KIND       REASON",
        "chat   llm",
        "embed  embedding  exited with code 1",
    ]


def test_a_column_that_is_empty_throughout_is_left_out() -> None:
    assert lines(PLAIN, [("chat", "", "")]) == ["NAME", "chat"]


def test_a_narrow_terminal_cuts_the_widest_column_first() -> None:
    assert lines(Style(width=30))[2] == "embed  embedding  exited with…"


def test_a_narrower_terminal_leaves_columns_out() -> None:
    assert lines(Style(width=17)) == ["NAME   REASON", "chat", "embed  exited wi…"]


@given(
    rows=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12), st.text(max_size=60)), min_size=1),
    width=st.integers(1, 100),
)
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str, str]], width: int) -> None:
    clean = [tuple(map(render.clean, row)) for row in rows]
    for line in render.table(COLUMNS, clean, Style(width=width)):
        assert render.cells(line) <= width


def test_a_colour_wraps_the_text_and_not_the_padding() -> None:
    rows = [(Cell("chat", "green"), "llm", "x")]
    assert lines(Style(colour=True), rows)[1] == "\x1b[32mchat\x1b[0m  llm   x"


def test_no_colour_leaves_no_escape_sequences() -> None:
    assert PLAIN.paint("failed", "red", "bold") == "failed"


def test_an_ellipsis_marks_what_is_left_off() -> None:
    assert render.cut("abcdef", 4) == "abc…"
    assert render.cut("abcdef", 4, unicode=False) == "abc~"
    assert render.cut("abcdef", 6) == "abcdef"
    assert render.cut("abcdef", None) == "abcdef"


def test_wide_characters_count_twice() -> None:
    assert render.cells("模型") == 4
    assert render.cut("模型模型", 5) == "模型…"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.42, "0.4s"),
        (9, "9s"),
        (59.6, "1m"),
        (61, "1m 1s"),
        (3600, "1h"),
        (11520, "3h 12m"),
        (90000, "1d 1h"),
        (86400 * 400, "400d"),
        (-3, "0s"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_a_time_is_told_with_its_age() -> None:
    now = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)
    assert render.ago("2026-01-05T11:48:00Z", now).endswith(", 3h 12m ago")


@pytest.mark.parametrize("at", [None, "", "yesterday"])
def test_a_time_that_is_none_is_left_out(at: str | None) -> None:
    assert render.ago(at) == ""
    assert render.local_time(at) == ""


def test_what_engines_say_cannot_move_the_cursor() -> None:
    assert render.clean("a\x1b[2Jb\r\nc\x07") == "a [2Jb c"


def test_properties_are_aligned_and_empty_ones_left_out() -> None:
    pairs = [("PID", "4242"), ("Serves", ""), ("Address", "http://127.0.0.1:8001")]
    assert list(render.properties(pairs, PLAIN, indent=2)) == [
        "      PID: 4242",
        "  Address: http://127.0.0.1:8001",
    ]


def test_a_file_gets_neither_colours_nor_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    style = Style.of(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert style == Style(colour=False, unicode=True, width=None)


class Terminal(io.StringIO):
    encoding = "latin-1"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv(variable, value)
    assert Style.of(Terminal()) == Style(colour=False, unicode=False, width=40)
