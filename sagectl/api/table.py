"""Every route of the API. What stands here answers, and stands in openapi.json."""

from __future__ import annotations

from sagectl.api import engines, plane, streams
from sagectl.api.rights import Level
from sagectl.api.routes import Answer, Param, Route

_API = "/v1/management"
_ENGINES = f"{_API}/engines"
_ENGINE = f"{_ENGINES}/{{id}}"

_WAIT = Param("wait", "number", "seconds to wait, at most, for it to be so", 86400)
_DRAIN = Param("drain", "number", "seconds that requests in flight may take, instead of its own", 86400)
_AGAIN = Param("again", "boolean", "run a completed job anew")
_MODEL = Param("model", "name", "only the model of this name; default: all that it took in")
_PORT = Param("port", "integer", "only the engine that holds this port", 65535)
_FOLLOW = Param("follow", "boolean", "go on with what comes")
_LINES = Param("tail", "integer", "only the last lines, this many", 1_000_000)
_EVENTS = Param("tail", "integer", "the newest events, this many", 10_000)
_OF_ENGINE = Param("engine", "name", "only of this engine")
_POINTS = Param("points", "integer", "so many steps at most, spread over all of them", 10_000)
_LAST_EVENT = Param("Last-Event-ID", "integer", "go on after this event", 10**18 - 1, place="header")
_DRY_RUN = Param("dry_run", "boolean", "only say what would change")
_RESTART = Param("restart", "boolean", "0: mark engines as needing a restart instead of restarting them")


def _verb(
    verb: str,
    answer: Answer,
    summary: str,
    *params: Param,
    level: Level = Level.OPERATE,
    errors: tuple[int, ...] = (),
) -> Route:
    answers = {200: "Engines", 202: "Engines"} if _WAIT in params else {200: "Engines"}
    return Route(
        "POST", f"{_ENGINE}/{verb}", answer, summary, answers, level=level, params=params, errors=errors
    )


def _define(path: str, summary: str) -> Route:
    return Route(
        "POST",
        path,
        engines.define,
        summary,
        {201: "Engine"},
        level=Level.DEFINE,
        takes_body=True,
        errors=(409, 503, 507),
    )


ROUTES = (
    Route("GET", "/healthz", plane.healthz, "Is the daemon alive?", {200: "Health"}, level=Level.NOTHING),
    Route("GET", "/metrics", plane.prometheus, "Figures for Prometheus", {200: None}, media="text/plain"),
    Route("GET", "/openapi.json", plane.openapi, "This document", {200: "OpenApi"}),
    Route("GET", f"{_API}/status", plane.status, "The daemon, its engines and the GPUs", {200: "Status"}),
    Route("GET", f"{_API}/gpu", plane.gpu, "The GPUs, and who holds what of them", {200: "Gpu"}),
    Route("GET", f"{_API}/kinds", plane.kinds, "Engine kinds and broken plugins", {200: "Kinds"}),
    Route(
        "GET",
        f"{_API}/events",
        streams.events,
        "What happened",
        {200: "Events"},
        params=(_EVENTS, _OF_ENGINE, _FOLLOW, _LAST_EVENT),
        errors=(503,),
        events=True,
    ),
    Route(
        "POST",
        f"{_API}/reload",
        plane.reload,
        "Read the configuration again and apply what changed",
        {200: "ReloadPlan"},
        level=Level.DEFINE,
        params=(_DRY_RUN, _RESTART),
        errors=(409, 422),
    ),
    Route(
        "POST",
        f"{_API}/shutdown",
        plane.shutdown,
        "Stop every engine, then the daemon",
        {202: "Stopping"},
        level=Level.DEFINE,
    ),
    Route(
        "POST",
        f"{_API}/daemon-reexec",
        plane.reexec,
        "Go on with the sagectl that is installed now; engines keep running",
        {202: "Reexecuting"},
        level=Level.DEFINE,
        errors=(409,),
    ),
    Route(
        "GET",
        _ENGINES,
        engines.list_engines,
        "Every engine",
        {200: "Engines"},
        params=(_PORT,),
        errors=(404,),
    ),
    _define(_ENGINES, "Define a transient engine and start it"),
    _define(f"{_ENGINES}/start", "The same, by SAGE's path"),
    Route("GET", _ENGINE, engines.show, "An engine, or the engines of a group", {200: "EngineOrGroup"}),
    Route(
        "DELETE",
        _ENGINE,
        engines.acting(engines.stop),
        "Stop it",
        {200: "Engines", 202: "Engines"},
        params=(_DRAIN, _WAIT),
        errors=(503,),
    ),
    _verb("start", engines.acting(engines.start), "Start it", _WAIT, _AGAIN, errors=(409, 503)),
    _verb("stop", engines.acting(engines.stop), "Stop it", _WAIT, _DRAIN, errors=(503,)),
    _verb("restart", engines.acting(engines.restart), "Stop and start it", _WAIT, errors=(409, 503)),
    _verb("reset-failed", engines.changing(engines.reset_failed), "Forget failures and the start limit"),
    _verb(
        "unload",
        engines.changing(engines.unload),
        "Take out a model that it took in while it ran",
        _MODEL,
        errors=(409,),
    ),
    _verb(
        "enable",
        engines.changing(engines.enable),
        "Start it with the daemon",
        level=Level.DEFINE,
        errors=(409, 507),
    ),
    _verb(
        "disable",
        engines.changing(engines.disable),
        "Do not start it with the daemon",
        level=Level.DEFINE,
        errors=(409, 507),
    ),
    _verb(
        "forget",
        engines.changing(engines.forget),
        "Drop a transient engine that is down",
        level=Level.DEFINE,
        errors=(409,),
    ),
    Route(
        "GET",
        f"{_ENGINE}/logs",
        streams.logs,
        "Its log, across rotations",
        {200: None},
        params=(_LINES, _FOLLOW),
        media="text/plain",
        errors=(409, 503),
    ),
    Route(
        "GET",
        f"{_ENGINE}/progress",
        streams.progress,
        "How far a job is",
        {200: "EngineProgress"},
        params=(_FOLLOW,),
        errors=(409, 503),
        events=True,
    ),
    Route(
        "GET",
        f"{_ENGINE}/history",
        engines.history,
        "The steps that a job did",
        {200: "EngineHistory"},
        params=(_POINTS,),
        errors=(409,),
    ),
    Route(
        "GET",
        f"{_ENGINE}/explain",
        engines.explain,
        "Why it is as it is",
        {200: "Explanation"},
        errors=(409,),
    ),
    Route(
        "GET",
        f"{_ENGINE}/definition",
        engines.definition,
        "The resolved definition and where each value comes from",
        {200: "Definition"},
        errors=(409,),
    ),
)
