"""The routes about the daemon itself."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus

from aiohttp import web

from sagectl.api import metrics, views
from sagectl.api.reply import reply
from sagectl.api.routes import Call


async def status(call: Call) -> web.StreamResponse:
    """GET status."""
    service = call.service
    engines = await service.engines_json(service.control.engines())
    control = service.control
    return reply(
        {
            "control_plane": control.status(),
            "gpu": control.gpu(),
            "engines": engines,
            "reservations": control.reservations(),
        }
    )


async def gpu(call: Call) -> web.StreamResponse:
    """GET gpu."""
    return reply(call.service.control.gpu())


async def kinds(call: Call) -> web.StreamResponse:
    """GET kinds."""
    return reply({"kinds": call.service.control.kinds()})


async def reload(call: Call) -> web.StreamResponse:
    """POST reload."""
    work = call.service.control.reload(
        dry_run=call.query.get("dry_run", False), restart=call.query.get("restart", True)
    )
    # Shielded: a client that leaves must not stop it half-way.
    return reply(views.reload_json(await asyncio.shield(asyncio.ensure_future(work))))


async def shutdown(call: Call) -> web.StreamResponse:
    """POST shutdown."""
    call.service.control.shutdown()
    return reply({"stopping": True}, HTTPStatus.ACCEPTED)


async def reexec(call: Call) -> web.StreamResponse:
    """POST daemon-reexec."""
    await asyncio.shield(asyncio.ensure_future(call.service.control.reexec()))
    return reply({"reexecuting": True}, HTTPStatus.ACCEPTED)


async def healthz(call: Call) -> web.StreamResponse:
    """GET /healthz."""
    return reply({"status": "ok"})


async def openapi(call: Call) -> web.StreamResponse:
    """GET /openapi.json."""
    return web.Response(body=call.service.openapi, content_type="application/json")


async def prometheus(call: Call) -> web.StreamResponse:
    """GET /metrics."""
    text = metrics.collect(call.service, time.monotonic())
    return web.Response(text=text, headers={"Content-Type": metrics.CONTENT_TYPE})
