"""Parameters and bodies are read strictly, and refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from sagectl.api.requests import check_ref, parse_object, read_query
from sagectl.api.routes import Param, shorten
from sagectl.errors import MalformedRequest, UnknownEngine

PARAMS = [
    Param("wait", "number", "", 100),
    Param("tail", "integer", "", 1000),
    Param("follow", "boolean", ""),
    Param("engine", "name", ""),
    Param("Last-Event-ID", "integer", "", place="header"),
]


def query(*pairs: tuple[str, str]) -> dict[str, Any]:
    request = Mock(query=MultiDict(pairs), query_string="x" if pairs else "")
    return read_query(request, PARAMS)


def test_parameters_come_in_their_own_types() -> None:
    found = query(("wait", "0.5"), ("tail", "20"), ("follow", "true"), ("engine", "chat@1"))
    assert found == {"wait": 0.5, "tail": 20, "follow": True, "engine": "chat@1"}


@pytest.mark.parametrize("seconds", [0.1 + 0.2, 12.300000000000001, 1e-05, 5e-324, 99.99999999999999, 1e1])
def test_seconds_may_be_what_a_program_makes_of_them(seconds: float) -> None:
    assert query(("wait", str(seconds))) == {"wait": seconds}
    assert query(("wait", f"{seconds:e}")) == {"wait": float(f"{seconds:e}")}


def test_no_parameters_are_no_parameters() -> None:
    assert query() == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wait", "soon"),
        ("wait", ""),
        ("wait", "-1"),
        ("wait", "nan"),
        ("wait", "inf"),
        ("wait", "1e3"),
        ("wait", "1e999"),
        ("wait", "1e"),
        ("wait", "0x1p3"),
        ("wait", "1_0"),
        ("wait", "101"),
        ("wait", "٣"),
        ("tail", "1.5"),
        ("tail", "+5"),
        ("tail", "9" * 30),
        ("tail", "1001"),
        ("follow", "perhaps"),
        ("follow", ""),
    ],
)
def test_a_value_that_is_none_is_named_with_what_would_do(name: str, text: str) -> None:
    with pytest.raises(MalformedRequest, match=f"The parameter {name} cannot be") as caught:
        query((name, text))
    assert caught.value.remedy.startswith("Give ")


def test_an_unknown_parameter_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(MalformedRequest, match='no parameter "wiat"') as caught:
        query(("wiat", "5"))
    assert caught.value.remedy == "It takes wait, tail, follow, engine"


def test_a_parameter_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="twice"):
        query(("tail", "1"), ("tail", "2"))


@pytest.mark.parametrize("ref", ["chat", "chat@1", "engine-0123abcd", "a_b-c", "0"])
def test_names_ids_and_groups_may_be_asked_for(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize(
    "ref", ["", "..", "../../etc/passwd", "a/b", "Chat", "-rf", "a b", "a\0", "a\n", "é", "a" * 200, "%2e%2e"]
)
def test_what_cannot_be_a_name_is_an_unknown_engine(ref: str) -> None:
    with pytest.raises(UnknownEngine, match="No engine is called"):
        check_ref(ref)


def test_an_object_is_read() -> None:
    assert parse_object('{"name": "é", "gpus": 1}'.encode()) == {"name": "é", "gpus": 1}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not JSON: Expecting value in line 1, column 1"),
        (b'{"a": 1,\n }', "in line 2, column 2"),
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (b'{"a": 1, "a": 2}', '"a" stands there twice'),
        (b'{"a": NaN}', "NaN is not a number in JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "not UTF-8"),
        (b'{"\\ud800": 1}', "not UTF-8"),
        (b'{"a": ["b\\u0000"]}', "NUL character"),
        (b'{"a\\u0000": 1}', "NUL character"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1} trailing', "Extra data"),
    ],
)
def test_what_is_no_proper_object_is_refused_in_words(raw: bytes, says: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse_object(raw)
    assert says in caught.value.detail


@pytest.mark.parametrize("depth", [33, 900, 990, 995, 1000, 5000])
def test_nesting_has_a_limit_far_below_the_interpreters(depth: int) -> None:
    parse_object(b'{"a":' * 32 + b"1" + b"}" * 32)
    with pytest.raises(MalformedRequest, match="nested too deeply"):
        parse_object(b'{"a":' * depth + b"1" + b"}" * depth)


def test_somebody_elses_text_is_made_printable_and_short() -> None:
    assert shorten("chat") == "chat"
    assert shorten("a\x1b[31m") == "a\\x1b[31m"
    assert len(shorten("x" * 1000)) == 80


def refusal(read: Callable[[], Any]) -> str:
    """Why it was refused, "" where it was not."""
    try:
        read()
    except (MalformedRequest, UnknownEngine) as error:
        return error.detail
    return ""


@given(st.binary(max_size=200) | st.text('{}[]":,0123456789eE+-.\\untrfals \x00\ud800', max_size=60))
def test_any_bytes_are_an_object_or_refused_in_print(raw: bytes | str) -> None:
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    assert refusal(lambda: parse_object(data)).isprintable()


@given(st.sampled_from([param.name for param in PARAMS] + ["other"]), st.text(max_size=20))
def test_any_text_is_a_value_or_refused_in_print(name: str, text: str) -> None:
    assert refusal(lambda: query((name, text))).isprintable()
