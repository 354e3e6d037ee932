"""The forms in which chat templates want messages. OpenAI's is the first; most templates read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .model import Message, RowError

Form = Callable[[Sequence[Message]], list[Message]]


def plain(messages: Sequence[Message]) -> list[Message]:
    """Text as text, arguments of calls as objects."""
    return list(messages)


def json_arguments(messages: Sequence[Message]) -> list[Message]:
    """Arguments of calls as JSON, as OpenAI's API has them (DeepSeek)."""
    return [
        {**message, "tool_calls": [_with_json(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _with_json(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    written = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": written}}


def parts(messages: Sequence[Message]) -> list[Message]:
    """Text as a list of one part, as models want it that see images too."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def folded_system(messages: Sequence[Message]) -> list[Message]:
    """What the system says before what the user says first, for models without a system role (Gemma)."""
    said = list(messages)
    if len(said) < 2 or said[0]["role"] != "system" or said[1]["role"] != "user":
        return said
    first = {**said[1], "content": f"{said[0]['content']}\n\n{said[1]['content']}"}
    return [first, *said[2:]]


FORMS: dict[str, Form] = {
    "plain": plain,
    "arguments of tool calls as JSON": json_arguments,
    "text as parts": parts,
    "system text in the first user turn": folded_system,
}


def check(messages: Sequence[Message], trained: Sequence[int], written: str) -> None:
    """Raise RowError where a trained turn is not in what the template wrote of all of them."""
    if "{'type': 'text'" in written and not any("{'type'" in message["content"] for message in messages):
        raise RowError("the model's chat template writes text as Python")
    for index in trained:
        message = messages[index]
        # Reasoning that is part of the text is taken out of it by templates.
        text = message["content"].rpartition("</think>")[2].strip()
        if text not in written:
            raise RowError(f"the model's chat template leaves out what message {index + 1} says")
        for call in message.get("tool_calls", ()):
            function = call["function"]
            if function["name"] not in written:
                raise RowError(f"the model's chat template leaves out the tool calls of message {index + 1}")
            if function["arguments"] and repr(function["arguments"]) in written:
                raise RowError(
                    f"the model's chat template writes the tool calls of message {index + 1} as Python"
                )
