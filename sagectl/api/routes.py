"""What a route is, and how a request finds its own. The table of them all is `sagectl.api.table`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from aiohttp import web

from sagectl.api.connections import Connection
from sagectl.api.problems import Rejected
from sagectl.api.rights import Level
from sagectl.errors import UnknownRoute

if TYPE_CHECKING:
    from sagectl.api.service import Service

Shape = Literal["number", "integer", "boolean", "name"]


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter. Numbers are never negative; `maximum` bounds them above."""

    name: str
    shape: Shape
    help: str
    maximum: int | None = None
    place: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was found in order: its rights, its parameters, and its body where it has one.

    ref: the engine, its id or a group, from the path; "" where the route has none.
    query: what was given, in its own type.
    """

    service: Service
    request: web.BaseRequest
    ref: str
    query: Mapping[str, Any]
    body: Mapping[str, Any]

    @property
    def head(self) -> bool:
        """Only the answer's headers are wanted."""
        return self.request.method == "HEAD"

    async def begin(self, response: web.StreamResponse) -> None:
        """Send the headers of a stream. From here on, an error can only cut the connection."""
        connection = self.request.protocol
        assert isinstance(connection, Connection)
        connection.streaming = True
        await response.prepare(self.request)


Answer = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method on a path.

    path: `{id}` stands for an engine's name, its id or a group.
    answers: the schema of each success's body, by status; None for text.
    errors: statuses of problems beyond those that any request can meet.
    takes_body: the body is a definition.
    media: the type of a success's body; `events`: or else it is a stream of server-sent events.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    answer: Answer
    summary: str
    answers: Mapping[int, str | None]
    level: Level = Level.OPERATE
    params: Sequence[Param] = ()
    errors: Sequence[int] = ()
    takes_body: bool = False
    media: str = "application/json"
    events: bool = False
    segments: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.path.split("/")))

    def match(self, segments: Sequence[str]) -> str | None:
        """The engine in this path ("" where the route has none), or None: not this route's path."""
        if len(segments) != len(self.segments):
            return None
        ref = ""
        for own, given in zip(self.segments, segments, strict=True):
            if own == "{id}":
                ref = given
            elif own != given:
                return None
        return ref if ref or "{id}" not in self.segments else None


class Router:
    """Finds routes; a path that is spelled out goes before one with an `{id}`."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = sorted(routes, key=lambda route: "{id}" in route.segments)
        self._exact: dict[tuple[str, str], Route] = {
            (route.method, route.path): route for route in routes if "{id}" not in route.segments
        }

    def find(self, method: str, raw_path: str) -> tuple[Route, str]:
        """The route and the engine in the path. Raises UnknownRoute, Rejected (405)."""
        wanted = "GET" if method == "HEAD" else method
        exact = self._exact.get((wanted, raw_path))
        if exact is not None:
            return exact, ""
        segments = [unquote(segment) for segment in raw_path.split("/")]
        matches = [(route, ref) for route in self.routes if (ref := route.match(segments)) is not None]
        for route, ref in matches:
            if route.method == wanted:
                return route, ref
        if not matches:
            raise UnknownRoute(
                f"There is no path {shorten(raw_path)}", remedy="GET /openapi.json lists all that there are"
            )
        raise NotAllowed(method, raw_path, [route.method for route, _ in matches])


class NotAllowed(Rejected):
    """405. `allow` is the header's value."""

    def __init__(self, method: str, path: str, methods: Sequence[str]) -> None:
        with_head = {*methods, *(["HEAD"] if "GET" in methods else [])}
        self.allow = ", ".join(sorted(with_head))
        super().__init__(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"{shorten(path)} does not take {shorten(method)}",
            remedy=f"It takes {self.allow}",
        )


def shorten(text: str, longest: int = 80) -> str:
    """Somebody else's text as part of a sentence: printable, and not too long."""
    clean = text if text.isprintable() else ascii(text)[1:-1]
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
