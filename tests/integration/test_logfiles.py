from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from sagectl.shim.log import Log
from sagectl.system import inotify
from sagectl.system.logfiles import follow, last_lines_since, tail


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "chat.log")


def lines(begin: int, end: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(begin, end))


def put(path: str, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def first_line(path: str) -> bytes:
    return Path(path).read_bytes().split(b"\n")[0]


async def take(stream: AsyncIterator[bytes], count: int) -> bytes:
    data = b""
    async with asyncio.timeout(10):
        while data.count(b"\n") < count:
            data += await anext(stream)
    return data


async def silence(stream: AsyncIterator[bytes]) -> None:
    """Nothing more comes. Ends the stream."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(stream)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, b""),
        (1, lines(29, 30)),
        (5, lines(25, 30)),
        (29, lines(1, 30)),
        (30, lines(0, 30)),
        (99, lines(0, 30)),
    ],
)
def test_a_tail_reaches_back_into_rotated_files(path: str, count: int, expected: bytes) -> None:
    log = Log(path, 60, 50)
    log.write(lines(0, 30))
    assert Path(path + ".3").exists()
    assert tail(path, count) == expected


def test_an_unfinished_line_counts_in_a_tail(path: str) -> None:
    Path(path).write_bytes(b"one\ntwo\nthr")
    assert tail(path, 1) == b"thr"
    assert tail(path, 2) == b"two\nthr"


def test_a_tail_of_long_lines_is_bounded(path: str) -> None:
    Path(path + ".1").write_bytes(b"a" * 100_000 + b"\n")
    Path(path).write_bytes(b"b" * 200_000 + b"\nend\n")
    assert tail(path, 2) == b"b" * 200_000 + b"\nend\n"
    assert len(tail(path, 10)) == 300_006
    assert tail(path, 10, max_bytes=10) == b"bbbbb\nend\n"
    assert tail(path, 10, max_bytes=200_010) == b"aaaa\n" + b"b" * 200_000 + b"\nend\n"


def test_a_tail_of_nothing_is_empty(path: str) -> None:
    assert tail(path, 5) == b""
    Path(path).write_bytes(b"")
    assert tail(path, 5) == b""


def test_the_lines_since_a_start_are_found_across_rotations(path: str) -> None:
    log = Log(path, 60, 50)
    log.write(lines(0, 15))
    position = log.written
    log.write(lines(15, 30))
    since = last_lines_since(path, position)
    assert since == tuple(f"line {number}" for number in range(15, 30))
    assert last_lines_since(path, position, max_lines=2) == ("line 28", "line 29")
    assert last_lines_since(path, log.written) == ()


def test_the_position_is_known_in_the_middle_of_a_rotation(path: str) -> None:
    log = Log(path, 1000, 5)
    log.write(lines(0, 10))
    position = log.written
    log.write(lines(10, 12))
    os.rename(path, path + ".1")
    assert last_lines_since(path, position) == ("line 10", "line 11")
    Path(path).write_bytes(b"line 12\n")
    assert last_lines_since(path, position) == ("line 10", "line 11", "line 12")


def test_without_the_shims_note_the_newest_file_is_the_range(path: str) -> None:
    Path(path + ".1").write_bytes(b"old\n")
    Path(path).write_bytes(b"new\n")
    assert last_lines_since(path, 12345) == ("new",)
    assert last_lines_since(path + "-missing", 0) == ()


def test_a_progress_bar_is_one_line_and_a_cut_line_is_left_out(path: str) -> None:
    Path(path).write_bytes(b"loading\r\n10%\r50%\r100%\ndone\n")
    assert last_lines_since(path, 0) == ("loading", "100%", "done")
    assert last_lines_since(path, 0, max_bytes=8) == ("done",)


@pytest.mark.parametrize(("count", "begin"), [(0, 20), (1, 19), (15, 5), (None, 0)])
async def test_following_begins_at_the_end_or_some_lines_before(
    path: str, count: int | None, begin: int
) -> None:
    log = Log(path, 60, 50)
    log.write(lines(0, 20))
    async with aclosing(follow(path, count)) as stream:
        waiting = asyncio.ensure_future(take(stream, 22 - begin))
        await asyncio.sleep(0.05)
        log.write(lines(20, 22))
        assert await waiting == lines(begin, 22)


async def test_nothing_is_lost_or_repeated_across_rotations(path: str) -> None:
    log = Log(path, 2000, 500)
    count = 20_000

    def write() -> None:
        for begin in range(0, count, 50):
            log.write(lines(begin, begin + 50))

    async with aclosing(follow(path)) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        writer = threading.Thread(target=write)
        writer.start()
        data = await waiting
        data += await take(stream, count - data.count(b"\n"))
        writer.join()
        assert data == lines(0, count)
        assert tail(path + ".50", 1), "it was rotated often"
        await silence(stream)


async def test_a_log_that_does_not_exist_yet_is_waited_for(path: str) -> None:
    async with aclosing(follow(path)) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        put(path, b"first\n")
        assert await waiting == b"first\n"


async def test_a_gap_in_the_middle_of_a_rotation_is_waited_out(path: str) -> None:
    put(path, b"one\n")
    async with aclosing(follow(path, None)) as stream:
        assert await anext(stream) == b"one\n"
        os.rename(path, path + ".1")
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        put(path, b"two\n")
        assert await waiting == b"two\n"


async def test_a_removed_log_is_followed_into_its_successor(path: str) -> None:
    put(path + ".1", b"old\n")
    os.utime(path + ".1", (0, 0))
    put(path, b"one\n")
    async with aclosing(follow(path, 1)) as stream:
        assert await anext(stream) == b"one\n"
        os.remove(path)
        put(path, b"two\n")
        assert await anext(stream) == b"two\n"


@pytest.mark.parametrize("clock", [0, -365 * 86400])
async def test_a_follower_that_was_too_slow_is_told_how_much_it_missed(path: str, clock: int) -> None:
    log = Log(path, 100, 2)
    log.write(lines(0, 5))
    async with aclosing(follow(path, None)) as stream:
        got = await take(stream, 5)
        log.write(lines(5, 200))
        for number in ("", ".1", ".2"):  # as if the clock had been set while they were written
            when = os.stat(path + number).st_mtime + clock
            os.utime(path + number, (when, when))
        rest = await anext(stream)
        assert rest.startswith(b"line 5\n"), "the rest of the file that it holds open"
        missed = await anext(stream)
        following = await anext(stream)
        assert following.startswith(first_line(path + ".2"))
    assert got == lines(0, 5)
    first = int(first_line(path + ".2").split()[1])
    lost = len(lines(0, first)) - len(got) - len(rest)
    assert missed == b"[sagectl: %d bytes of log were rotated away before they could be shown]\n" % lost


async def test_a_truncated_log_is_read_from_its_beginning(path: str) -> None:
    put(path, b"one\ntwo\n")
    async with aclosing(follow(path, None)) as stream:
        assert await anext(stream) == b"one\ntwo\n"
        os.truncate(path, 0)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        put(path, b"new\n")
        assert await waiting == b"new\n"


async def test_without_inotify_the_log_is_looked_at_again(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify._libc, "inotify_init1", lambda flags: -1)
    put(path, b"one\n")
    async with aclosing(follow(path, None)) as stream:
        assert await anext(stream) == b"one\n"
        put(path, b"two\n")
        assert await anext(stream) == b"two\n"


async def test_a_closed_follower_leaves_no_descriptor(path: str) -> None:
    put(path, b"one\n")
    before = len(os.listdir("/proc/self/fd"))
    async with aclosing(follow(path, None)) as stream:
        await anext(stream)
        await silence(stream)
    assert len(os.listdir("/proc/self/fd")) == before
