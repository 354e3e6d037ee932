"""What a request says, checked: its parameters and its body."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import web

from sagectl.api.limits import Limits
from sagectl.api.problems import Rejected
from sagectl.api.routes import Param, shorten
from sagectl.errors import MalformedRequest, UnknownEngine

_REF = re.compile(r"[a-z0-9][a-z0-9_@-]{0,99}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")
"""As programs write floats, too: 12.300000000000001, 1e-05."""
_INTEGER = re.compile(r"[0-9]{1,18}")
_DEEPEST = 32
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def check_ref(ref: str) -> str:
    """A name, an id or a group as it may be. Raises UnknownEngine: nothing else can be an engine's name."""
    if not _REF.fullmatch(ref):
        raise UnknownEngine(
            f'No engine is called "{shorten(ref)}"', remedy="Names consist of a-z, 0-9, -, _ and @"
        )
    return ref


def read_query(request: web.BaseRequest, params: Sequence[Param]) -> dict[str, Any]:
    """The query's parameters in their own types. Raises MalformedRequest for any other."""
    known = {param.name: param for param in params if param.place == "query"}
    found: dict[str, Any] = {}
    if not request.query_string:
        return found
    for name, text in request.query.items():
        param = known.get(name)
        if param is None:
            takes = f"It takes {', '.join(known)}" if known else "It takes none here"
            raise MalformedRequest(f'There is no parameter "{shorten(name)}"', remedy=takes)
        if name in found:
            raise MalformedRequest(f"The parameter {name} stands there twice", remedy="Give it once")
        found[name] = _value(param, text)
    return found


def _value(param: Param, text: str) -> Any:
    wanted = {
        "number": "seconds, such as 30 or 0.5",
        "integer": "a whole number, such as 100",
        "boolean": "1 or 0",
        "name": "an engine's name",
    }[param.shape]
    value: Any = None
    if param.shape == "number" and _NUMBER.fullmatch(text):
        value = float(text)
    elif param.shape == "integer" and _INTEGER.fullmatch(text):
        value = int(text)
    elif param.shape == "boolean" and text.lower() in _TRUE | _FALSE:
        value = text.lower() in _TRUE
    elif param.shape == "name":
        value = check_ref(text)
    if value is None:
        raise MalformedRequest(
            f'The parameter {param.name} cannot be "{shorten(text)}"', remedy=f"Give {wanted}"
        )
    if param.maximum is not None and value > param.maximum:
        raise MalformedRequest(
            f"The parameter {param.name} cannot be {shorten(text)}", remedy=f"Give at most {param.maximum}"
        )
    return value


async def no_body(request: web.BaseRequest, limits: Limits) -> dict[str, Any]:
    """Nothing, or an empty object, which many clients send with each POST.

    Raises MalformedRequest for any other body: what it asks for would not happen.
    """
    if request.body_exists and (await _read(request, limits)).strip() not in (b"", b"{}"):
        raise MalformedRequest(
            f"{request.method} {shorten(request.path)} takes no body",
            remedy="Give parameters in the query, such as ?wait=30",
        )
    return {}


async def read_definition(request: web.BaseRequest, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object. Raises MalformedRequest and Rejected (408, 413, 415)."""
    _check_headers(request, limits)
    return parse_object(await _read(request, limits))


async def _read(request: web.BaseRequest, limits: Limits) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # what follows is the first of the answer itself
    try:
        async with asyncio.timeout(limits.body_time):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limits) from None
    except TimeoutError:
        raise Rejected(
            HTTPStatus.REQUEST_TIMEOUT, "The request's body did not arrive in time", remedy="Send it at once"
        ) from None
    except web.RequestPayloadError as error:
        raise MalformedRequest(f"The request's body is broken: {shorten(str(error))}") from None


def _check_headers(request: web.BaseRequest, limits: Limits) -> None:
    if "Content-Encoding" in request.headers:
        raise Rejected(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is compressed", remedy="Send it as it is")
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        given = f"of the type {shorten(kind)}" if kind else "of no type"
        raise Rejected(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The body is {given}, not application/json",
            remedy="Send the header `Content-Type: application/json` (`curl --json` does)",
        )
    if (request.content_length or 0) > limits.body_size:
        raise _too_large(limits)


def _too_large(limits: Limits) -> Rejected:
    return Rejected(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The body is larger than {limits.body_size} bytes",
        remedy="A definition is a few lines; put data into files and name them",
    )


def parse_object(raw: bytes) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no key twice, no NaN, no NUL (which programs cannot be given)."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        texts = _texts(value)
        texts.encode("utf-8")  # refuses lone surrogates, which JSON can spell
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise MalformedRequest(f"The body is not UTF-8 ({error.reason})", remedy="Send it in UTF-8") from None
    except RecursionError:
        raise MalformedRequest("The body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise MalformedRequest(
            f"The body is not JSON: {error.msg} in line {error.lineno}, column {error.colno}",
            remedy='Send an object such as {"name": "chat", "kind": "llm", "model": "…"}',
        ) from None
    except ValueError as error:
        raise MalformedRequest(f"The body is not JSON: {shorten(str(error), 200)}") from None
    if not isinstance(value, dict):
        raise MalformedRequest(
            "The body is JSON, but not an object", remedy='Send {"name": …, "kind": …} with the TOML\'s keys'
        )
    if "\0" in texts:
        raise MalformedRequest("The body has a NUL character in a text", remedy="Leave it out")
    return value


def _texts(value: Any, depth: int = 0) -> str:
    """Every text in the value, keys included, in one. Raises RecursionError long before Python does."""
    if depth > _DEEPEST:
        raise RecursionError
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "".join(_texts(part, depth + 1) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return "".join(_texts(part, depth + 1) for part in value)
    return ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{shorten(twice)}" stands there twice')
    return found


def _no_constant(word: str) -> float:
    if math.isfinite(float(word)):
        return float(word)
    raise ValueError(f"{word} is not a number in JSON")
