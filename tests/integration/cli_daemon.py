"""A daemon made of paper for the command line's tests: the API's shapes, and engines that do as scripted."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterable, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = "/v1/management"
NOBODY = 2**22 + 1
"""A pid that no process has: above the kernel's highest."""
NOW = "2026-01-05T12:00:00Z"


def engine(name: str, **properties: Any) -> dict[str, Any]:
    """An engine as the API shows it: stopped, unless `properties` say otherwise."""
    return {
        "engine_id": f"id-{name.replace('@', '-')}",
        "name": name,
        "engine_kind": "llm",
        "model_id": "Qwen/Qwen2.5-0.5B-Instruct",
        "state": "inactive",
        "substate": "dead",
        "reason": "",
        "desired": "stopped",
        "pid": None,
        "port": None,
        "address": None,
        "gpu_ids": [],
        "memory_per_gpu_gb": None,
        "measured_memory_gb": None,
        "uptime_seconds": None,
        "restart_count": 0,
        "consecutive_failures": 0,
        "last_exit_code": None,
        "healthy": None,
        "progress": None,
        "priority": "normal",
        "labels": {},
        "mode": "serve",
        "group": "",
        "transient": False,
        "autostart": False,
        "needs_restart": False,
        "since": NOW,
        "started_at": None,
        "last_exit": None,
        "diagnosis": None,
        "waiting_for": [],
        "blocked": False,
        "probed": True,
        "serves": [],
        "serving": None,
        "log_path": f"/var/log/sagectl/{name}.log",
        **properties,
    }


STARTING = {"state": "activating", "substate": "starting", "desired": "running", "reason": "loading weights"}
READY = {
    "state": "active",
    "substate": "ready",
    "desired": "running",
    "reason": "",
    "pid": 4242,
    "port": 8001,
    "address": "127.0.0.1:8001",
    "started_at": "2026-01-05T12:00:01Z",
    "uptime_seconds": 11520.0,
    "healthy": True,
}
STOPPING = {
    "state": "deactivating",
    "substate": "stopping",
    "desired": "stopped",
    "reason": "stopped by the user",
}
STOPPED = {**engine("x"), "substate": "stopped"}
for _key in ("engine_id", "name", "log_path", "engine_kind", "model_id", "group", "transient"):
    del STOPPED[_key]
FAILED = {
    **STOPPED,
    "state": "failed",
    "substate": "exit-code",
    "desired": "running",
    "reason": "exited with code 1 while starting",
    "last_exit": {"code": 1, "signal": None, "oom_kill": False},
    "last_exit_code": 1,
    "consecutive_failures": 1,
    "diagnosis": {"summary": "The model does not exist", "remedy": "Check the model's name"},
}


class FakeDaemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Engines change when a request makes them, and then a step further each time somebody looks.

    script: by (verb, name) the steps that follow; the first is taken by the request itself, one when
        the events are followed, and one after each reading of the engine.
    told: by name, what a follower of its progress is told; the last one is of an engine that is down. Without
        it the daemon is one that knows no such streams.
    requests: what was asked, as `"POST engines/id-chat/start?again=1"`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, engines: Iterable[dict[str, Any]] = ()) -> None:
        self.path = str(path)
        self.engines = {e["name"]: e for e in engines}
        self.script: dict[tuple[str, str], Sequence[dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        self.events: list[dict[str, Any]] = []
        self.logs: dict[str, bytes] = {}
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.told: dict[str, list[dict[str, Any]]] = {}
        self.answers: dict[str, tuple[int, Any]] = {}
        self.changed = threading.Condition(threading.RLock())
        self._pending: dict[str, list[dict[str, Any]]] = {}
        self.ended = False
        super().__init__(self.path, Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Close the socket and end the streams."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self.shutdown()
        self.server_close()

    def find(self, ref: str) -> list[dict[str, Any]]:
        """By name, id or group."""
        return [e for e in self.engines.values() if ref in (e["name"], e["engine_id"], e["group"])]

    def happen(self, name: str, text: str, level: str = "info", **changes: Any) -> None:
        """Change an engine and tell the subscribers."""
        with self.changed:
            one = self.engines[name]
            one.update(changes, since=f"2026-01-05T12:00:{len(self.events) % 60:02}Z")
            event = {"id": len(self.events) + 1, "at": NOW, "engine": name, "engine_id": one["engine_id"]}
            event |= {"kind": "state", "level": level, "text": text}
            self.events.append(event | {"state": one["state"], "substate": one["substate"]})
            self.changed.notify_all()

    def act(self, verb: str, name: str) -> None:
        """Begin the script of this verb."""
        with self.changed:
            self._pending[name] = list(self.script.get((verb, name), ()))
            self.step(name)

    def step(self, name: str | None = None) -> None:
        """Take the next step of the script (of every engine)."""
        with self.changed:
            for one in [name] if name else list(self._pending):
                if self._pending.get(one):
                    changes = dict(self._pending[one].pop(0))
                    text = changes.pop("text", changes.get("reason", ""))
                    self.happen(one, text, changes.pop("level", "info"), **changes)


class Handler(BaseHTTPRequestHandler):
    """The API's paths."""

    protocol_version = "HTTP/1.1"
    server: FakeDaemon

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def _route(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).removeprefix(API).strip("/")
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.requests.append(f"{self.command} {path}" + (f"?{url.query}" if url.query else ""))
        if path in self.server.answers:
            return self._send(*self.server.answers[path])
        if path == "events":
            return self._events(query)
        if path == "engines" and self.command == "POST":
            return self._define(body)
        if path == "engines" and "port" in query:
            found = [e for e in self.server.engines.values() if e["port"] == int(query["port"])]
            return self._send(200, {"engines": found}) if found else self._unknown(query["port"])
        if path == "engines":
            return self._send(200, {"engines": list(self.server.engines.values())})
        if path == "status":
            return self._status()
        if path == "shutdown":
            self._send(202, {})
            return threading.Thread(target=self.server.close).start()
        words = path.split("/")
        if words[0] == "engines":
            return self._engine(words[1], "/".join(words[2:]), query)
        return self._problem(404, "unknown_route", f"no path {path}")

    def _status(self) -> None:
        daemon = {
            "version": "0.1.0",
            "pid": NOBODY,
            "uptime_seconds": 4000.0,
            "warnings": [],
            "broken_plugins": [],
        }
        engines = list(self.server.engines.values())
        gpu = {"backend": "none", "devices": []}
        self._send(200, {"control_plane": daemon, "gpu": gpu, "engines": engines, "reservations": []})

    def _define(self, body: dict[str, Any]) -> None:
        self.server.bodies.append(body)
        name = body.get("name", "engine-0a1b2c3d")
        self.server.engines[name] = engine(
            name,
            engine_id=name,
            transient=True,
            engine_kind=body["kind"],
            mode="run" if body["kind"] == "finetune" else "serve",
            model_id=body.get("model"),
        )
        self.server.act("define", name)
        self._send(201, self.server.engines[name])

    def _engine(self, ref: str, verb: str, query: dict[str, str]) -> None:
        found = self.server.find(ref)
        if not found:
            return self._unknown(ref)
        if verb == "logs":
            return self._log(found[0]["name"], query)
        if verb == "history":
            one = found[0]
            return self._send(200, {"name": one["name"], "history": self.server.history.get(one["name"], [])})
        if verb == "progress":
            return self._progress(found[0])
        if self.command == "GET":
            # The step comes before the answer is heard of: a late one would be the next request's.
            with self.server.changed:
                copies = [dict(one) for one in found]
                self.server.step(found[0]["name"])
            return self._send(200, copies[0] if len(found) == 1 else {"engines": copies, "group": ref})
        if verb == "forget":
            for one in found:
                del self.server.engines[one["name"]]
        for one in found:
            self.server.act(verb, one["name"])
        return self._send(202, {"engines": found})

    def _progress(self, one: dict[str, Any]) -> None:
        told = self.server.told.get(one["name"])
        if told is None:
            return self._problem(400, "malformed_request", "there is no parameter follow here")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for changes in told:
            with self.server.changed:
                one.update(changes)
            known = {key: one[key] for key in ("engine_id", "name", "state", "substate", "progress")}
            self.wfile.write(f"event: progress\ndata: {json.dumps(known)}\n\n".encode())
        self.wfile.write(b"event: end\ndata: {}\n\n")

    def _log(self, name: str, query: dict[str, str]) -> None:
        data = self.server.logs.get(name, b"")
        if "tail" in query and "follow" not in query:  # who follows sees it all as written just now
            lines = data.splitlines(keepends=True)
            data = b"".join(lines[len(lines) - min(len(lines), int(query["tail"])) :])
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def _events(self, query: dict[str, str]) -> None:
        events = [e for e in self.server.events if query.get("engine") in (None, e["engine"])]
        tail = int(query.get("tail", len(events)))
        if "follow" not in query:
            return self._send(200, {"events": events[len(events) - min(tail, len(events)) :]})
        last = self.headers.get("Last-Event-ID")
        sent = int(last) if last is not None else max(0, len(events) - tail)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        self.server.step()
        try:
            self._stream(sent)
        except OSError:
            return

    def _stream(self, sent: int) -> None:
        while True:
            with self.server.changed:
                while len(self.server.events) <= sent and not self.server.ended:
                    self.server.changed.wait()
                news = self.server.events[sent:]
                if not news:
                    return
            for event in news:
                self.wfile.write(f"id: {event['id']}\nevent: x\ndata: {json.dumps(event)}\n\n".encode())
            sent += len(news)

    def _unknown(self, ref: str) -> None:
        self._problem(404, "unknown_engine", f"there is no engine {ref!r}", "see `sagectl list`")

    def _problem(self, status: int, code: str, detail: str, remedy: str = "") -> None:
        self._send(
            status,
            {"type": "about:blank", "title": code, "status": status, "detail": detail}
            | {"code": code, "remedy": remedy},
        )

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
