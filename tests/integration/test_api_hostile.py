"""Whatever a client does, it gets a problem in words or a closed connection, and others are served."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sagectl.api.limits import Limits
from tests.integration.api_support import Reply, Served, engine, running, serving

BASE = "/v1/management"
QUICK = Limits(header=0.2, idle=0.4, body_time=0.2, stalled=0.3, sweep=0.05, farewell=0.2, heartbeat=0.05)


async def is_responsive(served: Served) -> bool:
    """Does it answer somebody else, and quickly?"""
    begun = time.monotonic()
    reply = await served.ask("GET", "/healthz")
    return reply.status == 200 and time.monotonic() - begun < 2.0


async def read_all(line: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    async with asyncio.timeout(10):
        try:
            while piece := await loop.sock_recv(line, 65536):
                data += piece
        except ConnectionError:
            pass
    return data


@pytest.mark.parametrize(
    ("body", "content_type", "status", "says"),
    [
        (b"{", "application/json", 400, "not JSON"),
        (b"", "application/json", 400, "not JSON"),
        (b"[1]", "application/json", 400, "not an object"),
        (b"\xff\xfe", "application/json; charset=utf-16", 400, "not UTF-8"),
        (b"name=chat", "application/x-www-form-urlencoded", 415, "not application/json"),
        (b"{}", "text/plain", 415, "not application/json"),
        (b"{}", "", 415, "of no type"),
        (b'{"a": "' + b"x" * 2**20 + b'"}', "application/json", 413, "larger than 1048576 bytes"),
        (b'{"a":' * 50_000, "application/json", 400, "nested too deeply"),
    ],
)
async def test_a_body_that_is_no_definition_is_refused_in_words(
    tmp_path: Path, body: bytes, content_type: str, status: int, says: str
) -> None:
    async with serving(tmp_path) as served:
        reply = await served.ask("POST", f"{BASE}/engines", body, Content_Type=content_type)
        assert reply.status == status
        assert says in reply.problem()["detail"]
        assert served.control.asked == []


async def test_a_body_where_none_is_read_is_not_overlooked(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        served.control.put(running("chat"))
        reply = await served.ask("POST", f"{BASE}/engines/chat/stop", {"drain": 0})
        assert reply.status == 400
        assert "takes no body" in reply.problem()["detail"]
        for nothing in (b"", b"{}", b" {}\n"):
            assert (await served.ask("POST", f"{BASE}/engines/chat/stop", nothing)).status == 202
        assert served.control.asked == [("stop", "chat", None)] * 3


async def test_a_compressed_body_is_not_unpacked(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        reply = await served.ask("POST", f"{BASE}/engines", b"\x1f\x8b", Content_Encoding="gzip")
        assert (reply.status, reply.problem()["code"]) == (415, "unsupported_media_type")


async def test_a_chunked_body_is_limited_as_it_comes(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        head = b"POST /v1/management/engines HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = b"".join(b"10000\r\n" + b" " * 0x10000 + b"\r\n" for _ in range(20))
        reply = await served.raw(head + chunks)
        assert (reply.status, reply.problem()["code"]) == (413, "request_entity_too_large")


async def test_an_announced_flood_is_refused_before_it_comes(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        head = b"POST /v1/management/engines HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        reply = await served.raw(head + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
        assert reply.status == 413


async def test_a_client_that_waits_to_be_told_to_send_its_body_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        head = b"POST /v1/management/engines HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        line = served.connect()
        with line:
            loop = asyncio.get_running_loop()
            more = b"Content-Length: 15\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n"
            await loop.sock_sendall(line, head + more)
            assert await loop.sock_recv(line, 100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await loop.sock_sendall(line, b'{"name": "new"}')
            assert Reply(await read_all(line)).status == 201


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nxx",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_problem_too(tmp_path: Path, data: bytes) -> None:
    async with serving(tmp_path) as served:
        reply = await served.raw(data)
        assert 400 <= reply.status < 500
        assert reply.problem()["code"] == "malformed"
        assert await is_responsive(served)


async def test_a_broken_chunk_in_a_body_is_a_problem(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        head = b"POST /v1/management/engines HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        reply = await served.raw(head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nxx")
        assert reply.status == 400
        reply.problem()


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", f"{BASE}/engines/..%2F..%2Fetc%2Fpasswd", 404),
        ("GET", f"{BASE}/engines/..%2F..%2Fetc%2Fpasswd/logs", 404),
        ("GET", f"{BASE}/engines/%00/logs", 404),
        ("GET", f"{BASE}/engines/%ff/logs", 404),
        ("GET", f"{BASE}/engines/chat/../../status", 404),
        ("GET", f"{BASE}/engines/{'x' * 5000}", 404),
        ("GET", f"{BASE}/engines/chat/logs?tail=lots", 400),
        ("GET", f"{BASE}/engines/chat/logs?tail=-5", 400),
        ("GET", f"{BASE}/engines/chat/logs?tail=1&tail=2", 400),
        ("GET", f"{BASE}/engines/chat/logs?lines=5", 400),
        ("GET", f"{BASE}/engines?port=http", 400),
        ("GET", f"{BASE}/engines?port=70000", 400),
        ("GET", f"{BASE}/events?engine=../../x", 404),
        ("POST", f"{BASE}/engines/chat/start?wait=nan", 400),
        ("POST", f"{BASE}/engines/chat/start?wait=1e999", 400),
        ("POST", f"{BASE}/engines/chat/stop?drain=%F0", 400),
        ("POST", f"{BASE}/engines/chat/pause", 404),
        ("PUT", f"{BASE}/engines/chat", 405),
        ("OPTIONS", f"{BASE}/engines", 405),
        ("OPTIONS", "*", 404),
        ("TRACE", "/healthz", 405),
        ("PROPFIND", "/healthz", 405),
        ("DELETE", f"{BASE}/status", 405),
        ("CONNECT", "localhost:80", 404),
        ("GET", "http://elsewhere.example/healthz", 200),
    ],
)
async def test_odd_requests_get_a_problem_that_says_why(
    tmp_path: Path, method: str, target: str, status: int
) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        reply = await served.ask(method, target)
        assert reply.status == status, reply.data
        if status != 200:
            reply.problem()
        assert ("allow" in reply.headers) is (status == 405)
        assert served.control.asked == []


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 40, "٣"])
async def test_a_last_event_id_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    async with serving(tmp_path) as served:
        for path in ("events?follow=1", "events"):
            head = f"GET {BASE}/{path} HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {value}\r\n"
            reply = await served.raw(f"{head}Connection: close\r\n\r\n".encode())
            assert reply.status == 400
            assert "Last-Event-ID" in reply.problem()["detail"]


async def test_a_thousand_idle_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with ExitStack() as stack:
            for _ in range(1000):
                stack.enter_context(served.connect())
            assert await is_responsive(served)
            for _ in range(20):
                assert (await served.ask("GET", f"{BASE}/status")).status == 200
            text = (await served.ask("GET", "/metrics")).body.decode()
            assert "sagectl_api_connections 256\n" in text


async def test_a_flood_of_silent_connections_does_not_drive_out_one_that_asks(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(served.connect())
            asking = stack.enter_context(served.connect())
            asking.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            for _ in range(600):
                stack.enter_context(served.connect())
            assert Reply(await read_all(asking)).status == 200


async def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        with served.connect() as silent, served.connect() as spoke:
            await asyncio.get_running_loop().sock_sendall(spoke, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await read_all(silent) == b""
            assert Reply(await read_all(spoke)).status == 200


async def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        with served.connect() as line:
            loop = asyncio.get_running_loop()
            answer = asyncio.ensure_future(read_all(line))
            for byte in b"GET /healthz HTTP/1.1\r\nHost: " + b"x" * 1000:
                if answer.done():
                    break
                try:
                    await loop.sock_sendall(line, bytes([byte]))
                except ConnectionError:
                    break
                await asyncio.sleep(0.01)
            reply = Reply(await answer)
            assert (reply.status, reply.problem()["code"]) == (408, "request_timeout")


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        head = b"POST /v1/management/engines HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        reply = await served.raw(head + b"Content-Length: 100\r\n\r\n{")
        assert (reply.status, reply.problem()["code"]) == (408, "request_timeout")


async def test_a_client_that_sends_and_never_reads_is_dropped(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        served.control.put(*(engine(f"e{number}") for number in range(300)))
        with served.connect() as line:
            request = b"GET /v1/management/engines HTTP/1.1\r\nHost: x\r\n\r\n"
            line.send(request * 50)
            await gone(served, 1)
            assert await is_responsive(served)


async def test_a_reader_of_events_that_never_reads_is_dropped(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        with served.connect() as line:
            line.send(f"GET {BASE}/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await followers(served, 1)
            for number in range(3000):
                served.control.journal.record("chat", None, "noise", f"{number} " + "x" * 500)
            await followers(served, 0)
            assert await is_responsive(served)


async def test_a_reader_of_a_log_that_never_reads_is_dropped(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        served.control.put(running("chat"))
        (tmp_path / "chat.log").write_bytes(b"x" * 99 + b"\n" + b"y" * 4_000_000)
        for target in ("logs?follow=1", "logs"):
            with served.connect() as line:
                line.send(f"GET {BASE}/engines/chat/{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await gone(served, 1)
        assert await is_responsive(served)


async def test_a_slow_reader_that_makes_progress_is_not_dropped(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        served.control.put(running("chat"))
        text = b"y" * 2_000_000
        (tmp_path / "chat.log").write_bytes(text)
        with served.connect() as line:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(line, f"GET {BASE}/engines/chat/logs HTTP/1.0\r\n\r\n".encode())
            data = b""
            while piece := await loop.sock_recv(line, 100_000):
                data += piece
                await asyncio.sleep(0.05)  # 2 MB take far longer than `stalled`
            assert Reply(data).body == text


async def test_a_slow_follower_of_a_log_that_never_ends_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as served:
        served.control.put(running("chat"))
        (tmp_path / "chat.log").write_bytes(b"x" * 20_000_000)
        with served.connect() as line:
            loop = asyncio.get_running_loop()
            line.send(f"GET {BASE}/engines/chat/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            end = loop.time() + 6 * QUICK.stalled
            while loop.time() < end:
                assert await loop.sock_recv(line, 65536)
                await asyncio.sleep(0.1)  # far less than what waits for it, and always about the same


async def test_followers_leave_room_for_commands(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(connections=12, long_requests=8)) as served:
        served.control.put(running("chat"))
        with ExitStack() as stack:
            for _ in range(8):
                line = stack.enter_context(served.connect())
                line.send(f"GET {BASE}/engines/chat/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await followers(served, 8)
            refused = await served.ask("GET", f"{BASE}/events?follow=1")
            assert (refused.status, refused.problem()["code"]) == (503, "service_unavailable")
            waiting = await served.ask("POST", f"{BASE}/engines/chat/stop?wait=1")
            assert waiting.status == 503
            assert served.control.asked == []  # refused before it acted
            assert (await served.ask("POST", f"{BASE}/engines/chat/stop")).status == 202
        await followers(served, 0)


async def test_where_all_connections_are_busy_a_new_one_is_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(connections=4, long_requests=4)) as served:
        with ExitStack() as stack:
            for _ in range(4):
                line = stack.enter_context(served.connect())
                line.send(f"GET {BASE}/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await followers(served, 4)
            reply = await served.raw(b"")
            assert (reply.status, reply.problem()["code"]) == (503, "service_unavailable")


async def test_a_client_that_leaves_ends_what_it_followed_and_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        targets = [f"GET {BASE}/events?follow=1", f"GET {BASE}/engines/chat/logs?follow=1"]
        targets.append(f"POST {BASE}/engines/chat/stop?wait=1000")
        lines = [served.connect() for _ in targets]
        for line, target in zip(lines, targets, strict=True):
            line.send(f"{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await followers(served, 3)
        for line in lines:
            line.close()
        await followers(served, 0)


async def test_a_client_that_leaves_does_not_stop_a_definition_half_way(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        line = served.connect()
        head = b"POST /v1/management/engines HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        line.send(head + b'Content-Length: 16\r\n\r\n{"name": "slow"}')
        await until(lambda: bool(served.control.asked))
        line.close()
        await gone(served, 0)
        served.control.defining.set()
        await until(lambda: ("defined", "slow") in served.control.asked)


async def test_a_client_that_closes_its_sending_side_gets_its_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        for target in ("/healthz", f"{BASE}/engines/chat/logs"):
            with served.connect() as line:
                line.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                line.shutdown(socket.SHUT_WR)
                assert Reply(await read_all(line)).status == 200


async def test_a_half_closed_follower_that_leaves_is_noticed(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(QUICK, stalled=30.0)) as served:
        served.control.put(running("chat"))
        line = served.connect()
        line.send(f"GET {BASE}/engines/chat/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        line.shutdown(socket.SHUT_WR)
        await followers(served, 1)
        line.close()
        await followers(served, 0)


async def test_requests_in_one_piece_are_answered_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        first = f"GET {BASE}/engines/chat HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        last = b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        reply = await served.raw(first * 100 + last)
        assert reply.data.count(b"HTTP/1.1 200 OK") == 100
        assert reply.data.count(b"HTTP/1.1 404 Not Found") == 1


async def test_stopping_does_not_wait_for_those_who_follow(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.put(running("chat"))
        lines = [served.connect() for _ in range(3)]
        lines[0].send(f"GET {BASE}/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        lines[1].send(f"POST {BASE}/engines/chat/stop?wait=500 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await followers(served, 2)
        begun = time.monotonic()
        await served.server.stop()
        assert time.monotonic() - begun < 1.5
        assert not served.path.exists()
        for line in lines:
            await read_all(line)
            line.close()


async def until(condition: object) -> None:
    """Give the loop its turns until this holds."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what is awaited lies behind a socket
            await asyncio.sleep(0.01)


async def followers(served: Served, count: int) -> None:
    await until(lambda: served.server.service.long_requests == count)


async def gone(served: Served, before: int) -> None:
    """As many connections as `before` were open, and then none."""
    if before:
        await until(lambda: len(served.server.door.connections) >= before)
    await until(lambda: not served.server.door.connections)
