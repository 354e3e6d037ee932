"""openapi.json, made from the same routes that answer."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from sagectl import __version__
from sagectl.api.problems import CONTENT_TYPE
from sagectl.api.rights import Level
from sagectl.api.routes import Param, Route
from sagectl.api.schemas import SCHEMAS

_SHAPES: dict[str, dict[str, Any]] = {
    "number": {"type": "number", "minimum": 0},
    "integer": {"type": "integer", "minimum": 0},
    "boolean": {"anyOf": [{"type": "boolean"}, {"enum": [0, 1, "yes", "no", "on", "off"]}]},
    "name": {"type": "string"},
}
_LEVELS = {
    Level.NOTHING: "Anyone who can open the socket.",
    Level.OPERATE: "Root, the daemon's own user, and members of `[daemon] group`.",
    Level.DEFINE: "Root and the daemon's own user.",
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 description of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sagectl control API",
            "version": __version__,
            "summary": "Engines on one machine: what runs, and what shall",
            "description": "HTTP over a Unix socket; the kernel says who asks. Errors are RFC 9457 problems.",
        },
        "servers": [{"url": "http://localhost", "description": "over the daemon's Unix socket"}],
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "description": _LEVELS[route.level],
        "responses": {str(status): _success(route, status) for status in route.answers},
    }
    parameters = [_parameter(param) for param in route.params]
    if "{id}" in route.segments:
        parameters.insert(0, _path_parameter())
    if parameters:
        operation["parameters"] = parameters
    if route.takes_body:
        content = {"application/json": {"schema": _ref("NewDefinition")}}
        operation["requestBody"] = {"required": True, "content": content}
    for status in _problems(route):
        operation["responses"][str(status)] = _problem(status)
    operation["responses"]["default"] = {"description": "Any other problem", "content": _problem_content()}
    return operation


def _operation_id(route: Route) -> str:
    words = [word.strip("{}") for word in route.segments if word and word not in ("v1", "management")]
    return "_".join([route.method.lower(), *words]).replace("-", "_").replace(".", "_")


def _problems(route: Route) -> list[int]:
    found = {*route.errors, 400}
    if route.level > Level.NOTHING:
        found.add(403)
    if "{id}" in route.segments or any(param.shape == "name" for param in route.params):
        found.add(404)
    if route.takes_body:
        found |= {408, 413, 415, 422}
    return sorted(found)


def _success(route: Route, status: int) -> dict[str, Any]:
    phrase = HTTPStatus(status).phrase
    schema = route.answers[status]
    shape = {"type": "string"} if schema is None else _ref(schema)
    content = {route.media: {"schema": shape}}
    if route.events:
        content["text/event-stream"] = {}
    answer: dict[str, Any] = {"description": phrase, "content": content}
    if status == HTTPStatus.CREATED:
        answer["headers"] = {
            "Location": {"schema": {"type": "string"}, "description": "the new engine's path"}
        }
    return answer


def _problem(status: int) -> dict[str, Any]:
    return {"description": HTTPStatus(status).phrase, "content": _problem_content()}


def _problem_content() -> dict[str, Any]:
    return {CONTENT_TYPE: {"schema": _ref("Problem")}}


def _parameter(param: Param) -> dict[str, Any]:
    schema = dict(_SHAPES[param.shape])
    if param.maximum is not None:
        schema["maximum"] = param.maximum
    return {"name": param.name, "in": param.place, "description": param.help, "schema": schema}


def _path_parameter() -> dict[str, Any]:
    return {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "an engine's name or id, or the name of a group",
        "schema": {"type": "string"},
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
