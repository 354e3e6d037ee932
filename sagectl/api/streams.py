"""The routes that may go on for as long as the client listens: events, logs and progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, cast

from aiohttp import web

from sagectl.api import views
from sagectl.api.engines import one
from sagectl.api.reply import encode, reply
from sagectl.api.routes import Call, shorten
from sagectl.core.engine import Engine
from sagectl.daemon import following
from sagectl.errors import MalformedRequest
from sagectl.system import logfiles
from sagectl.system.journal import Journal, Lost, Subscription

_EVENTS = 100
"""Events shown where the request does not say how many."""
_ALL_LINES = 1 << 62
_EVENT_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
_LOG_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}


async def events(call: Call) -> web.StreamResponse:
    """GET events: a list, or with `follow` server-sent events."""
    journal = call.service.control.journal
    engine, after = _journal_name(call), _last_event_id(call.request)
    if not call.query.get("follow", False):
        entries = journal.tail(call.query.get("tail", _EVENTS), engine)
        return reply({"events": [views.event_json(entry) for entry in entries]})
    response = web.StreamResponse(headers=_EVENT_HEADERS)
    if call.head:
        return response
    with call.service.long_request():
        await call.begin(response)
        await _send_events(call, response, journal, engine, after)
    return response


def _journal_name(call: Call) -> str | None:
    """The journal knows engines by name; the request may say an id. Past engines have events, too."""
    asked: str | None = call.query.get("engine")
    known = (e.name for e in call.service.control.engines() if asked is not None and asked in (e.id, e.name))
    return next(known, asked)


def _last_event_id(request: web.BaseRequest) -> int | None:
    text = request.headers.get("Last-Event-ID", "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise MalformedRequest(
            f'The header Last-Event-ID cannot be "{shorten(text)}"', remedy="Give the `id` of an event"
        )
    return int(text)


async def _send_events(
    call: Call, response: web.StreamResponse, journal: Journal, engine: str | None, after: int | None
) -> None:
    past = [] if after is not None else journal.tail(call.query.get("tail", 0), engine)
    # An id without an event: whoever loses this stream before the first event knows where to go on.
    position = journal.last_id if after is None else after
    blocks = [b"retry: 1000\nid: %d\n\n" % position, *(_block(views.event_json(entry)) for entry in past)]
    if past:
        blocks.append(b"id: %d\n\n" % position)
    with journal.subscribe(position, engine) as subscription:
        await response.write(b"".join(blocks))
        await _send(call, response, _event_blocks(subscription))


async def _event_blocks(subscription: Subscription) -> AsyncGenerator[bytes, None]:
    async for entry in subscription:
        yield _block(views.lost_json(entry.count) if isinstance(entry, Lost) else views.event_json(entry))


async def _send(call: Call, response: web.StreamResponse, blocks: AsyncGenerator[bytes, None]) -> None:
    """Write what comes, and a comment where nothing does for long."""
    async with aclosing(blocks), aclosing(_with_heartbeat(blocks, call.service.limits.heartbeat)) as feed:
        with suppress(ConnectionResetError):  # the client left, which the server may hear of only later
            async for block in feed:
                await response.write(block)


async def _with_heartbeat(
    blocks: AsyncGenerator[bytes, None], interval: float
) -> AsyncGenerator[bytes, None]:
    upcoming = asyncio.ensure_future(anext(blocks))
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=interval)
            if not upcoming.done():
                yield b": still here\n\n"
                continue
            try:
                block = upcoming.result()
            except StopAsyncIteration:
                return
            yield block
            upcoming = asyncio.ensure_future(anext(blocks))
    finally:
        upcoming.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            await upcoming


async def progress(call: Call) -> web.StreamResponse:
    """GET engines/{id}/progress: as it is, or with `follow` server-sent events until the job is down."""
    engine = one(call)
    control = call.service.control
    if not call.query.get("follow", False):
        return reply(views.progress_json(engine, await control.progress(engine)))
    response = web.StreamResponse(headers=_EVENT_HEADERS)
    if call.head:
        return response
    with call.service.long_request():
        await call.begin(response)
        await _send(call, response, _progress_blocks(following.follow(control, engine)))
    return response


async def _progress_blocks(
    told: AsyncGenerator[tuple[Engine, Mapping[str, Any] | None], None],
) -> AsyncGenerator[bytes, None]:
    async with aclosing(told):
        async for engine, found in told:
            yield b"event: progress\ndata: " + encode(views.progress_json(engine, found)) + b"\n"
    yield b"event: end\ndata: {}\n\n"


def _block(event: dict[str, object]) -> bytes:
    number = b"id: %d\n" % event["id"] if isinstance(event["id"], int) else b""
    return number + f"event: {event['kind']}\ndata: ".encode() + encode(event) + b"\n"


async def logs(call: Call) -> web.StreamResponse:
    """GET engines/{id}/logs: bytes as the engine wrote them, across rotations."""
    path = call.service.control.log_path(one(call))
    tail = call.query.get("tail")
    if not call.query.get("follow", False):
        with call.service.long_request():
            text = await asyncio.to_thread(logfiles.tail, path, _ALL_LINES if tail is None else tail)
        return web.Response(body=text, headers=_LOG_HEADERS)
    response = web.StreamResponse(headers=_LOG_HEADERS)
    if call.head:
        return response
    with call.service.long_request():
        await call.begin(response)
        pieces = cast(AsyncGenerator[bytes, None], logfiles.follow(path, tail))
        async with aclosing(pieces) as feed:
            async for piece in feed:
                await response.write(piece)
    return response
