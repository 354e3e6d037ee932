from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from sagectl.core.events import ProbeRole
from sagectl.plugin import ExecProbe, HttpProbe, NotifyProbe, Probe, TcpProbe
from sagectl.system.probes import ProbeOutcome, Prober, Target

STARTUP, READINESS, LIVENESS = ProbeRole.STARTUP, ProbeRole.READINESS, ProbeRole.LIVENESS
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 7\r\n\r\nloading"
HEALTH = HttpProbe("/health")
Result = tuple[str, int, ProbeRole, ProbeOutcome]


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110 (nothing tells when it is so)
            await asyncio.sleep(0)


class Observer:
    """A prober and what it reported."""

    def __init__(self, advancing: Callable[[int, float], bool] = lambda port, seconds: False) -> None:
        self.results: asyncio.Queue[Result] = asyncio.Queue()
        self.prober = Prober(lambda *result: self.results.put_nowait(result), advancing=advancing)

    def start(
        self, role: ProbeRole, target: Target, *probes: Probe, generation: int = 1, interval: float = 0.05
    ) -> None:
        self.prober.start("e1", generation, role, target, probes, interval, 1.0)

    async def next(self) -> ProbeOutcome:
        return (await self.next_result())[3]

    async def next_result(self) -> Result:
        async with asyncio.timeout(5):
            return await self.results.get()

    async def silence(self, seconds: float) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.results.get()


@pytest.fixture
async def observer() -> AsyncIterator[Observer]:
    observer = Observer()
    yield observer
    observer.prober.close()


