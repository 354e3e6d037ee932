"""Values as JSON answers. Whatever a plugin or a file put into them, what goes out is valid JSON."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from aiohttp import web


def encode(value: Any) -> bytes:
    """One line of JSON in ASCII, with its newline. NaN and infinities become null, objects their text."""
    try:
        text = json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(value), default=str)
    return text.encode("ascii") + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def reply(value: Any, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> web.Response:
    """An answer with this JSON."""
    return web.Response(
        status=status, body=encode(value), content_type="application/json", headers=headers or None
    )
