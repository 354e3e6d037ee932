"""Whatever something that calls itself a shim says, the daemon raises nothing and starts the engine after."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import signal
import struct
import time
from collections.abc import Awaitable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagectl.core.engine import Process
from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from sagectl.shim.channel import packed
from sagectl.system import pidfile, strays
from sagectl.system.processes import Processes
from sagectl.system.shim_keeper import ATTEMPTS, HUNG, LOSSES
from tests.integration.process_support import SLEEP, Events, Machine, leave_no_group
from tests.integration.shim_support import mutated, values

BOUNDED = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
IDENTITY = {
    "pid": 1 << 21,  # of nobody
    "starttime": 5,
    "boot_id": pidfile.boot_id(),
    "started": 1.0,
    "started_wall": 1.0,
    "log_position": 0,
}
LOG = {"written": 5, "dropped": 0, "trouble": None}
HELLO = {
    "op": "hello",
    "v": 1,
    "name": "chat",
    "shim_pid": 1 << 21,
    "generation": 1,
    "engine": None,
    "exit": None,
    "left": 0,
    "ready": False,
    "log": LOG,
    "adopted": False,
}
HOW = {"code": None, "signal": 9, "oom": False}
MEASURED = {
    "op": "measured",
    "id": 1,
    "generation": 1,
    "processes": 1,
    "log_written": 1,
    "rss_bytes": 1,
    "read_bytes": 1,
    "cpu_seconds": 0.5,
}
PIDS = {"op": "pids", "id": 2, "pids": [1 << 21]}
TOLD: list[dict[str, Any]] = [
    HELLO,
    {**HELLO, "generation": 0},
    {**HELLO, "engine": IDENTITY, "ready": True},
    {**HELLO, "exit": {"v": 1, "generation": 1, "pid": 1 << 21, "boot_id": "x", **HOW}, "left": 2},
    {**HELLO, "log": {**LOG, "trouble": "cannot write"}},
    {"op": "started", "generation": 1, **IDENTITY},
    {"op": "refused", "generation": 1, "text": "no", "errno": 2},
    {"op": "exited", "generation": 1, "left": 1, **HOW},
    {"op": "tree-empty", "generation": 1},
    {"op": "stubborn", "generation": 1, "pids": [1 << 21]},
    {"op": "notify", "generation": 1, "fields": {"READY": "1"}},
    {"op": "log-trouble", "text": "full", "dropped": 1},
    MEASURED,
    PIDS,
    {"op": "fatal", "text": "another shim is alive"},
    {"op": "from-a-newer-shim", "generation": 1},
]
frames = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    values.map(lambda value: packed(value)),
    st.builds(
        lambda size, data: struct.pack(">I", size) + data, st.integers(0, 2**32 - 1), st.binary(max_size=9)
    ),
    st.sampled_from([b"[" * 100_000, b'{"op":' * 50_000, b"9" * 5000, b"\xff\xfe", b"", b"null"]).map(
        lambda text: struct.pack(">I", len(text)) + text
    ),
)


class Sink(Events):
    """Events, each looked at: what reaches the daemon's core is of the types that it counts on."""

    def _put(self, *event: Any) -> None:
        super()._put(*event)
        for value in event[1:]:
            check(value)


def check(value: Any) -> None:
    if isinstance(value, Process):
        whole = (value.pid, value.starttime, value.log_position)
        assert all(type(number) is int for number in whole), value
        assert math.isfinite(value.started), value
        assert 0 <= value.started_wall < 1e11, value
    elif isinstance(value, ExitStatus):
        assert value.code is None or type(value.code) is int, value
        assert value.signal is None or type(value.signal) is int, value
    elif isinstance(value, dict):
        assert all(isinstance(text, str) for text in (*value, *value.values())), value
    elif isinstance(value, tuple):
        assert all(type(pid) is int for pid in value), value
    else:
        assert type(value) in (str, int), value


class Imposter:
    """Listens where a shim of the engine would, says its piece to who connects, and hangs up.

    until: what it waits to hear before each piece but the first. often: how many times it plays its part.
    """

    def __init__(self, directory: Path, *pieces: bytes, until: bytes = b"", often: int = 1) -> None:
        self.path, self.pieces, self.until = directory / "shim.sock", pieces, until
        self.left, self.times = often, list[float]()
        self.done, self.tasks = asyncio.Event(), list[Any]()
        directory.mkdir(parents=True)

    def leave(self) -> None:
        """Wait for nothing more."""
        for task in self.tasks:
            task.cancel()

    async def listen(self) -> None:
        self.server = await asyncio.start_unix_server(self._answer, self.path)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.current_task())
        self.left -= 1
        self.times.append(time.monotonic())
        if not self.left:
            self.server.close()
            self.path.unlink()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            for number, piece in enumerate(self.pieces):
                if number and self.until:
                    await reader.readuntil(self.until)
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            writer.write_eof()
            await reader.read()
        writer.close()
        if not self.left:
            self.done.set()