class Server:
    """An HTTP server that answers what `answer` says; None: nothing at all."""

    def __init__(self) -> None:
        self.answer: bytes | None = OK
        self.asked = 0
        self.connections = 0
        self.close_after = False
        self.event = asyncio.Event()
        self.port = 0
        self.open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.open[task] = writer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                while request.startswith(b"GET /stream"):
                    writer.write(b"data: token\n\n")
                    await writer.drain()
                    await asyncio.sleep(0.02)
                self.asked += 1
                self.event.set()
                self.event = asyncio.Event()
                if self.answer is not None:
                    writer.write(self.answer)
                if self.close_after:
                    break
        writer.close()
        del self.open[task]

    async def end(self) -> None:
        for writer in self.open.values():
            writer.transport.abort()
        if self.open:
            await asyncio.wait(list(self.open), timeout=5)

    async def asked_times(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.asked < count:
                await self.event.wait()


@asynccontextmanager
async def running(server: Server, port: int = 0) -> AsyncIterator[Target]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", port)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield Target(port=server.port)
    finally:
        listener.close()
        await server.end()


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def target(server: Server) -> AsyncIterator[Target]:
    async with running(server) as target:
        yield target


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert isinstance(port, int)
        return port


async def test_a_startup_succeeds_once_the_engine_listens(observer: Observer, server: Server) -> None:
    port = free_port()
    observer.start(STARTUP, Target(port=port), HEALTH)
    await until(lambda: observer.prober.last_detail("e1") is not None)
    assert f"GET /health at 127.0.0.1:{port}: connection refused" in (observer.prober.last_detail("e1") or "")
    async with running(server, port):
        assert await observer.next_result() == ("e1", 1, STARTUP, ProbeOutcome(True))
    assert observer.prober.last_detail("e1") is None
    await observer.silence(0.2)


async def test_startup_probes_are_asked_one_after_the_other(
    observer: Observer, server: Server, target: Target
) -> None:
    server.answer = BUSY
    observer.start(STARTUP, target, TcpProbe(), HEALTH, ExecProbe(("/bin/true",)))
    await server.asked_times(3)
    assert observer.results.empty()
    assert observer.prober.last_detail("e1") == "GET /health answered 503: loading"
    server.answer = OK
    assert (await observer.next()).ok


async def test_failures_are_reported_each_time_and_successes_once(
    observer: Observer, server: Server, target: Target
) -> None:
    observer.start(READINESS, target, HEALTH)
    assert (await observer.next_result()) == ("e1", 1, READINESS, ProbeOutcome(True))
    await server.asked_times(server.asked + 3)
    assert observer.results.empty()
    server.answer = BUSY
    failure = ProbeOutcome(False, "GET /health answered 503: loading")
    assert [await observer.next(), await observer.next()] == [failure, failure]
    server.answer = OK
    assert (await observer.next()).ok


async def test_one_connection_serves_many_asks(observer: Observer, server: Server, target: Target) -> None:
    observer.start(READINESS, target, HEALTH)
    await server.asked_times(4)
    assert server.connections == 1


async def test_a_server_that_closes_idle_connections_never_fails(
    observer: Observer, server: Server, target: Target
) -> None:
    server.close_after = True
    observer.start(READINESS, target, HEALTH)
    await server.asked_times(4)
    assert (await observer.next()).ok
    assert observer.results.empty()
    assert server.connections == 4


async def test_readiness_and_liveness_share_one_question(
    observer: Observer, server: Server, target: Target
) -> None:
    observer.start(READINESS, target, HEALTH)
    observer.start(LIVENESS, target, HEALTH)
    results = {(await observer.next_result())[2], (await observer.next_result())[2]}
    assert results == {READINESS, LIVENESS}
    assert server.asked == 1


@pytest.mark.parametrize("advancing", [True, False])
async def test_a_hung_engine_times_out_and_says_whether_it_advances(
    server: Server, target: Target, advancing: bool
) -> None:
    observer = Observer(advancing=lambda port, seconds: advancing and port == target.port)
    server.answer = None
    observer.start(LIVENESS, target, HttpProbe("/health", timeout=0.1))
    outcome = await observer.next()
    assert outcome == ProbeOutcome(
        False, f"GET /health at 127.0.0.1:{target.port} was not answered within 0.1 s", True, advancing
    )
    server.answer = OK
    while not (outcome := await observer.next()).ok:
        assert outcome.timed_out
    observer.prober.close()


async def test_a_stream_to_a_client_is_progress(server: Server, target: Target) -> None:
    observer = Observer()
    prober = Prober(lambda *result: observer.results.put_nowait(result))
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    server.answer = None
    writer.write(b"GET /stream HTTP/1.1\r\n\r\n")
    await reader.readuntil(b"\n\n")
    prober.start("e1", 1, LIVENESS, target, (HttpProbe("/", timeout=0.2),), 0.05, 1.0)
    assert (await observer.next()).advancing
    prober.close()
    writer.close()


async def test_nothing_of_a_stopped_probe_is_reported(
    observer: Observer, server: Server, target: Target
) -> None:
    server.answer = None
    observer.start(LIVENESS, target, HttpProbe("/", timeout=0.1))
    await server.asked_times(1)
    observer.prober.stop("e1")
    await observer.silence(0.3)


async def test_nothing_of_a_replaced_generation_is_reported(
    observer: Observer, server: Server, target: Target
) -> None:
    server.answer = None
    observer.start(READINESS, target, HttpProbe("/", timeout=0.1))
    await server.asked_times(1)
    server.answer = OK
    observer.start(LIVENESS, target, HEALTH, generation=2)
    assert await observer.next_result() == ("e1", 2, LIVENESS, ProbeOutcome(True))
    await observer.silence(0.3)


async def test_a_report_may_stop_the_prober(server: Server, target: Target) -> None:
    reported: list[ProbeRole] = []

    def on_result(key: str, generation: int, role: ProbeRole, outcome: ProbeOutcome) -> None:
        reported.append(role)
        prober.stop(key)

    prober = Prober(on_result)
    prober.start("e1", 1, READINESS, target, (HEALTH,), 0.05, 1.0)
    prober.start("e1", 1, LIVENESS, target, (HEALTH,), 0.05, 1.0)
    await server.asked_times(1)
    await asyncio.sleep(0.2)
    assert len(reported) == 1
    prober.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", "before its answer"),
    ],
)
async def test_garbage_and_half_answers_are_failures(
    observer: Observer, server: Server, target: Target, answer: bytes, why: str
) -> None:
    server.answer = answer
    server.close_after = True
    observer.start(READINESS, target, HEALTH)
    assert why in (await observer.next()).detail


async def test_localhost_is_found_on_either_address(observer: Observer, target: Target) -> None:
    observer.start(READINESS, Target("localhost", target.port), HEALTH)
    assert (await observer.next()).ok


async def test_a_host_that_means_nothing_and_a_missing_port_are_failures(observer: Observer) -> None:
    observer.start(READINESS, Target("no-such-host.invalid", 80), HEALTH)
    assert "cannot be resolved" in (await observer.next()).detail
    observer.start(READINESS, Target(), TcpProbe(), generation=2)
    assert "no port" in (await observer.next()).detail


