"""Rows of each format, good and broken, and what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest

from sagectl_finetune.data.formats import example, recognise
from sagectl_finetune.data.model import Example, Format, RowError

ASKED = {"role": "user", "content": "Q"}
ANSWERED = {"role": "assistant", "content": "A"}
CHAT = [ASKED, ANSWERED]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds"}}
HUMAN = {"from": "human", "value": "Q"}
GPT = {"from": "gpt", "value": "A"}


def made(row: Any) -> Example:
    return example(row, recognise(row), "f", 1)


def said(row: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in made(row).messages]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": CHAT}, "messages"),
        ({"messages": CHAT, "prompt": "Q", "prompt_id": "1"}, "messages"),  # as UltraChat has it
        ({"conversations": CHAT}, "messages"),
        (CHAT, "messages"),
        ({"messages": '[{"role": "user", "content": "Q"}]'}, "messages"),  # a cell of a CSV file
        ({"conversations": [HUMAN, GPT]}, "sharegpt"),
        ({"conversation": [HUMAN, GPT]}, "sharegpt"),
        ({"messages": [HUMAN, GPT]}, "sharegpt"),
        ({"instruction": "Q", "input": "", "output": "A"}, "alpaca"),
        ({"instruction": "Q", "output": "A", "text": "all of it"}, "alpaca"),  # as Alpaca itself has it
        ({"instruction": "Q", "context": "C", "response": "A", "category": "x"}, "alpaca"),  # Dolly
        ({"prompt": "Q", "completion": "A"}, "prompt-completion"),
        ({"prompt": "Q", "response": "A"}, "prompt-completion"),
        ({"question": "Q", "answer": "A", "id": 3}, "prompt-completion"),
        ({"input": "Q", "output": "A"}, "prompt-completion"),
        ({"text": "A"}, "text"),
        ({"text": None}, "text"),
        ({"messages": None, "text": "A"}, "text"),  # Parquet gives every row all columns
    ],
)
def test_a_format_is_recognised(row: Any, form: Format) -> None:
    assert recognise(row) == form


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": CHAT}, [("user", "Q"), ("assistant", "A")]),
        (
            {"messages": [{"role": "developer", "content": "S"}, *CHAT]},
            [("system", "S"), ("user", "Q"), ("assistant", "A")],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, ANSWERED]},
            [("user", "Q"), ("assistant", "A")],
        ),
        ({"messages": [*CHAT, ASKED]}, [("user", "Q"), ("assistant", "A")]),  # nobody answers it
        ({"conversations": [HUMAN, GPT]}, [("user", "Q"), ("assistant", "A")]),
        (
            {"conversations": [{"from": "user", "value": "Q"}, {"from": "chatgpt", "value": "A"}]},
            [("user", "Q"), ("assistant", "A")],
        ),
        (
            {"conversations": [HUMAN, GPT], "system": "S"},
            [("system", "S"), ("user", "Q"), ("assistant", "A")],
        ),
        ({"instruction": "Q", "input": "I", "output": "A"}, [("user", "Q\n\nI"), ("assistant", "A")]),
        ({"instruction": "", "input": "I", "output": "A"}, [("user", "I"), ("assistant", "A")]),
        (
            {"instruction": "Q", "output": "A", "system": "S", "history": [["q", "a"]]},
            [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "Q"), ("assistant", "A")],
        ),
        ({"instruction": "Q", "context": "C", "response": "A"}, [("user", "Q\n\nC"), ("assistant", "A")]),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, [("user", "Q"), ("assistant", "A")]),
    ],
)
def test_a_conversation_becomes_messages(row: Any, expected: list[tuple[str, str]]) -> None:
    assert said(row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q:", "completion": " A"}, ("Q:", "", " A")),
        ({"question": "Q", "answer": "A"}, ("Q", "\n", "A")),
        ({"input": "Q", "output": "A"}, ("Q", "\n", "A")),
        ({"prompt": "", "completion": "A"}, ("", "", "A")),
    ],
)
def test_a_pair_stays_one(row: Any, expected: tuple[str, str, str]) -> None:
    pair = made(row)
    assert (pair.prompt, pair.separator, pair.completion) == expected


def test_tools_and_calls_are_brought_into_one_form() -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    answered = {"role": "tool", "content": "2", "tool_call_id": "1", "name": None}
    openai = made({"messages": [ASKED, calling, answered, ANSWERED], "tools": [TOOL]})
    assert openai.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALLED]}
    assert openai.messages[2] == {"role": "tool", "content": "2", "tool_call_id": "1"}
    assert openai.trained == (1, 3)
    assert openai.tools == [TOOL]
    sharegpt = made(
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "2"},
                GPT,
            ],
            "tools": '[{"name": "add", "description": "adds"}]',
        }
    )
    assert [message["role"] for message in sharegpt.messages] == ["user", "assistant", "tool", "assistant"]
    assert sharegpt.messages[1]["tool_calls"] == [CALLED]
    assert sharegpt.tools == [TOOL]


def test_only_what_has_weight_is_trained() -> None:
    assert made({"messages": [ASKED, {**ANSWERED, "weight": 0}, ASKED, ANSWERED]}).trained == (3,)
    last = made({"messages": [ASKED, ANSWERED, ASKED, {**ANSWERED, "weight": 0}]})
    assert last.trained == (1,)
    assert len(last.messages) == 2
    prompted = made({"prompt": [ASKED, ANSWERED, ASKED], "completion": [ANSWERED]})
    assert prompted.trained == (3,)
    assert made({"conversations": [HUMAN, GPT], "system": "S"}).trained == (2,)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (3, "is a number, not an object"),
        ("text", "is text, not an object"),
        (None, "is null, not an object"),
        ({}, "none of the keys of a known format"),
        ({"title": "T", "body": "B"}, "but body, title"),
        ({"messages": CHAT, "conversations": [HUMAN, GPT]}, 'has both "messages" and "conversations"'),
        ({"messages": "no JSON"}, "messages: is text, and not JSON"),
        ({"messages": {"role": "user"}}, '"messages" is an object, not a list'),
        ({"messages": []}, "has no assistant turn"),
        ({"messages": [ASKED]}, "has no assistant turn"),
        ({"messages": [ASKED, {**ANSWERED, "weight": 0}]}, "every assistant turn has weight 0"),
        ({"messages": [ASKED, "A"]}, "message 2 is text, not an object"),
        ({"messages": [ASKED, {"content": "A"}]}, "message 2 has no role"),
        ({"messages": [{"role": "robot", "content": "Q"}]}, 'message 1 has the unknown role "robot"'),
        ({"messages": [{"role": 1, "content": "Q"}]}, "message 1 has the unknown role 1"),
        ({"messages": [ASKED, GPT]}, 'message 2 has "from", as ShareGPT turns have'),
        ({"messages": [{"role": "user", "content": None}, ANSWERED]}, "message 1: the text is null"),
        ({"messages": [{"role": "user"}, ANSWERED]}, "message 1 has no content"),
        ({"messages": [{"role": "user", "content": 3}, ANSWERED]}, "message 1: the content is a number"),
        ({"messages": [ASKED, {"role": "assistant", "content": " \n"}]}, "the assistant's text is empty"),
        ({"messages": [ASKED, {"role": "assistant", "content": []}]}, "the assistant's text is empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWERED]},
            "message 1 holds image_url; only text is trained on",
        ),
        ({"messages": [ASKED, {**ANSWERED, "tool_calls": {}}]}, '"tool_calls" is an object, not a list'),
        (
            {"messages": [{**ASKED, "tool_calls": [CALL]}, ANSWERED]},
            "message 1 is the user's and calls tools",
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
            "message 2: call 1 has no name of a function",
        ),
        (
            {
                "messages": [
                    ASKED,
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
                ]
            },
            "message 2: call 1: the arguments: is text, and not JSON",
        ),
        ({"messages": CHAT, "tools": {"name": "f"}}, '"tools" is an object, not a list'),
        ({"messages": CHAT, "tools": [{}]}, "tool 1 has no name of a function"),
        ({"conversations": [HUMAN]}, "has no assistant turn"),
        ({"conversations": [HUMAN, ANSWERED]}, 'turn 2 has "role", as OpenAI messages have'),
        ({"conversations": [HUMAN, {"value": "A"}]}, 'turn 2 has no "from"'),
        ({"conversations": [HUMAN, {"from": "alien", "value": "A"}]}, 'the unknown role "alien"'),
        ({"conversations": [HUMAN, {"from": "gpt", "value": None}]}, "message 2: the text is null"),
        ({"conversations": [HUMAN, GPT], "system": 3}, '"system" is a number, not text'),
        ({"instruction": "Q", "output": ""}, '"output" is empty'),
        ({"instruction": "Q", "output": None}, '"output" is null'),
        ({"instruction": "Q", "output": 7}, '"output" is a number, not text'),
        ({"instruction": "", "output": "A"}, '"instruction" and "input" are empty'),
        ({"instruction": "Q", "input": ["I"], "output": "A"}, '"input" is a list, not text'),
        ({"instruction": "Q", "output": "A", "history": ["q"]}, '"history" is not made of pairs'),
        ({"prompt": "Q", "completion": "  "}, '"completion" is empty'),
        ({"prompt": None, "completion": "A"}, '"prompt" is null'),
        ({"prompt": ["Q"], "completion": "A"}, '"prompt" is a list, not text'),
        ({"prompt": [ASKED], "completion": [ASKED]}, "has no assistant turn"),
        ({"prompt": [ASKED, ANSWERED], "completion": [ASKED]}, '"completion" has no assistant turn'),
        ({"text": None}, '"text" is null'),
        ({"text": ""}, '"text" is empty'),
        ({"text": True}, '"text" is true or false, not text'),
        ({"text": "half \ud83d"}, '"text" is not UTF-8'),
        ({"messages": [ASKED, {"role": "assistant", "content": "\udcff"}]}, "the content is not UTF-8"),
    ],
)
def test_a_bad_row_says_why(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as raised:
        made(row)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("messages", {"text": "A"}, 'has no "messages", but text'),
        ("sharegpt", {"text": "A"}, 'has no "conversations", but text'),
        ("alpaca", {"instruction": "Q"}, 'has no "output", but instruction'),
        ("prompt-completion", {"prompt": "Q"}, "has no pair of keys of this format, but prompt"),
        ("text", {"prompt": "Q"}, 'has no "text", but prompt'),
    ],
)
def test_a_named_format_is_not_guessed(form: Format, row: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        example(row, form, "f", 1)


def test_a_named_format_chooses_among_the_keys() -> None:
    row = {"messages": CHAT, "conversations": [HUMAN, GPT], "text": "T"}
    assert example(row, "text", "f", 1).text == "T"
    assert example(row, "sharegpt", "f", 1).format == "sharegpt"
