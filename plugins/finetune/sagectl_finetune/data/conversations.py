"""Check the messages of a conversation, and bring other forms into OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .model import Message, RowError

ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    "developer": "system",
    "function": "tool",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
REASONING = ("reasoning_content", "reasoning", "thinking")
KEPT = ("name", "tool_call_id", *REASONING)


def messages(given: Any, key: str = "messages") -> tuple[list[Message], tuple[int, ...]]:
    """OpenAI messages, checked, and which of them are to be trained on (`weight: 0` is not).

    What comes after the last of those is left out. Raises RowError.
    """
    given = unpacked(given, key)
    if not isinstance(given, list):
        raise RowError(f'"{key}" is {kind(given)}, not a list')
    checked = [_message(message, f"message {number}") for number, message in enumerate(given, 1)]
    trained = tuple(
        index
        for index, message in enumerate(checked)
        if message["role"] == "assistant" and given[index].get("weight", 1) != 0
    )
    if not trained:
        weightless = any(message["role"] == "assistant" for message in checked)
        raise RowError("every assistant turn has weight 0" if weightless else "has no assistant turn")
    return checked[: trained[-1] + 1], trained


def sharegpt(given: Any, key: str = "conversations") -> tuple[list[Message], tuple[int, ...]]:
    """Messages from turns with `from` and `value`. Raises RowError."""
    given = unpacked(given, key)
    if not isinstance(given, list):
        raise RowError(f'"{key}" is {kind(given)}, not a list')
    return messages([_turn(turn, f"turn {number}") for number, turn in enumerate(given, 1)], key)


def _turn(turn: Any, where: str) -> Any:
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is {kind(turn)}, not an object")
    if "role" in turn and "from" not in turn:
        raise RowError(f'{where} has "role", as OpenAI messages have, among turns with "from"')
    if "from" not in turn:
        raise RowError(f'{where} has no "from"')
    weight = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
    if turn["from"] == "function_call":
        call = unpacked(turn.get("value"), f"{where}: the call")
        calls = call if isinstance(call, list) else [call]
        return {"role": "assistant", "tool_calls": calls, **weight}
    return {"role": turn["from"], "content": turn.get("value"), **weight}


def tools(given: Any) -> list[Mapping[str, Any]]:
    """Tools in OpenAI's form, from a list or its JSON. Raises RowError."""
    given = unpacked(given, "tools") if given else []
    if not isinstance(given, list):
        raise RowError(f'"tools" is {kind(given)}, not a list')
    return [_tool(tool, f"tool {number}") for number, tool in enumerate(given, 1)]


def _tool(tool: Any, where: str) -> Mapping[str, Any]:
    return {"type": "function", "function": without_nulls(_function(tool, where))}


def _function(given: Any, where: str) -> Mapping[str, Any]:
    """The function that a tool or a call names, with OpenAI's wrapping or without."""
    if not isinstance(given, Mapping):
        raise RowError(f"{where} is {kind(given)}, not an object")
    function = given.get("function", given)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where} has no name of a function")
    return function


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise RowError(f"{where} is {kind(message)}, not an object")
    if "from" in message and "role" not in message:
        raise RowError(f'{where} has "from", as ShareGPT turns have, among messages with "role"')
    role = message.get("role")
    known = ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        given = f"the unknown role {json.dumps(role)}" if "role" in message else "no role"
        raise RowError(f"{where} has {given}; roles are system, user, assistant and tool")
    calls = _calls(message, where)
    kept = {name: message[name] for name in KEPT if message.get(name) is not None}
    for name, value in kept.items():
        text(value, f'{where}: "{name}"')
    content = _content(message, where, optional=bool(calls))
    if known == "assistant" and not calls and not content.strip():
        raise RowError(f"{where}: the assistant's text is empty")
    if calls and known != "assistant":
        raise RowError(f"{where} is the {known}'s and calls tools")
    return {"role": known, "content": content, **({"tool_calls": calls} if calls else {}), **kept}


def _content(message: Message, where: str, optional: bool) -> str:
    content = message.get("content")
    if content is None and optional:
        return ""
    if content is None:
        raise RowError(f"{where}: the text is null" if "content" in message else f"{where} has no content")
    if isinstance(content, list):
        return "".join(_part(part, where) for part in content)
    return text(content, f"{where}: the content")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return text(part, where)
    given = part.get("type") if isinstance(part, Mapping) else None
    if given not in ("text", None) or not isinstance(part, Mapping):
        raise RowError(f"{where} holds {given or kind(part)}; only text is trained on")
    return text(part.get("text"), f"{where}: the text of a part")


def _calls(message: Message, where: str) -> list[Mapping[str, Any]]:
    given = message.get("tool_calls")
    if given is None and message.get("function_call") is not None:
        given = [message["function_call"]]
    if given is None:
        return []
    if not isinstance(given, list):
        raise RowError(f'{where}: "tool_calls" is {kind(given)}, not a list')
    return [_call(call, f"{where}: call {number}") for number, call in enumerate(given, 1)]


def _call(call: Any, where: str) -> Mapping[str, Any]:
    """Arguments become an object: templates write it as JSON, and would write JSON as a string in JSON."""
    function = _function(call, where)
    arguments = unpacked(function.get("arguments") or {}, f"{where}: the arguments")
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where}: the arguments are {kind(arguments)}, not an object")
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    written = {"name": function["name"], "arguments": without_nulls(arguments)}
    return {**named, "type": "function", "function": written}


# --- values ------------------------------------------------------------------------------------


def text(value: Any, what: str) -> str:
    """The value, if it is text that can be written as UTF-8. Raises RowError."""
    if not isinstance(value, str):
        raise RowError(f"{what} is {kind(value)}, not text" if value is not None else f"{what} is null")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(f"{what} is not UTF-8: it holds broken bytes or half a character") from None
    return value


def kind(value: Any) -> str:
    """What a JSON value is, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, Sequence) else "an object"


def unpacked(value: Any, what: str) -> Any:
    """A list or an object that was written as text, as a cell of a CSV holds it. Raises RowError."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        raise RowError(f"{what}: is text, and not JSON") from None


def without_nulls(value: Any) -> Any:
    """Parquet gives every object the keys of all, null where they are absent."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
