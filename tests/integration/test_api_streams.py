"""Events and logs as they come: what a follower sees, and what it sees after it was away."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sagectl.api.limits import Limits
from sagectl.core.engine import Engine, State, Sub
from sagectl.plugin import LaunchPlan
from tests.integration.api_support import Served, job, running, serving

BASE = "/v1/management"


class Stream:
    """An answer that goes on; chunks are joined."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader = reader

    async def chunk(self) -> bytes:
        """The next chunk of the body."""
        async with asyncio.timeout(10):
            size = int(await self.reader.readline(), 16)
            data = await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        return data

    async def block(self) -> dict[str, Any]:
        """The fields of the next server-sent block; several blocks may come in a chunk."""
        if not hasattr(self, "rest"):
            self.rest: list[str] = []
        if not self.rest:
            text = (await self.chunk()).decode()
            assert text.endswith("\n\n")
            self.rest = text.removesuffix("\n\n").split("\n\n")
        fields = (line.partition(": ") for line in self.rest.pop(0).split("\n"))
        found: dict[str, Any] = {name: value for name, _, value in fields}
        if "data" in found:
            found["data"] = json.loads(found["data"])
        return found


@asynccontextmanager
async def following(served: Served, target: str, **headers: str) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_unix_connection(str(served.path))
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"chunked" in head
    try:
        yield Stream(reader)
    finally:
        writer.close()


