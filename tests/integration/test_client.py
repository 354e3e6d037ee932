"""The Python client against a real API, and against peers that are none."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sagectl import errors
from sagectl.api.server import ApiServer
from sagectl.client import Client
from sagectl.core.engine import State, Sub
from sagectl.errors import Problem
from tests.integration.api_support import PLAN, Served, engine, job, running, serving

Result = TypeVar("Result")


async def ask(served: Served, question: Callable[[Client], Result]) -> Result:
    """What a client in another thread gets."""
    return await asyncio.to_thread(question, Client(served.path, timeout=10))


async def test_the_client_reads_what_the_api_shows(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"), engine("rep@1"), engine("rep@2"), job("tune"))
        served.control.figures = {"done": 1, "total": 2, "unit": "steps", "eta_seconds": None, "details": {}}
        assert [e["name"] for e in await ask(served, Client.engines)] == ["chat", "rep@1", "rep@2", "tune"]
        assert [e["name"] for e in await ask(served, lambda c: c.engines(port=8001))] == ["chat"]
        assert (await ask(served, lambda c: c.engine("chat")))["state"] == "active"
        assert (await ask(served, lambda c: c.engine("rep@1")))["group"] == "rep"
        assert len(await ask(served, lambda c: c.resolve("rep"))) == 2
        assert (await ask(served, Client.status))["control_plane"]["pid"] == os.getpid()
        assert (await ask(served, Client.gpu))["devices"][0]["memory_total_gb"] == 24.0
        assert await ask(served, Client.kinds) == [{"name": "exec"}]
        assert (await ask(served, lambda c: c.explain("chat")))["decision"] == "running"
        assert (await ask(served, lambda c: c.definition("chat")))["kind"]["value"] == "exec"
        assert (await ask(served, lambda c: c.progress("tune"))) == served.control.figures
        steps = await ask(served, lambda c: c.history("tune", points=7))
        assert served.control.asked == [("history", "tune", 7)]
        assert steps[0] == {"step": 1, "at": "2023-11-14T22:13:20.000Z", "loss": 2.5}
        assert (await ask(served, Client.openapi))["openapi"] == "3.1.0"
        assert "sagectl_engines" in await ask(served, Client.metrics)


async def test_the_client_follows_a_jobs_progress_to_its_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(replace(job("tune"), state=State.FAILED, sub=Sub.EXIT_CODE))
        [told] = await ask(served, lambda c: list(c.follow_progress("tune")))
        assert (told["name"], told["state"], told["progress"]) == ("tune", "failed", None)
        served.control.put(job("tune"))
        steps = await ask(served, lambda c: c.follow_progress("tune"))
        assert (await asyncio.to_thread(next, steps))["state"] == "active"
        served.server.service.end_long_requests()
        with pytest.raises(errors.NoDaemon):
            await asyncio.to_thread(next, steps)


async def test_the_client_asks_for_what_its_methods_say(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        served.control.plan = PLAN
        await ask(served, lambda c: c.start("chat", again=True))
        await ask(served, lambda c: c.stop("chat", drain=1.5, wait=0))
        await ask(served, lambda c: c.restart("chat"))
        await ask(served, lambda c: c.reset_failed("chat"))
        await ask(served, lambda c: c.enable("chat"))
        await ask(served, lambda c: c.disable("chat"))
        await ask(served, lambda c: c.delete("chat", drain=0))
        await ask(served, lambda c: c.define({"name": "new"}))
        plan = await ask(served, lambda c: c.reload(dry_run=True, restart=False))
        await ask(served, Client.reexec)
        await ask(served, Client.shutdown)
        assert served.control.asked == [
            ("start", "chat", True),
            ("stop", "chat", 1.5),
            ("restart", "chat"),
            ("reset-failed", "chat"),
            ("autostart", "chat", True),
            ("autostart", "chat", False),
            ("stop", "chat", 0.0),
            ("define", {"name": "new"}),
            ("defined", "new"),
            ("reload", True, False),
            ("reexec",),
            ("shutdown",),
        ]
        assert plan["in_place"] == [{"name": "chat", "keys": ["labels"]}]
        assert [e["name"] for e in await ask(served, lambda c: c.forget("new"))] == ["new"]


async def test_problems_come_back_as_the_errors_that_they_were(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(replace(job("done"), sub=Sub.COMPLETED), engine("rep@1"), engine("rep@2"))
        with pytest.raises(errors.UnknownEngine) as unknown:
            await ask(served, lambda c: c.engine("none"))
        assert (unknown.value.remedy, unknown.value.facts) == ("look", {"engine": "none"})
        with pytest.raises(errors.UnknownEngine, match="No engine is called"):
            await ask(served, lambda c: c.engine("../../x?y=é\udcff"))
        with pytest.raises(errors.Conflict, match="is completed"):
            await ask(served, lambda c: c.start("done"))
        with pytest.raises(errors.Conflict, match="group of 2"):
            await ask(served, lambda c: c.engine("rep"))
        with pytest.raises(errors.MalformedRequest, match="cannot be"):
            await ask(served, lambda c: list(c.logs("done", tail=-1)))
        with pytest.raises(errors.SagectlError) as large:
            await ask(served, lambda c: c.define({"name": "x" * 2_000_000}))
        assert large.value.code == "request_entity_too_large"
        problem = Problem("port", "is taken", "choose another", file="s.toml", line=3)
        served.control.invalid = [problem]
        with pytest.raises(errors.InvalidConfig) as invalid:
            await ask(served, Client.reload)
        assert invalid.value.problems == (problem,)
        assert str(invalid.value) == str(errors.InvalidConfig([problem]))


async def test_logs_come_in_pieces_and_on_and_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        text = b"\xff line\n" * 100_000
        (tmp_path / "chat.log").write_bytes(text)
        assert await ask(served, lambda c: b"".join(c.logs("chat"))) == text
        assert await ask(served, lambda c: b"".join(c.logs("chat", tail=2))) == b"\xff line\n" * 2
        assert await ask(served, lambda c: next(c.logs("chat", tail=1, follow=True))) == b"\xff line\n"


async def test_a_log_whose_daemon_goes_away_ends_in_no_daemon(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        (tmp_path / "chat.log").write_bytes(b"one\n")
        pieces = await ask(served, lambda c: c.logs("chat", follow=True))
        assert await asyncio.to_thread(next, pieces) == b"one\n"
        await served.server.stop()
        with pytest.raises(errors.NoDaemon, match="went away"):
            await asyncio.to_thread(next, pieces)


async def test_events_are_listed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        for number in range(3):
            served.control.journal.record("chat", None, "ready", str(number))
        assert [e["text"] for e in await ask(served, lambda c: list(c.events(tail=2)))] == ["1", "2"]


async def test_a_follower_of_events_outlives_the_daemon_and_misses_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        journal = served.control.journal
        journal.record("chat", None, "ready", "before")
        events = await ask(served, lambda c: c.events(follow=True))
        reading = asyncio.ensure_future(asyncio.to_thread(lambda: [e["text"] for e in islice(events, 3)]))
        while served.server.service.long_requests == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        # Nothing was received yet; the stream's own id must do.
        await served.server.stop()
        journal.record("chat", None, "ready", "while it was away")
        second = ApiServer(served.control, served.path, owner_uid=os.getuid(), group=None)  # type: ignore[arg-type]
        await second.start()
        try:
            journal.record("chat", None, "ready", "after")
            journal.record("chat", None, "ready", "and on")
            async with asyncio.timeout(10):
                assert await reading == ["while it was away", "after", "and on"]
        finally:
            await second.stop()


async def test_a_follower_that_shall_not_reconnect_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.journal.record("chat", None, "ready", "one")
        events = await ask(served, lambda c: c.events(follow=True, tail=1, reconnect=False))
        assert (await asyncio.to_thread(next, events))["text"] == "one"
        await served.server.stop()
        with pytest.raises(errors.NoDaemon):
            await asyncio.to_thread(next, events)


async def test_a_follower_can_go_on_after_an_event(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        for number in range(1, 6):
            served.control.journal.record("chat", None, "ready", str(number))
        found = await ask(
            served, lambda c: [e["id"] for e in islice(c.events(follow=True, last_event_id=2), 3)]
        )
        assert found == [3, 4, 5]


async def test_a_socket_path_may_be_longer_than_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    async with serving(deep) as served:
        assert len(str(served.path)) > 108
        assert await ask(served, lambda c: c.engines()) == []


def test_without_a_daemon_it_says_which_socket_and_how_to_start_one(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "no" / "where", tmp_path / ("d" * 150) / "s"):
        with pytest.raises(errors.NoDaemon) as caught:
            Client(path).status()
        assert str(path) in caught.value.detail
        assert "systemctl start sagectld" in caught.value.remedy
        assert "`sagectld`" in caught.value.remedy
        assert caught.value.facts == {"socket": str(path)}


def test_a_socket_that_a_dead_daemon_left_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    with pytest.raises(errors.NoDaemon, match="No daemon answers"):
        Client(tmp_path / "s").status()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[bytes], Client]]:
    """A peer that answers each connection with the same bytes, whatever is asked."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    threads: list[threading.Thread] = []

    def answer(data: bytes) -> None:
        line, _ = listening.accept()
        with line:
            line.recv(65536)
            line.sendall(data)

    def make(data: bytes) -> Client:
        threads.append(threading.Thread(target=answer, args=(data,)))
        threads[-1].start()
        return Client(tmp_path / "s", timeout=5)

    yield make
    for thread in threads:
        thread.join(5)
    listening.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x01\x02\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"A" * 200_000,
    ],
)
def test_a_peer_that_does_not_answer_properly_is_no_daemon(
    peer: Callable[[bytes], Client], data: bytes
) -> None:
    with pytest.raises(errors.NoDaemon):
        peer(data).engines()


