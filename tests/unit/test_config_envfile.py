"""Env files: NAME=VALUE a line."""

from __future__ import annotations

import pytest

from sagectl.config.envfile import parse


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("", {}),
        ("A=1", {"A": "1"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("\ufeffA=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("# comment\n\n  # another\nA=1 # a comment\nB=x#y\n", {"A": "1", "B": "x#y"}),
        ("export A=1\n  export  B = 2 \n", {"A": "1", "B": "2"}),
        ("A=\nB=", {"A": "", "B": ""}),
        ("A=a b=c", {"A": "a b=c"}),
        ("A='x # $y \\n'", {"A": "x # $y \\n"}),
        ('A="x # \\"y\\" \\\\ \\n$z"  # comment', {"A": 'x # "y" \\ \n$z'}),
        ("A=\"two\nlines\"\nB='two\nlines'", {"A": "two\nlines", "B": "two\nlines"}),
        ('A="joined \\\nline"', {"A": "joined line"}),
        ("A=it's", {"A": "it's"}),
        ('A={"json": "yes"}', {"A": '{"json": "yes"}'}),
        ("A.b-c=1", {"A.b-c": "1"}),
        ("A=ü", {"A": "ü"}),
    ],
)
def test_variables_are_read(text: str, variables: dict[str, str]) -> None:
    assert parse(text) == variables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=1\nB\nC=3", "line 2 is not NAME=VALUE"),
        ("=x", "line 1 is not NAME=VALUE"),
        ("A=1\nsome prose here\nB", "line 2 is not NAME=VALUE; line 3 is not NAME=VALUE"),
        ("A B=1", 'line 1 "A B" cannot be a variable\'s name'),
        ('A="secret', "line 1 opens a quote and never closes it"),
        ("\nA='secret\nB=1", "line 2 opens a quote and never closes it"),
        ('A="secret" more', "line 1 has something after the closing quote"),
        ("A=x\0y", "line 1 contains a NUL character"),
        ("NOTIFY_SOCKET=x", "line 1 NOTIFY_SOCKET is set by sagectl itself"),
    ],
)
def test_every_wrong_line_is_named_and_no_value_quoted(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^line") as caught:
        parse(text)
    assert str(caught.value) == message


def test_an_unclosed_quote_in_a_large_file_takes_no_time() -> None:
    with pytest.raises(ValueError, match="never closes"):
        parse('A="' + "\\x" * 200_000)