async def test_events_come_as_they_happen_with_id_and_kind(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        journal = served.control.journal
        journal.record("chat", "engine-1", "started", "before")
        async with following(served, f"{BASE}/events?follow=1") as stream:
            assert await stream.block() == {"retry": "1000", "id": "1"}
            journal.record("chat", "engine-1", "ready", "it\nanswers", state="active", substate="ready")
            block = await stream.block()
            assert (block["id"], block["event"]) == ("2", "ready")
            assert block["data"]["text"] == "it\nanswers"
            assert block["data"]["at"].endswith("Z")


async def test_past_events_come_first_where_they_are_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        journal = served.control.journal
        for number in range(5):
            journal.record("chat" if number % 2 else "other", None, "ready", str(number))
        async with following(served, f"{BASE}/events?follow=1&tail=2&engine=chat") as stream:
            assert (await stream.block())["id"] == "5"
            assert [(await stream.block())["data"]["text"] for _ in range(2)] == ["1", "3"]
            assert await stream.block() == {"id": "5"}  # where to go on, not at event 3
            journal.record("other", None, "ready", "not asked for")
            journal.record("chat", None, "ready", "new")
            assert (await stream.block())["data"]["text"] == "new"


async def test_an_engine_is_followed_by_its_id_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        chat = running("chat")
        served.control.put(chat)
        async with following(served, f"{BASE}/events?follow=1&engine={chat.id}") as stream:
            await stream.block()
            served.control.journal.record("chat", chat.id, "ready", "yes")
            assert (await stream.block())["data"]["engine"] == "chat"


async def test_a_follower_goes_on_where_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        journal = served.control.journal
        for number in range(1, 6):
            journal.record("chat", None, "ready", str(number))
        async with following(served, f"{BASE}/events?follow=1&tail=3", Last_Event_ID="3") as stream:
            assert (await stream.block())["id"] == "3"
            assert [(await stream.block())["id"] for _ in range(2)] == ["4", "5"]


async def test_what_is_no_longer_kept_is_said(tmp_path: Path) -> None:
    target = f"{BASE}/events?follow=1"
    async with serving(tmp_path) as served, following(served, target, Last_Event_ID="900") as stream:
        await stream.block()
        block = await stream.block()
        assert block["event"] == "lost"
        assert "id" not in block
        assert block["data"]["kind"] == "lost"
        served.control.journal.record("chat", None, "ready", "after")
        assert (await stream.block())["data"]["text"] == "after"


async def test_a_silent_stream_shows_that_it_lives(tmp_path: Path) -> None:
    target = f"{BASE}/events?follow=1"
    async with serving(tmp_path, Limits(heartbeat=0.02)) as served, following(served, target) as stream:
        await stream.block()
        assert await stream.chunk() == b": still here\n\n"
        assert await stream.chunk() == b": still here\n\n"
        served.control.journal.record(None, None, "reloaded", "x")
        while (text := await stream.chunk()).startswith(b":"):
            pass
        assert text.startswith(b"id: 1\nevent: reloaded\n")


def training(folder: Path, **changes: Any) -> Engine:
    """A job whose progress file is FOLDER/tune/progress.json."""
    (folder / "tune").mkdir(exist_ok=True)
    up = job("tune")
    plan = LaunchPlan(("/bin/true",), progress_file=str(folder / "tune" / "progress.json"))
    return replace(up, plan=plan, **changes)


def at(done: int) -> dict[str, Any]:
    return {"done": done, "total": 9, "unit": "steps", "eta_seconds": None, "details": {}}


def write(served: Served, folder: Path, done: int) -> None:
    """What a trainer does at a step."""
    served.control.figures = at(done)
    (folder / "tune" / ".new").write_text("{}")
    os.replace(folder / "tune" / ".new", folder / "tune" / "progress.json")


async def test_progress_is_told_at_each_change_until_the_job_is_down(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        one = training(tmp_path)
        served.control.put(one)
        journal = served.control.journal
        async with following(served, f"{BASE}/engines/tune/progress?follow=1") as stream:
            block = await stream.block()
            assert block["event"] == "progress"
            assert (block["data"]["substate"], block["data"]["progress"]) == ("running", None)
            for done in (1, 2):
                write(served, tmp_path, done)
                assert (await stream.block())["data"]["progress"] == at(done)
            before = journal.last_id
            served.control.put(replace(one, state=State.INACTIVE, sub=Sub.COMPLETED))
            journal.record("tune", one.id, "state", "", "debug")
            assert (await stream.block())["data"]["substate"] == "completed"
            assert await stream.block() == {"event": "end", "data": {}}
            assert journal.last_id == before + 1, "progress is none of the journal's events"
            async with asyncio.timeout(10):
                assert await stream.reader.readexactly(5) == b"0\r\n\r\n"


async def test_a_job_that_runs_fast_is_told_of_now_and_then(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(training(tmp_path))
        async with following(served, f"{BASE}/engines/tune/progress?follow=1") as stream:
            await stream.block()
            for done in range(1, 501):
                write(served, tmp_path, done)
                await asyncio.sleep(0)
            seen = [0]
            while seen[-1] < 500:
                seen.append((await stream.block())["data"]["progress"]["done"])
            assert len(seen) < 50


async def test_the_progress_of_a_queued_job_is_told_once_it_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        one = training(tmp_path)
        served.control.put(replace(one, state=State.ACTIVATING, sub=Sub.QUEUED, plan=None))
        async with following(served, f"{BASE}/engines/tune/progress?follow=1") as stream:
            assert (await stream.block())["data"]["substate"] == "queued"
            served.control.put(one)
            served.control.journal.record("tune", one.id, "started", "it runs")
            assert (await stream.block())["data"]["substate"] == "running"
            write(served, tmp_path, 3)
            assert (await stream.block())["data"]["progress"] == at(3)


async def test_what_is_down_or_forgotten_has_no_more_to_tell(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        one = training(tmp_path, state=State.FAILED, sub=Sub.EXIT_CODE)
        served.control.put(one)
        async with following(served, f"{BASE}/engines/tune/progress?follow=1") as stream:
            assert (await stream.block())["data"]["state"] == "failed"
            assert (await stream.block())["event"] == "end"
        served.control.put(training(tmp_path))
        async with following(served, f"{BASE}/engines/tune/progress?follow=1") as stream:
            await stream.block()
            served.control.held.clear()
            served.control.journal.record("tune", one.id, "forgotten", "")
            assert (await stream.block())["event"] == "end"


async def test_a_job_that_is_silent_is_followed_with_heartbeats(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(heartbeat=0.02)) as served:
        served.control.put(training(tmp_path))
        async with following(served, f"{BASE}/engines/tune/progress?follow=1") as stream:
            await stream.block()
            assert await stream.chunk() == b": still here\n\n"


async def test_many_followers_all_see_everything_in_order(tmp_path: Path) -> None:
    async def texts(served: Served, started: asyncio.Barrier) -> list[str]:
        async with following(served, f"{BASE}/events?follow=1") as stream:
            await stream.block()
            await started.wait()
            return [(await stream.block())["data"]["text"] for _ in range(300)]

    async with serving(tmp_path) as served:
        started = asyncio.Barrier(31)
        reading = [asyncio.ensure_future(texts(served, started)) for _ in range(30)]
        await started.wait()
        for number in range(300):
            served.control.journal.record("chat", None, "ready", str(number))
            if number % 50 == 0:
                await asyncio.sleep(0)
        assert await asyncio.gather(*reading) == [[str(number) for number in range(300)]] * 30


async def test_a_log_is_followed_across_a_rotation(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        log = tmp_path / "chat.log"
        log.write_bytes(b"one\ntwo\n")
        async with following(served, f"{BASE}/engines/chat/logs?follow=1&tail=1") as stream:
            assert await stream.chunk() == b"two\n"
            with log.open("ab") as old:
                old.write(b"three\n")
            assert await stream.chunk() == b"three\n"
            os.rename(log, tmp_path / "chat.log.1")
            log.write_bytes(b"four\n")
            assert await stream.chunk() == b"four\n"


async def test_a_log_that_does_not_exist_yet_is_waited_for_and_the_headers_are_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        async with following(served, f"{BASE}/engines/chat/logs?follow=1") as stream:
            (tmp_path / "chat.log").write_bytes(b"first\n")
            assert await stream.chunk() == b"first\n"


async def test_followers_do_not_leak_descriptors_or_subscriptions(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(Limits(), sweep=0.02)) as served:
        served.control.put(running("chat"), training(tmp_path))
        (tmp_path / "chat.log").write_bytes(b"x\n")
        before: set[str] | None = None
        for _ in range(3):
            for target in (
                f"{BASE}/events?follow=1",
                f"{BASE}/engines/chat/logs?follow=1",
                f"{BASE}/engines/tune/progress?follow=1",
            ):
                async with following(served, target) as stream:
                    await stream.chunk()
            while served.server.service.long_requests or served.server.door.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            now = set(os.listdir("/proc/self/fd"))
            before = before or now
        assert len(now) <= len(before or ())
