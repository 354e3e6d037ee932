"""How errors become HTTP: status, title and `application/problem+json` (RFC 9457), for all of the API."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from sagectl import errors
from sagectl.api.reply import encode

CONTENT_TYPE = "application/problem+json"

STATUS: Mapping[type[errors.SagectlError], HTTPStatus] = {
    errors.MalformedRequest: HTTPStatus.BAD_REQUEST,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.UnknownEngine: HTTPStatus.NOT_FOUND,
    errors.UnknownRoute: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.InvalidConfig: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unplaceable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unkept: HTTPStatus.INSUFFICIENT_STORAGE,
}

_TITLES: Mapping[str, str] = {
    "malformed": "The request is malformed",
    "forbidden": "Not allowed",
    "unknown_engine": "No such engine",
    "unknown_route": "No such path",
    "conflict": "Does not fit the engine's state",
    "invalid": "Invalid definition",
    "unplaceable": "Can never run on this machine",
    "unkept": "It would be forgotten",
}


class Rejected(errors.SagectlError):
    """A request that HTTP itself has a status for; `code` is that status in words."""

    def __init__(self, status: HTTPStatus, detail: str, *, remedy: str = "") -> None:
        super().__init__(detail, remedy=remedy)
        self.status = status
        self.code = status.name.lower()


def status_of(error: errors.SagectlError) -> HTTPStatus:
    """The HTTP status of this error."""
    if isinstance(error, Rejected):
        return error.status
    return STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)


def document(error: errors.SagectlError) -> dict[str, Any]:
    """The problem document: RFC 9457's members, `code`, `remedy` and the facts behind it."""
    status = status_of(error)
    problem = {
        **error.facts,
        "type": f"urn:sagectl:problem:{error.code}",
        "title": _TITLES.get(error.code, status.phrase),
        "status": status.value,
        "detail": error.detail,
        "code": error.code,
    }
    if error.remedy:
        problem["remedy"] = error.remedy
    if isinstance(error, errors.InvalidConfig):
        problem["errors"] = [_entry(p) for p in error.problems if p.severity == "error"]
    return problem


def _entry(problem: errors.Problem) -> dict[str, Any]:
    return {
        "key": problem.key,
        "message": problem.message,
        "remedy": problem.remedy,
        "file": problem.file,
        "line": problem.line,
    }


def response(error: errors.SagectlError) -> web.Response:
    """The answer to a request that ended with this error."""
    return web.Response(status=status_of(error), body=encode(document(error)), content_type=CONTENT_TYPE)