@pytest.mark.parametrize("body", [b"oops", b"[]", b'{"detail": 1}', b""])
def test_an_error_without_an_explanation_is_still_an_error(
    peer: Callable[[bytes], Client], body: bytes
) -> None:
    head = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n" % len(body)
    with pytest.raises(errors.SagectlError, match="status 502"):
        peer(head + body).engines()


@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 15\r\n\r\n" + b'{"engines": []}',
        b"Transfer-Encoding: chunked\r\n\r\n"
        + b'5;x=y\r\n{"eng\r\na\r\nines": []}\r\n0\r\nTrailer: x\r\n\r\n',
        b"\r\n" + b'{"engines": []}',
    ],
)
def test_bodies_may_be_framed_in_any_way_of_http(peer: Callable[[bytes], Client], framed: bytes) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"
    assert peer(head + framed).engines() == []


def test_a_daemon_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "s"))
        hung.listen(0)
        for _ in range(3):  # the last ones do not even fit into its queue
            with pytest.raises(errors.NoDaemon, match="does not answer"):
                Client(tmp_path / "s", timeout=0.05).status()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
async def test_a_stranger_is_told_that_he_may_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        as_nobody = await run_as_nobody(served, open_to=0o666)
        assert as_nobody["code"] == "forbidden"
        assert "has no rights on this daemon" in as_nobody["detail"]
        shut_out = await run_as_nobody(served, open_to=0o660)
        assert shut_out["code"] == "forbidden"
        assert "may not open the daemon's socket" in shut_out["detail"]


