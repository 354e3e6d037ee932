"""One request to an engine: asked once, and not again, whatever comes of it."""

from __future__ import annotations

import asyncio

from sagectl.plugin import HttpProbe
from sagectl.system.http_probe import Answer, Trouble, Wire, judge, request_bytes, resolve
from sagectl.system.probes import Target

USUAL = 60.0
"""Seconds for an answer, where the request says nothing of it."""


async def call(target: Target, request: HttpProbe) -> str | None:
    """Why it was not answered as described, None where it was."""
    question = f"{request.method} {request.path}"
    if target.port is None:
        return f"{question}: the engine does not listen"
    answered: asyncio.Future[Answer | Trouble] = asyncio.get_running_loop().create_future()
    limit = USUAL if request.timeout is None else request.timeout

    def done(result: Answer | Trouble) -> None:
        if not answered.done():
            answered.set_result(result)

    try:
        wire = Wire(resolve(target.host, target.port), done)
    except (OSError, UnicodeError) as error:
        return f"the host {target.host!r} cannot be resolved ({error})"
    try:
        wire.ask(request.method, request_bytes(request, target.host, target.port, target.env))
        async with asyncio.timeout(limit):
            result = await answered
    except TimeoutError:
        return f"{question}: no answer within {limit:g} s"
    finally:
        wire.close()
    return f"{question}: {result.text}" if isinstance(result, Trouble) else judge(request, result)
