"""The routes about the daemon itself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from http import HTTPStatus

from aiohttp import web

from sagectl.api import views
from sagectl.api.reply import reply
from sagectl.api.routes import Call
from sagectl.core.engine import SUBSTATES, Engine

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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


async def metrics(call: Call) -> web.StreamResponse:
    """GET /metrics."""
    service = call.service
    now = time.monotonic()
    lines = [
        *_engine_metrics(service.control.engines(), now),
        *_family("sagectl_uptime_seconds", "gauge", "Seconds since the API began to answer."),
        f"sagectl_uptime_seconds {now - service.started:.3f}",
        *_family("sagectl_api_connections", "gauge", "Open connections to the API."),
        f"sagectl_api_connections {service.connections}",
        *_family("sagectl_api_requests_total", "counter", "Requests answered, by route and status."),
    ]
    for (method, path, code), count in sorted(service.answered.items()):
        labels = _labels(method=method, path=path, code=str(code))
        lines.append(f"sagectl_api_requests_total{labels} {count}")
    return web.Response(text="\n".join(lines) + "\n", headers={"Content-Type": _METRICS_TYPE})


def _engine_metrics(engines: Iterable[Engine], now: float) -> list[str]:
    counts = Counter((engine.state, engine.sub) for engine in engines)
    lines = _family("sagectl_engines", "gauge", "Engines by state.")
    for state, subs in SUBSTATES.items():
        for sub in sorted(subs):
            labels = _labels(state=state.value, substate=sub.value.removesuffix("-failed"))
            lines.append(f"sagectl_engines{labels} {counts[state, sub]}")
    up = _family("sagectl_engine_up", "gauge", "1 where the engine is up.")
    restarts = _family("sagectl_engine_restarts_total", "counter", "Automatic restarts.")
    uptime = _family("sagectl_engine_uptime_seconds", "gauge", "Seconds since the engine's process started.")
    for engine in engines:
        labels = _labels(engine=engine.name, kind=engine.spec.kind)
        up.append(f"sagectl_engine_up{labels} {int(engine.up)}")
        restarts.append(f"sagectl_engine_restarts_total{labels} {engine.restart_count}")
        if engine.process:
            uptime.append(f"sagectl_engine_uptime_seconds{labels} {now - engine.process.started:.3f}")
    return [*lines, *up, *restarts, *uptime]


def _family(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def _labels(**labels: str) -> str:
    escaped = (
        f'{name}="{value}"'
        for name, text in labels.items()
        for value in [text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")]
    )
    return "{" + ",".join(escaped) + "}"