SCRIPT = """
import json, os, sys
from sagectl import errors
from sagectl.client import Client
os.setgroups([int(g) for g in sys.argv[2].split(",") if g]); os.setgid(65534); os.setuid(65534)
def tried(call):
    try:
        call()
    except errors.SagectlError as error:
        return {"code": error.code, "detail": error.detail}
    return {"code": "done", "detail": ""}
client = Client(sys.argv[1])
found = tried(client.engines)
found["define"] = tried(lambda: client.define({"name": "mine"}))["code"]
print(json.dumps(found))
"""


async def run_as_nobody(served: Served, *, open_to: int, groups: str = "") -> dict[str, Any]:
    for folder in [served.path.parent, *served.path.parent.parents]:
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o001)
        if folder.parent == Path("/tmp"):
            break
    served.path.chmod(open_to)
    arguments = [sys.executable, "-c", SCRIPT, str(served.path), groups]
    done = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
async def test_a_member_of_the_group_may_look_and_not_define(tmp_path: Path) -> None:
    async with serving(tmp_path, group="users") as served:
        assert served.path.stat().st_mode & 0o777 == 0o660
        gid = served.path.stat().st_gid
        found = await run_as_nobody(served, open_to=0o660, groups=str(gid))
        assert (found["code"], found["define"]) == ("done", "forbidden")
        served.server.regroup(None)
        assert (await run_as_nobody(served, open_to=0o666, groups=str(gid)))["code"] == "forbidden"


def test_importing_the_client_imports_nothing_heavy() -> None:
    code = (
        "import sys, sagectl.client\n"
        "heavy = {'aiohttp', 'pydantic', 'asyncio', 'http.client', 'email', 'ssl', 'logging'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
