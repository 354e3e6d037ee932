"""What a request to /v1/embeddings may say, and how it is answered."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl_embedding.server import protocol
from sagectl_embedding.server.protocol import Asked, Refused, Rules

RULES = Rules("m", width=8, vocabulary=100, max_tokens=10, max_inputs=4, truncate=False, dimensions=None)


def asked(rules: Rules = RULES, **fields: Any) -> Asked:
    return protocol.parse(json.dumps({"model": "m", "input": "text"} | fields).encode(), rules)


def refused(rules: Rules = RULES, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        asked(rules, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("given_", "texts", "tokens"),
    [
        ("a", ("a",), ()),
        (["a", "b"], ("a", "b"), ()),
        ([1, 2], (), ((1, 2),)),
        ([[1, 2], [99]], (), ((1, 2), (99,))),
    ],
)
def test_an_input_is_a_text_texts_tokens_or_lists_of_tokens(given_: Any, texts: Any, tokens: Any) -> None:
    found = asked(input=given_)
    assert (found.texts, found.tokens) == (texts, tokens)
    assert found.count == len(texts) + len(tokens)


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"input": ""}, 400, "input", "empty"),
        ({"input": []}, 400, "input", "not empty"),
        ({"input": None}, 400, "input", "must be"),
        ({"input": {"text": "a"}}, 400, "input", "must be"),
        ({"input": 3}, 400, "input", "must be"),
        ({"input": ["a", ""]}, 400, "input", "input[1]"),
        ({"input": ["a", 3]}, 400, "input", "input[1]"),
        ({"input": ["a", None]}, 400, "input", "input[1]"),
        ({"input": [True]}, 400, "input", "input[0]"),
        ({"input": [1.5]}, 400, "input", "1.5"),
        ({"input": [1, "a"]}, 400, "input", "'a'"),
        ({"input": [1, True]}, 400, "input", "True"),
        ({"input": [[1], []]}, 400, "input", "input[1]"),
        ({"input": [[1], "a"]}, 400, "input", "input[1]"),
        ({"input": [100]}, 400, "input", "tokens from 0 to 99"),
        ({"input": [-1]}, 400, "input", "-1"),
        ({"input": "\ud800"}, 400, "input", "surrogate"),
        ({"input": ["a"] * 5}, 413, "input", "at most 4"),
        ({"input": "a" * 641}, 413, "input", "641 characters"),
        ({"model": "other"}, 404, "model", "'other'"),
        ({"model": None}, 400, "model", '"m"'),
        ({"model": 3}, 400, "model", '"m"'),
        ({"encoding_format": "hex"}, 400, "encoding_format", "base64"),
        ({"encoding_format": []}, 400, "encoding_format", "base64"),
        ({"dimensions": 0}, 400, "dimensions", "1 to 8"),
        ({"dimensions": 9}, 400, "dimensions", "1 to 8"),
        ({"dimensions": "4"}, 400, "dimensions", "1 to 8"),
        ({"dimensions": True}, 400, "dimensions", "1 to 8"),
        ({"dimensions": 4}, 400, "dimensions", "Matryoshka"),
    ],
)
def test_a_bad_request_is_refused_with_its_field(
    fields: dict[str, Any], status: int, param: str, words: str
) -> None:
    error = refused(**fields)
    assert (error.status, error.param) == (status, param)
    assert words in error.message
    assert error.body["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        protocol.parse(body, RULES)
    assert caught.value.status == 400


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=9)
)
def test_no_input_raises_anything_else(value: Any) -> None:
    with suppress(Refused):
        assert asked(input=value).count > 0


def test_unknown_fields_and_user_are_ignored() -> None:
    assert asked(user="somebody", priority=3) == Asked(texts=("text",))


def test_the_full_width_is_always_allowed() -> None:
    assert asked(dimensions=8).dimensions is None


def test_a_matryoshka_model_takes_any_width_or_those_that_it_names() -> None:
    assert asked(replace(RULES, dimensions=()), dimensions=3).dimensions == 3
    assert asked(replace(RULES, dimensions=(2, 4)), dimensions=4).dimensions == 4
    assert "2, 4" in refused(replace(RULES, dimensions=(2, 4)), dimensions=3).message


def test_where_inputs_are_cut_a_long_text_is_not_refused() -> None:
    found = asked(replace(RULES, truncate=True), input="a" * 5000)
    assert len(found.texts[0]) == 640


def test_too_many_tokens_have_the_code_that_openai_gives_them() -> None:
    protocol.check_lengths([10, 1], RULES)
    protocol.check_lengths([11], replace(RULES, truncate=True))
    with pytest.raises(Refused) as caught:
        protocol.check_lengths([3, 11], RULES)
    assert caught.value.body["error"]["code"] == "context_length_exceeded"
    assert caught.value.status == 400
    assert "input[1] has 11 tokens" in caught.value.message


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_every_float32_comes_back_exactly(values: list[float]) -> None:
    values = [value + 0.0 for value in values]  # no -0.0, which JSON's -0 loses
    row = struct.pack(f"<{len(values)}f", *values)
    as_float = json.loads(protocol.write([row], "m", 3, as_base64=False))
    numbers = as_float["data"][0]["embedding"]
    assert struct.pack(f"<{len(numbers)}f", *numbers) == row
    as_base64 = json.loads(protocol.write([row], "m", 3, as_base64=True))
    assert base64.b64decode(as_base64["data"][0]["embedding"]) == row


def test_an_answer_has_openais_shape() -> None:
    row = struct.pack("<2f", 1.0, -0.5)
    assert json.loads(protocol.write([row, row], 'm"', 7, as_base64=False)) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, -0.5]},
            {"object": "embedding", "index": 1, "embedding": [1.0, -0.5]},
        ],
        "model": 'm"',
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