async def test_a_tcp_probe_needs_somebody_who_listens(observer: Observer, target: Target) -> None:
    observer.start(READINESS, target, TcpProbe())
    assert (await observer.next()).ok
    port = free_port()
    observer.start(READINESS, Target(port=port), TcpProbe(), generation=2)
    assert (await observer.next()).detail.startswith(f"connecting to 127.0.0.1:{port}: connection refused")


async def test_an_exec_probe_runs_in_the_engines_environment(observer: Observer) -> None:
    target = Target(env={"PATH": "/bin:/usr/bin", "ANSWER": "no weights"}, cwd="/")
    observer.start(READINESS, target, ExecProbe(("sh", "-c", "pwd; echo $ANSWER; exit 3")))
    assert await observer.next() == ProbeOutcome(False, "sh: exit code 3: no weights")
    observer.start(READINESS, target, ExecProbe(("no-such-command",)), generation=2)
    assert "cannot run no-such-command" in (await observer.next()).detail
    observer.start(READINESS, target, ExecProbe(("true",)), generation=3)
    assert (await observer.next()).ok


async def test_an_exec_probe_over_its_time_is_killed(observer: Observer) -> None:
    target = Target(env={"PATH": "/bin:/usr/bin"})
    observer.prober.start("e1", 1, READINESS, target, (ExecProbe(("sleep", "60")),), 0.05, 0.1)
    outcome = await observer.next()
    assert outcome.timed_out
    assert outcome.detail == "the command sleep was not answered within 0.1 s"


async def test_a_notification_is_heard_at_once(observer: Observer) -> None:
    observer.start(STARTUP, Target(), NotifyProbe(), interval=60)
    await asyncio.sleep(0.01)
    observer.prober.notified("e1", 1, {"STATUS": "loading"})
    assert observer.results.empty()
    assert observer.prober.last_detail("e1") == "no READY=1 on its notify socket yet"
    observer.prober.notified("e1", 1, {"READY": "1"})
    assert await observer.next_result() == ("e1", 1, STARTUP, ProbeOutcome(True))
    observer.start(READINESS, Target(), NotifyProbe(), interval=0.05)
    assert (await observer.next()).ok
    observer.prober.notified("e1", 1, {"STOPPING": "1"})
    assert not (await observer.next()).ok


async def test_a_notification_before_the_probe_counts_and_one_of_another_start_does_not(
    observer: Observer,
) -> None:
    observer.prober.notified("e1", 1, {"READY": "1"})
    observer.start(READINESS, Target(), NotifyProbe(), generation=2)
    assert not (await observer.next()).ok
    observer.prober.notified("e1", 3, {"READY": "1"})
    observer.start(READINESS, Target(), NotifyProbe(), generation=3)
    assert await observer.next_result() == ("e1", 3, READINESS, ProbeOutcome(True))


async def test_an_adopted_engine_was_ready_before(observer: Observer) -> None:
    observer.prober.notified("e1", 1, {"WATCHDOG": "1"})
    observer.start(READINESS, Target(notify_state=lambda: True), NotifyProbe())
    assert (await observer.next()).ok


async def test_the_watchdog_wants_a_sign_within_each_interval(observer: Observer) -> None:
    observer.start(LIVENESS, Target(), NotifyProbe(), interval=0.1)
    assert (await observer.next()).ok
    outcome = await observer.next()
    assert "no WATCHDOG=1" in outcome.detail
    observer.prober.notified("e1", 1, {"WATCHDOG": "1"})
    assert (await observer.next()).ok


async def test_a_lack_of_descriptors_is_not_the_engines_failure(
    observer: Observer, server: Server, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("sagectl.system.http_probe.socket.socket", exhausted)
        observer.start(LIVENESS, target, HEALTH)
        await observer.silence(0.2)
    assert (await observer.next()).ok


async def test_nothing_stays_open_after_the_prober_is_closed(server: Server, target: Target) -> None:
    before = len(os.listdir("/proc/self/fd"))
    observer = Observer()
    for number in range(5):
        observer.prober.start(f"e{number}", 1, READINESS, target, (HEALTH,), 0.05, 1.0)
    await server.asked_times(5)
    observer.prober.close()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_two_hundred_engines_are_spread_over_the_interval(observer: Observer) -> None:
    begin = asyncio.get_running_loop().time()
    for number in range(200):
        observer.prober.start(f"e{number}", 1, READINESS, Target(port=1), (HEALTH,), 100.0, 1.0)
    moments = [due - begin for due, _, _ in observer.prober._due]
    per_tenth = [sum(tenth <= moment / 10 < tenth + 1 for moment in moments) for tenth in range(10)]
    assert max(per_tenth) <= 22