class Lab:
    """A daemon's processes on a loop of its own, for tests that run many examples on it."""

    def __init__(self, home: Path, runner: asyncio.Runner) -> None:
        self.run, self.log, self.runner = home / "run", home / "log", runner
        self.names = (f"e{number}" for number in itertools.count())
        self.faults: list[dict[str, Any]] = []
        runner.get_loop().set_exception_handler(lambda loop, context: self.faults.append(context))
        self.events = Sink()
        self.processes = Processes(self.run, self.log, self.events)
        self(self.processes.open())

    def __call__(self, work: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(20):
                return await work

        found = self.runner.run(bounded())
        faults, self.faults[:] = self.faults[:], []
        assert not faults, faults
        return found

    def order(self, generation: int, *argv: str) -> Any:
        machine = Machine.__new__(Machine)
        machine.generation = generation - 1
        return machine.order(*argv)

    async def starts_again(self, name: str) -> None:
        """Whatever was said of it: it can be killed, started and released."""
        self.processes.kill_tree(name, 1)
        await self.events.until("tree_empty")
        self.processes.launch(name, self.order(100, *SLEEP))
        await self.events.until("spawned")
        self.processes.kill_tree(name, 100)
        await self.events.until("tree_empty")
        self.processes.release(name)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with asyncio.Runner() as runner:
        one = Lab(tmp_path, runner)
        yield one
        one(one.processes.close())
    # Shims that were led to believe that nobody wants them to end.
    for identity in strays.find(Path(os.path.abspath(one.run)) / "engines").values():
        if identity is not None:
            tree.kill_verified(*identity, signal.SIGKILL)
    leave_no_group(one.run)


messages = st.lists(st.sampled_from(TOLD).flatmap(mutated), max_size=4)


def test_nothing_that_a_shim_says_during_a_launch_raises(lab: Lab) -> None:
    @BOUNDED
    @given(mutated(HELLO, most=1), messages, frames)
    def anything(hello: dict[str, Any], told: list[dict[str, Any]], last: bytes) -> None:
        name = next(lab.names)
        pieces = [packed(hello), *map(packed, told), last]

        async def example() -> None:
            imposter = Imposter(lab.run / "engines" / name, *pieces)
            await imposter.listen()
            lab.processes.launch(name, lab.order(1, *SLEEP))
            await imposter.done.wait()
            await lab.starts_again(name)

        lab(example())

    anything()


def test_nothing_that_a_shim_answers_raises(lab: Lab) -> None:
    running = packed({**HELLO, "engine": IDENTITY})

    @BOUNDED
    @given(mutated(MEASURED), mutated(PIDS))
    def anything(measured: dict[str, Any], pids: dict[str, Any]) -> None:
        name = next(lab.names)

        async def example() -> None:
            pieces = running, packed(measured), packed(pids)
            imposter = Imposter(lab.run / "engines" / name, *pieces, until=b'"id": ')
            await imposter.listen()
            lab.processes.launch(name, lab.order(1, *SLEEP))
            await lab.events.until("spawned")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    answer = await lab.processes.measure(name, 1)
                    assert answer is None or all(math.isfinite(value) for value in astuple(answer)), answer
                    found = await lab.processes.pids(name)
                    assert all(type(pid) is int for pid in found), found
            imposter.leave()
            await imposter.done.wait()
            await lab.starts_again(name)

        lab(example())

    anything()


WRONG = {
    "no JSON": b"\0\0\0\4{{{{",
    "a list": b"\0\0\0\2[]",
    "no op": packed({}),
    "an op that is none": packed({"op": []}),
    "an endless message": b"\xff" * 100,
    "nested without end": packed({"op": "a", "deep": json.loads("[" * 500 + "]" * 500)}),
    "a hello alone": packed({"op": "hello"}),
    "a hello of nobody": packed({**HELLO, "shim_pid": "me"}),
    "a started without a process": packed({"op": "started", "generation": 1}),
    "an exit without a status": packed({"op": "exited", "generation": 1}),
    "a signal in words": packed({"op": "exited", "generation": 1, "left": 0, **HOW, "signal": "KILL"}),
    "a time without end": packed({"op": "started", "generation": 1, **IDENTITY, "started_wall": math.inf}),
    "fields that are none": packed({"op": "notify", "generation": 1, "fields": {"READY": 1}}),
    "no answer": packed({"op": "pids", "id": {}, "pids": []}),
}


@pytest.mark.parametrize("greets", [True, False], ids=["after a hello", "at once"])
@pytest.mark.parametrize("piece", WRONG.values(), ids=WRONG.keys())
def test_what_makes_no_sense_costs_the_connection_alone(lab: Lab, piece: bytes, greets: bool) -> None:
    async def example() -> None:
        first = packed({**HELLO, "generation": 0}) if greets else b""
        imposter = Imposter(lab.run / "engines" / "chat", first + piece)
        await imposter.listen()
        lab.processes.launch("chat", lab.order(1, *SLEEP))
        await lab.events.until("spawned")  # by a real one, in its place
        await imposter.done.wait()
        await lab.starts_again("chat")

    lab(example())


def test_a_question_to_a_shim_that_is_lost_is_answered_at_once(lab: Lab) -> None:
    async def example() -> None:
        said = packed({**HELLO, "engine": IDENTITY}), b""
        imposter = Imposter(lab.run / "engines" / "chat", *said, until=b'"id": ')
        await imposter.listen()
        lab.processes.launch("chat", lab.order(1, *SLEEP))
        await lab.events.until("spawned")
        async with asyncio.timeout(HUNG / 2):
            assert await lab.processes.measure("chat", 1) is None
        await lab.starts_again("chat")

    lab(example())


def test_a_shim_that_never_makes_sense_fails_the_start_and_says_why(lab: Lab) -> None:
    async def example() -> None:
        imposter = Imposter(lab.run / "engines" / "chat", packed({"op": "hello"}), often=ATTEMPTS)
        await imposter.listen()
        lab.processes.launch("chat", lab.order(1, *SLEEP))
        (_, text) = await lab.events.until("spawn_failed")
        assert 'its shim does not make sense: it sent a message "hello"' in text

    lab(example())


def test_a_shim_that_hangs_up_again_and_again_does_not_keep_the_daemon_busy(lab: Lab) -> None:
    async def example() -> None:
        imposter = Imposter(
            lab.run / "engines" / "chat", packed({**HELLO, "generation": 0}), often=LOSSES + 3
        )
        await imposter.listen()
        lab.processes.launch("chat", lab.order(1, *SLEEP))
        await imposter.done.wait()
        assert imposter.times[-1] - imposter.times[0] > 1.0
        await lab.events.until("spawned")
        await lab.starts_again("chat")

    lab(example())


@pytest.mark.parametrize("record", ["started", "exit"])
def test_a_damaged_record_raises_nothing_in_who_reads_it(tmp_path: Path, record: str) -> None:
    right = {"v": 1, "generation": 1, "context": {"a": 1}, "ready": False, **IDENTITY, **HOW}

    @settings(BOUNDED, max_examples=300)
    @given(
        st.binary(max_size=20)
        | (mutated(right, most=3) | values).map(lambda value: json.dumps(value).encode())
    )
    def anything(text: bytes) -> None:
        (tmp_path / f"{record}.json").write_bytes(text)
        found = pidfile.read_started(tmp_path) if record == "started" else pidfile.read_exit(tmp_path)
        if found:
            assert type(found["generation"]) is int
            check(pidfile.process_of(found) or 0)
            check(pidfile.exit_of(found) or 0)
            assert record == "exit" or isinstance(found["context"], dict)

    anything()


def test_an_intruder_at_the_shim_costs_the_daemon_a_moment_and_the_engine_nothing(lab: Lab) -> None:
    async def example() -> None:
        lab.processes.launch("chat", lab.order(1, *SLEEP))
        _, process = await lab.events.until("spawned")
        for piece in [*WRONG.values()] * 3:
            reader, writer = await asyncio.open_unix_connection(lab.run / "engines" / "chat" / "shim.sock")
            writer.write(piece)
            with contextlib.suppress(ConnectionError):
                writer.write_eof()
                await reader.read()  # until the shim hangs up, or prefers the daemon
            writer.close()
        async with asyncio.timeout(10):
            while await lab.processes.pids("chat") != (process.pid,):  # noqa: ASYNC110  behind a socket
                await asyncio.sleep(0.05)
        assert [event[0] for event in lab.events.seen] == ["spawned"]
        lab.processes.signal("chat", 1, 15)
        assert await lab.events.until("exited") == (1, ExitStatus(signal=15), 0)
        await lab.starts_again("chat")

    lab(example())
