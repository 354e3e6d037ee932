"""The routes about engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from sagectl.api import views
from sagectl.api.reply import reply
from sagectl.api.routes import Answer, Call
from sagectl.core.engine import Engine
from sagectl.errors import Conflict, UnknownEngine

_POINTS = 500
"""Steps of a job's past that are shown where the request does not say how many."""

Change = Callable[[Call, Engine], None]


def one(call: Call) -> Engine:
    """The one engine that this request is about. Raises Conflict for a group of several."""
    found = call.service.control.resolve(call.ref)
    if len(found) > 1:
        names = ", ".join(engine.name for engine in found)
        raise Conflict(f"{call.ref} is a group of {len(found)} engines", remedy=f"Name one: {names}")
    return found[0]


async def list_engines(call: Call) -> web.StreamResponse:
    """GET engines."""
    control = call.service.control
    port = call.query.get("port")
    engines = control.engines() if port is None else [control.by_port(port)]
    return reply({"engines": await call.service.engines_json(engines)})


async def show(call: Call) -> web.StreamResponse:
    """GET engines/{id}: the engine, or a group's engines."""
    found = call.service.control.resolve(call.ref)
    if len(found) == 1:
        return reply(await call.service.engine_json(found[0]))
    return reply({"group": call.ref, "engines": await call.service.engines_json(found)})


async def define(call: Call) -> web.StreamResponse:
    """POST engines."""
    # Shielded: a client that leaves must not stop it half-way.
    engine = await asyncio.shield(asyncio.ensure_future(call.service.control.define(call.body)))
    path = f"/v1/management/engines/{engine.id}"
    return reply(await call.service.engine_json(engine), HTTPStatus.CREATED, Location=path)


def acting(change: Change) -> Answer:
    """POST engines/{id}/VERB for a change that takes time: 202, or 200 after `wait`."""

    async def answer(call: Call) -> web.StreamResponse:
        wait = call.query.get("wait")
        if wait is None:
            return await _changed(call, change, HTTPStatus.ACCEPTED)
        with call.service.long_request():
            engines = call.service.control.resolve(call.ref)
            for engine in engines:
                change(call, engine)
            settled = await asyncio.gather(*(_settled(call, engine, wait) for engine in engines))
            return reply({"engines": await call.service.engines_json(settled)})

    return answer


def changing(change: Change) -> Answer:
    """POST engines/{id}/VERB for a change that is done at once."""

    async def answer(call: Call) -> web.StreamResponse:
        return await _changed(call, change, HTTPStatus.OK)

    return answer


async def _changed(call: Call, change: Change, status: HTTPStatus) -> web.StreamResponse:
    engines = call.service.control.resolve(call.ref)
    for engine in engines:
        change(call, engine)
    now = [call.service.current(engine) for engine in engines]
    return reply({"engines": await call.service.engines_json(now)}, status)


async def _settled(call: Call, engine: Engine, wait: float) -> Engine:
    try:
        return await call.service.control.settled(engine.id, wait)
    except UnknownEngine:  # removed meanwhile
        return engine


def start(call: Call, engine: Engine) -> None:
    """`start`."""
    call.service.control.start(engine, again=call.query.get("again", False))


def stop(call: Call, engine: Engine) -> None:
    """`stop`, and DELETE."""
    call.service.control.stop(engine, drain=call.query.get("drain"))


def restart(call: Call, engine: Engine) -> None:
    """`restart`."""
    call.service.control.restart(engine)


def reset_failed(call: Call, engine: Engine) -> None:
    """`reset-failed`."""
    call.service.control.reset_failed(engine)


def unload(call: Call, engine: Engine) -> None:
    """`engine unload`."""
    call.service.control.unload(engine, call.query.get("model"))


def enable(call: Call, engine: Engine) -> None:
    """`enable`."""
    call.service.control.set_autostart(engine, True)


def disable(call: Call, engine: Engine) -> None:
    """`disable`."""
    call.service.control.set_autostart(engine, False)


def forget(call: Call, engine: Engine) -> None:
    """`engine prune`."""
    call.service.control.forget(engine)


async def history(call: Call) -> web.StreamResponse:
    """GET engines/{id}/history."""
    engine = one(call)
    found = await call.service.control.history(engine, call.query.get("points", _POINTS))
    steps = [views.point_json(point) for point in found]
    return reply({"engine_id": engine.id, "name": engine.name, "history": steps})


async def explain(call: Call) -> web.StreamResponse:
    """GET engines/{id}/explain."""
    return reply(call.service.control.explain(one(call)))


async def definition(call: Call) -> web.StreamResponse:
    """GET engines/{id}/definition."""
    return reply(call.service.control.definition(one(call)))
