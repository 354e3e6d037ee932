"""The HTTP side: routes, errors in OpenAI's shape, and what is counted."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from aiohttp import web

from . import protocol
from .metrics import Metrics
from .protocol import Asked, Refused, Rules
from .scheduler import Model, Scheduler

log = logging.getLogger("sagectl.embedding")

MAX_BODY = 32 << 20
"""Bytes of a request's body."""
BODY_TIMEOUT = 60.0
"""Seconds for a body to arrive."""
LARGE = 16
"""Answers with more embeddings are written by another thread, so that they hold nobody up."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Embedder(Model, Protocol):
    """A loaded model."""

    def tokenize(self, texts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        """Token ids with special tokens."""
        ...


class Service:
    """The server's state: loading, serving, draining."""

    def __init__(self, name: str, scheduler: Scheduler, metrics: Metrics) -> None:
        self.name = name
        self.metrics = metrics
        self.draining = False
        self._scheduler = scheduler
        self._created = int(time.time())
        self._embedder: Embedder | None = None
        self._rules: Rules | None = None
        self._in_flight = 0
        # One thread each: a tokenizer must not be used by two at once, and answers are all Python.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizer")
        self._writing = ThreadPoolExecutor(1, "writer")
        metrics.gauge("requests_in_flight", "Requests that are not answered yet.", lambda: self._in_flight)
        metrics.gauge("model_loaded", "1 when the model is loaded.", lambda: int(self._rules is not None))

    def loaded(self, embedder: Embedder, rules: Rules) -> None:
        """From now on requests are served."""
        self._embedder, self._rules = embedder, rules

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_BODY)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        app.router.add_post("/v1/embeddings", self._embeddings)
        return app

    # --- Routes ---

    async def _health(self, request: web.Request) -> web.Response:
        trouble = self._scheduler.trouble
        if self.draining:
            state = "draining"
        elif self._rules is None:
            state = "loading"
        else:
            state = "ok" if trouble is None else "failing"
        body = {"status": state} | ({"reason": trouble} if state == "failing" else {})
        return web.json_response(body, status=200 if state == "ok" else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics.text(), content_type="text/plain", charset="utf-8")

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._card()]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name != self.name:
            raise Refused(
                404, f"The model {name!r} does not exist here.", param="model", code="model_not_found"
            )
        return web.json_response(self._card())

    def _card(self) -> dict[str, Any]:
        limit = None if self._rules is None else self._rules.max_tokens
        card = {"id": self.name, "object": "model", "created": self._created, "owned_by": "sagectl"}
        return card | ({} if limit is None else {"max_model_len": limit})

    async def _embeddings(self, request: web.Request) -> web.Response:
        if self.draining:
            raise Refused(503, "This engine is stopping.", code="draining", retry_after=5)
        embedder, rules = self._embedder, self._rules
        if embedder is None or rules is None:
            raise Refused(503, "The model is still being loaded.", code="loading", retry_after=5)
        asked = protocol.parse(await _body(request), rules)
        with self._scheduler.admit(asked.count):
            inputs = await self._tokens(asked, embedder, rules)
            rows = await self._scheduler.embed(inputs, asked.dimensions)
            body = await self._write(rows, sum(map(len, inputs)), asked)
        return web.Response(body=body, content_type="application/json")

    async def _tokens(self, asked: Asked, embedder: Embedder, rules: Rules) -> list[Sequence[int]]:
        inputs: list[Sequence[int]]
        if asked.texts:
            loop = asyncio.get_running_loop()
            inputs = list(
                await loop.run_in_executor(
                    self._tokenizing, lambda: embedder.tokenize(asked.texts, truncate=rules.truncate)
                )
            )
        else:
            inputs = [ids[: rules.max_tokens] if rules.truncate else ids for ids in asked.tokens]
        protocol.check_lengths([len(one) for one in inputs], rules)
        return inputs

    async def _write(self, rows: list[bytes], tokens: int, asked: Asked) -> bytes:
        def write() -> bytes:
            return protocol.write(rows, self.name, tokens, as_base64=asked.base64)

        if len(rows) <= LARGE:
            return write()
        return await asyncio.get_running_loop().run_in_executor(self._writing, write)

    # --- Around all of them ---

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer errors in OpenAI's shape; count and time requests for embeddings."""
        began = time.monotonic()
        counted = request.path == "/v1/embeddings"
        self._in_flight += counted
        status = 499  # the client left
        try:
            try:
                response = await handler(request)
            except Refused as refused:
                response = _error(refused)
            except web.HTTPException as error:
                response = _error(_refused(request, error))
            except Exception:
                log.exception("%s %s failed", request.method, request.path)
                response = _error(Refused(500, "The server failed; its log says why."))
            status = response.status
            if self.draining:
                response.force_close()
            if isinstance(request.transport, asyncio.WriteTransport):
                # Then an answer is with the kernel when it counts as sent, and no exit can cut it.
                request.transport.set_write_buffer_limits(0)
            return response
        finally:
            if counted:
                self._in_flight -= 1
                with self.metrics.lock:
                    self.metrics.requests.add(value=str(status))
                    self.metrics.request_seconds.observe(time.monotonic() - began)


async def _body(request: web.Request) -> bytes:
    try:
        return await asyncio.wait_for(request.read(), BODY_TIMEOUT)
    except TimeoutError:
        raise Refused(408, f"The body did not arrive within {BODY_TIMEOUT:g} s.") from None


def _refused(request: web.Request, error: web.HTTPException) -> Refused:
    """aiohttp's own errors."""
    if error.status == 413:
        return Refused(413, f"The body is larger than {MAX_BODY >> 20} MiB.", code="request_too_large")
    if error.status == 404:
        return Refused(404, f"Unknown URL: {request.method} {request.path}.", code="unknown_url")
    return Refused(error.status, f"{request.method} {request.path}: {error.reason}.")


def _error(refused: Refused) -> web.Response:
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    return web.Response(
        status=refused.status,
        body=json.dumps(refused.body).encode(),
        content_type="application/json",
        headers=headers,
    )
