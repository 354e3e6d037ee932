"""The Python client: what the control API offers, as methods. Synchronous, and quick to import.

Each request uses a connection of its own, so a daemon that restarts in between goes unnoticed.
Errors are those of `sagectl.errors`, rebuilt from the API's problems; `NoDaemon` says how to start one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sagectl import errors, unixhttp
from sagectl.shapes import Engine, EngineProgress, Event, Exit, Reload, Serving, Status, Step
from sagectl.unixhttp import Broken, Foreign, Response

__all__ = ["Client", "Engine", "EngineProgress", "Event", "Exit", "Reload", "Serving", "Status", "Step"]

_API = "/v1/management"
_RECONNECT_SECONDS = 60.0
_SILENCE_SECONDS = 45.0  # an event stream has a heartbeat every 15 s


class Client:
    """Talks to the daemon on one socket.

    A `ref` is an engine's name or id, or the name of a group, which means all of its replicas.
    `wait` is how many seconds the daemon waits, at most, for what was asked to be so; None: not at all.
    What came of it stands in the engines that are returned.

    Args:
        socket_path: None for the one that belongs to this user (`SAGECTL_HOME` counts).
        timeout: seconds that the daemon may take for an answer, waiting not counted.
    """

    def __init__(self, socket_path: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> None:
        self.socket_path = os.fspath(socket_path) if socket_path is not None else _default_socket()
        self.timeout = timeout

    # --- Looking ---------------------------------------------------------------------------------

    def status(self) -> Status:
        """The daemon, its engines and the GPUs."""
        result: Status = self._json("GET", f"{_API}/status")
        return result

    def gpu(self) -> dict[str, Any]:
        """The GPUs, who holds what of them, and who waits for memory."""
        result: dict[str, Any] = self._json("GET", f"{_API}/gpu")
        return result

    def engines(self, *, port: int | None = None) -> list[Engine]:
        """Every engine by name, or the one that holds this port. Raises UnknownEngine for a free port."""
        return self._engines("GET", f"{_API}/engines", port=port)

    def resolve(self, ref: str) -> list[Engine]:
        """The engine with this name or id, or all replicas of this group. Raises UnknownEngine."""
        body = self._json("GET", _engine(ref))
        engines: list[Engine] = body.get("engines", [body])
        return engines

    def engine(self, ref: str) -> Engine:
        """One engine. Raises UnknownEngine, and Conflict for a group of several."""
        found = self.resolve(ref)
        if len(found) != 1:
            names = ", ".join(engine["name"] for engine in found)
            raise errors.Conflict(f"{ref} is a group of {len(found)} engines", remedy=f"Name one: {names}")
        return found[0]

    def explain(self, ref: str) -> dict[str, Any]:
        """Why the engine is as it is."""
        return self._object("GET", f"{_engine(ref)}/explain")

    def definition(self, ref: str) -> dict[str, Any]:
        """Its resolved definition: `{key: {"value": …, "origin": …}}`."""
        return self._object("GET", f"{_engine(ref)}/definition")

    def progress(self, ref: str) -> dict[str, Any] | None:
        """How far a job is; None where there is nothing to say."""
        progress: dict[str, Any] | None = self._json("GET", f"{_engine(ref)}/progress", "progress")
        return progress

    def history(self, ref: str, *, points: int | None = None) -> list[Step]:
        """The steps that a job did, oldest first; of more than `points` so many, spread over all of them."""
        steps: list[Step] = self._json("GET", f"{_engine(ref)}/history", "history", points=points)
        return steps

    def kinds(self) -> list[dict[str, Any]]:
        """The engine kinds with their options and origin, and broken plugins with the reason."""
        kinds: list[dict[str, Any]] = self._json("GET", f"{_API}/kinds", "kinds")
        return kinds

    def openapi(self) -> dict[str, Any]:
        """The API's own description."""
        return self._object("GET", "/openapi.json")

    def metrics(self) -> str:
        """Prometheus' text format."""
        return self._read("GET", "/metrics", {}).decode()

    # --- Changing --------------------------------------------------------------------------------

    def start(self, ref: str, *, wait: float | None = None, again: bool = False) -> list[Engine]:
        """Start it, its dependencies first. `again`: run a completed job anew."""
        return self._act(ref, "start", wait=wait, again=again or None)

    def stop(self, ref: str, *, wait: float | None = None, drain: float | None = None) -> list[Engine]:
        """Stop it. `drain` replaces its own seconds for requests in flight."""
        return self._act(ref, "stop", wait=wait, drain=drain)

    def restart(self, ref: str, *, wait: float | None = None) -> list[Engine]:
        """Stop and start it, keeping its identity."""
        return self._act(ref, "restart", wait=wait)

    def reset_failed(self, ref: str) -> list[Engine]:
        """Forget its failures and the start limit."""
        return self._act(ref, "reset-failed")

    def unload(self, ref: str, *, model: str | None = None) -> list[Engine]:
        """Take out a model that it took in while it ran; all of them where none is named. Raises Conflict."""
        return self._act(ref, "unload", model=model)

    def enable(self, ref: str) -> list[Engine]:
        """Have it started with the daemon, whatever the configuration says."""
        return self._act(ref, "enable")

    def disable(self, ref: str) -> list[Engine]:
        """Have it not started with the daemon, whatever the configuration says."""
        return self._act(ref, "disable")

    def define(self, body: Mapping[str, Any]) -> Engine:
        """Define a transient engine and start it; the keys are the TOML's. Raises InvalidConfig."""
        engine: Engine = self._json("POST", f"{_API}/engines", body=body)
        return engine

    def delete(self, ref: str, *, wait: float | None = None, drain: float | None = None) -> list[Engine]:
        """Stop it, by HTTP's own verb."""
        return self._engines("DELETE", _engine(ref), wait=wait, drain=drain)

    def forget(self, ref: str) -> list[Engine]:
        """Drop transient engines that are down. Raises Conflict for others."""
        return self._act(ref, "forget")

    def reload(self, *, dry_run: bool = False, restart: bool = True) -> Reload:
        """Read the configuration again and apply what changed; returns what that is."""
        query: dict[str, Any] = {"dry_run": dry_run or None, "restart": None if restart else False}
        plan: Reload = self._json("POST", f"{_API}/reload", **query)
        return plan

    def shutdown(self) -> None:
        """Stop every engine, then the daemon. Returns at once."""
        self._json("POST", f"{_API}/shutdown")

    def reexec(self) -> None:
        """Begin to go on with newly installed code, engines running. Raises Conflict if it does not load."""
        self._json("POST", f"{_API}/daemon-reexec")

    # --- Following -------------------------------------------------------------------------------

    def events(
        self,
        *,
        tail: int | None = None,
        engine: str | None = None,
        follow: bool = False,
        last_event_id: int | None = None,
        reconnect: bool = True,
    ) -> Iterator[Event]:
        """What happened, oldest first; with `follow` also what happens from now on.

        Args:
            tail: how many past events.
            last_event_id: go on after this one instead of `tail`; only with `follow`.
            reconnect: outlive a restart of the daemon, missing nothing that it still keeps. Raises
                NoDaemon after a minute without one.
        """
        path = f"{_API}/events"
        if not follow:
            listed: list[Event] = self._json("GET", path, "events", tail=tail, engine=engine)
            return iter(listed)
        return self._follow_events(
            self._event_stream(engine, tail, last_event_id), engine, last_event_id, reconnect
        )

    def logs(self, ref: str, *, tail: int | None = None, follow: bool = False) -> Iterator[bytes]:
        """The engine's log in pieces, its last `tail` lines or all; with `follow` also what comes.

        Raises NoDaemon where the daemon goes away meanwhile.
        """
        query = {"tail": tail, "follow": follow or None}
        response = self._request(
            "GET", f"{_engine(ref)}/logs", query, silence=None if follow else self.timeout
        )
        return self._pieces(response)

    def follow_progress(self, ref: str) -> Iterator[EngineProgress]:
        """How far a job is, now and at each change, until it is down: the last one says how.

        Raises NoDaemon where the daemon goes away meanwhile; the job goes on without it.
        """
        response = self._request(
            "GET", f"{_engine(ref)}/progress", {"follow": True}, silence=_SILENCE_SECONDS
        )
        return self._told(response)

    def _told(self, response: Response) -> Iterator[EngineProgress]:
        with response:
            try:
                for _, data in response.server_sent():
                    if data not in ("", "{}"):
                        yield json.loads(data)
            except (Broken, OSError) as error:
                raise self._gone(error) from error

    def _pieces(self, response: Response) -> Iterator[bytes]:
        with response:
            try:
                yield from response.pieces()
            except (Broken, OSError) as error:
                raise self._gone(error) from error

    def _event_stream(self, engine: str | None, tail: int | None, last: int | None) -> Response:
        headers = {"Last-Event-ID": str(last)} if last is not None else {}
        query = {"follow": True, "tail": tail if last is None else None, "engine": engine}
        return self._request("GET", f"{_API}/events", query, headers=headers, silence=_SILENCE_SECONDS)

    def _follow_events(
        self, response: Response, engine: str | None, last: int | None, reconnect: bool
    ) -> Iterator[Event]:
        while True:
            with response:
                try:
                    for event_id, data in response.server_sent():
                        last = event_id if event_id is not None else last
                        if data:
                            yield json.loads(data)
                except (Broken, OSError) as error:
                    if not reconnect:
                        raise self._gone(error) from error
                if not reconnect:
                    return
            response = self._reopen(engine, last)

    def _reopen(self, engine: str | None, last: int | None) -> Response:
        end = time.monotonic() + _RECONNECT_SECONDS
        delay = 0.05
        while True:
            try:
                return self._event_stream(engine, 0, last)
            except errors.NoDaemon:
                if time.monotonic() > end:
                    raise
            time.sleep(delay)
            delay = min(1.0, delay * 1.5)

    # --- Requests --------------------------------------------------------------------------------

    def _act(self, ref: str, verb: str, **query: Any) -> list[Engine]:
        return self._engines("POST", f"{_engine(ref)}/{verb}", **query)

    def _engines(self, method: str, path: str, **query: Any) -> list[Engine]:
        engines: list[Engine] = self._json(method, path, "engines", **query)
        return engines

    def _object(self, method: str, path: str) -> dict[str, Any]:
        result: dict[str, Any] = self._json(method, path)
        return result

    def _json(
        self, method: str, path: str, member: str | None = None, *, body: Any = None, **query: Any
    ) -> Any:
        """The answer, or the one member of it that is wanted."""
        raw = self._read(method, path, query, body)
        try:
            value = json.loads(raw)
            return value if member is None else value[member]
        except (ValueError, TypeError, KeyError) as error:
            raise self._gone(Foreign("its answer is not the API's")) from error

    def _read(self, method: str, path: str, query: Mapping[str, Any], body: Any = None) -> bytes:
        try:
            with self._request(method, path, query, body=body, silence=self.timeout) as response:
                return response.read()
        except (Broken, OSError) as error:
            raise self._gone(error) from error

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        silence: float | None,
    ) -> Response:
        """Send, and return once the head of the answer is there.

        query: parameters that are None are left out.
        silence: seconds that a read of the body may take, None for ever.
        """
        wait = query.get("wait") or 0.0
        response = self._open(method, path + unixhttp.query(query), body, headers or {}, self.timeout + wait)
        if response.status >= 400:
            with response:
                raise _error(response)
        response.patience(silence)
        return response

    def _open(
        self, method: str, target: str, body: Any, headers: Mapping[str, str], patience: float
    ) -> Response:
        payload = None if body is None else json.dumps(body).encode()
        try:
            return unixhttp.request(self.socket_path, method, target, payload, headers, patience)
        except PermissionError as error:
            raise errors.Forbidden(
                f"User {os.getuid()} may not open the daemon's socket {self.socket_path}",
                remedy="Become a member of the group in [daemon] group, or root",
            ) from error
        except (Broken, OSError) as error:
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> errors.NoDaemon:
        if isinstance(error, TimeoutError):
            what = f"The daemon on {self.socket_path} does not answer"
            remedy = "See what it is doing: `journalctl -u sagectld`"
        elif isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            what = f"No daemon answers on {self.socket_path}"
            remedy = "Start one with `systemctl start sagectld`, or in the foreground with `sagectld`"
        elif isinstance(error, Foreign):
            what = f"What answers on {self.socket_path} is no sagectl daemon ({error})"
            remedy = "Name the daemon's socket with --socket, or start a daemon with `sagectld`"
        else:
            what = f"The daemon on {self.socket_path} went away ({error})"
            remedy = "Try again; if it is gone, `systemctl start sagectld` or `sagectld` starts one"
        return errors.NoDaemon(what, remedy=remedy, facts={"socket": self.socket_path})


def _default_socket() -> str:
    from sagectl.config import paths  # only here: a caller with a socket path need not wait for it

    return str(paths.resolve(os.environ, os.getuid()).socket)


def _engine(ref: str) -> str:
    return f"{_API}/engines/{unixhttp.quote(ref)}"


_BY_CODE: Mapping[str, type[errors.SagectlError]] = {
    kind.code: kind
    for kind in (
        errors.MalformedRequest,
        errors.UnknownEngine,
        errors.UnknownRoute,
        errors.Conflict,
        errors.Forbidden,
        errors.Unplaceable,
        errors.Unkept,
    )
}
_OWN_MEMBERS = frozenset({"type", "title", "status", "detail", "code", "remedy", "errors"})


def _error(response: Response) -> errors.SagectlError:
    """The exception that a problem document stands for."""
    try:
        problem = json.loads(response.read())
        detail, code = str(problem["detail"]), str(problem["code"])
    except (ValueError, TypeError, KeyError, Broken, OSError):
        return errors.SagectlError(f"The daemon answered with status {response.status} and no explanation")
    if code == errors.InvalidConfig.code and isinstance(problem.get("errors"), list):
        return errors.InvalidConfig([_problem(entry) for entry in problem["errors"]])
    facts = {key: value for key, value in problem.items() if key not in _OWN_MEMBERS}
    error = _BY_CODE.get(code, errors.SagectlError)(detail, remedy=problem.get("remedy", ""), facts=facts)
    if error.code != code:
        error.code = code
    return error


def _problem(entry: Mapping[str, Any]) -> errors.Problem:
    return errors.Problem(
        key=entry.get("key", ""),
        message=entry.get("message", ""),
        remedy=entry.get("remedy", ""),
        file=entry.get("file"),
        line=entry.get("line") or 0,
    )
