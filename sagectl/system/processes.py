"""The engines' processes as the daemon sees them: through the shims, over connections that may break.

Nothing here waits: orders are sent, and what comes of them arrives as `ProcessEvents`. A connection
or a shim that is lost is replaced, and the shim's hello then tells what happened in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from sagectl.core.engine import Process
from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from sagectl.system import pidfile
from sagectl.system.shim_link import Link, Zygote, connect

PR_SET_CHILD_SUBREAPER = 36
HUNG = 5.0  # seconds without an answer after which a living shim is killed and replaced
ATTEMPTS = 5  # to reach a shim, before that counts as trouble
SWEEP = 10.0  # seconds between looks for zombies that nobody waits for


class ProcessEvents(Protocol):
    """What becomes of processes. Called on the event loop, never from within a method of Processes."""

    def spawned(self, name: str, generation: int, process: Process) -> None: ...
    def spawn_failed(self, name: str, generation: int, text: str) -> None: ...
    def exited(self, name: str, generation: int, status: ExitStatus, left: int) -> None: ...
    def tree_empty(self, name: str, generation: int) -> None: ...
    def stubborn(self, name: str, generation: int, pids: tuple[int, ...]) -> None: ...
    def notified(self, name: str, generation: int, fields: Mapping[str, str]) -> None: ...
    def log_trouble(self, name: str, text: str) -> None: ...
    def shim_replaced(self, name: str, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """A start of an engine.

    generation: higher than that of every earlier start of this name.
    env: complete; NOTIFY_SOCKET and SAGECTL_ENGINE are added.
    cwd: absolute. user: uid, gid, supplementary groups; None for the daemon's own.
    context: any JSON object; kept beside the process and handed back by `adopt`.
    """

    generation: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: tuple[int, int, tuple[int, ...]] | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    nice: int | None = None
    oom_score_adjust: int | None = None
    rlimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a whole tree uses. log_written, read_bytes: bytes since ever; read_bytes includes caches."""

    log_written: int
    rss_bytes: int
    read_bytes: int
    cpu_seconds: float
    processes: int


@dataclass(frozen=True, slots=True)
class Found:
    """What `adopt` found of one engine.

    generation: 0 where it was never started, or nothing usable is recorded.
    process: its living main process. exit: how that ended, if it did (perhaps unknown).
    left: living processes of its tree after the main process's end.
    same_boot: False where only a record of an earlier boot was there.
    """

    name: str
    generation: int
    process: Process | None
    exit: ExitStatus | None
    left: int
    ready: bool
    context: Mapping[str, Any]
    same_boot: bool


class Phase(Enum):
    """How far a generation is, as far as it was told to the events."""

    IDLE = 0  # nothing alive
    LAUNCHING = 1
    RUNNING = 2
    EXITED = 3  # the main process ended, others of the tree live


@dataclass(slots=True, eq=False)
class _Engine:
    """One engine's shim and what was told of it."""

    name: str
    directory: Path
    link: Link | None = None
    talking: bool = False  # its hello was read on this link
    hello: asyncio.Future[bool] | None = None
    reaching: asyncio.Task[None] | None = None
    shim_pid: int = 0
    shim_fd: int = -1
    trouble: str = ""  # why there is no shim
    generation: int = 0
    phase: Phase = Phase.IDLE
    process: Process | None = None
    exit: ExitStatus | None = None
    left: int = 0
    ready: bool = False
    order: LaunchOrder | None = None  # until it is answered
    context: Mapping[str, Any] | None = None
    backlog: list[dict[str, Any]] = field(default_factory=list)
    killing: bool = False
    releasing: bool = False
    adopting: bool = False


class Processes:
    """All engines' processes.

    runtime: the directory of PID files and shims; log_dir: of NAME.log.
    nofile: RLIMIT_NOFILE for engines, where the daemon raised its own.
    """

    def __init__(
        self,
        runtime: Path,
        log_dir: Path,
        events: ProcessEvents,
        *,
        log_max_bytes: int = 10 << 20,
        log_keep: int = 5,
        nofile: tuple[int, int] | None = None,
    ) -> None:
        self._directory = Path(os.path.abspath(runtime)) / "engines"
        self._log_dir = Path(os.path.abspath(log_dir))
        self._sink = events
        self._log_limits = {"max_bytes": log_max_bytes, "keep": log_keep}
        self._nofile = nofile
        self._engines: dict[str, _Engine] = {}
        self._held: list[Callable[[], None]] | None = None  # events during adoption
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._counter = 0
        self._zombies: dict[tuple[int, int], float] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._zygote: Zygote | None = None

    async def open(self) -> None:
        """Make the directories, become a subreaper, start the zygote. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._zygote = Zygote()
        self._sweep()

    async def close(self) -> None:
        """Let go of everything; shims and engines stay as they are."""
        tasks = [engine.reaching for engine in self._engines.values() if engine.reaching]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for engine in list(self._engines.values()):
            if engine.link:
                engine.link.close()
            if engine.shim_fd >= 0:
                self._loop.remove_reader(engine.shim_fd)
                os.close(engine.shim_fd)
        self._engines.clear()
        if self._sweeper:
            self._sweeper.cancel()
        if self._zygote:
            self._zygote.close()
            self._zygote = None

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's process id."""
        return self._zygote.pid if self._zygote else None

    def log_path(self, name: str) -> Path:
        """The engine's current log; older ones have .1, .2, … appended."""
        return self._log_dir / f"{name}.log"

    # --- Orders ---

    def launch(self, name: str, order: LaunchOrder) -> None:
        """Start a process. → spawned or spawn_failed; later exited."""
        engine = self._engines.setdefault(name, _Engine(name, self._directory / name))
        engine.order, engine.context = order, order.context
        engine.generation, engine.phase = order.generation, Phase.LAUNCHING
        engine.process, engine.exit, engine.killing = None, None, False
        engine.backlog.clear()
        if engine.talking and not engine.releasing:
            self._send_launch(engine)
        elif not engine.releasing:  # else the end of the old shim brings a new one
            self._reach(engine)

    def signal(self, name: str, generation: int, signum: int) -> None:
        """Signal the main process alone, if it is still of this generation."""
        engine = self._engines.get(name)
        message = {"op": "signal", "generation": generation, "signal": signum}
        if engine and engine.link and engine.talking:
            engine.link.send(message)
        elif engine and engine.generation == generation:
            engine.backlog.append(message)

    def kill_tree(self, name: str, generation: int) -> None:
        """SIGKILL everything in the tree until nothing is left. → exited if need be, then tree_empty."""
        engine = self._engines.get(name)
        if engine is None or (engine.phase is Phase.IDLE and engine.generation != generation):
            self._loop.call_soon(self._emit, lambda: self._sink.tree_empty(name, generation))
        elif engine.generation == generation:
            engine.killing = True
            if engine.link and engine.talking:
                engine.link.send({"op": "kill-tree", "generation": generation})
            else:
                self._reach(engine)

    def update_context(self, name: str, context: Mapping[str, Any]) -> None:
        """Replace the context that `adopt` will hand back."""
        engine = self._engines.get(name)
        if engine:
            engine.context = context
            if engine.link and engine.talking:
                engine.link.send({"op": "context", "context": context})

    def release(self, name: str) -> None:
        """The engine is down and stays down: its shim and its runtime directory may go."""
        engine = self._engines.get(name)
        if engine and engine.link and engine.talking and engine.phase is Phase.IDLE:
            engine.releasing = True
            engine.link.send({"op": "end"})

    async def measure(self, name: str, generation: int) -> Measurement | None:
        """What the tree uses; None where nobody can tell now."""
        answer = await self._ask(name, {"op": "measure", "generation": generation})
        if answer is None or answer["generation"] != generation:
            return None
        return Measurement(
            log_written=answer["log_written"],
            rss_bytes=answer["rss_bytes"],
            read_bytes=answer["read_bytes"],
            cpu_seconds=answer["cpu_seconds"],
            processes=answer["processes"],
        )

    async def pids(self, name: str) -> tuple[int, ...]:
        """The living processes of the tree; () where nobody can tell now."""
        answer = await self._ask(name, {"op": "pids"})
        return tuple(answer["pids"]) if answer else ()

    async def _ask(self, name: str, question: dict[str, Any]) -> dict[str, Any] | None:
        engine = self._engines.get(name)
        if engine is None or engine.link is None or not engine.talking:
            return None
        self._counter += 1
        number = self._counter
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._asked[number] = answer
        engine.link.send({**question, "id": number})
        try:
            async with asyncio.timeout(HUNG):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    # --- Adoption ---

    async def adopt(self) -> list[Found]:
        """Find what an earlier daemon left. Events of it come only after this has returned."""
        self._held = []
        for entry in self._directory.glob("*.pid"):
            if not entry.with_suffix("").is_dir():
                entry.unlink(missing_ok=True)
        names = sorted(entry.name for entry in self._directory.iterdir() if entry.is_dir())
        try:
            found = await asyncio.gather(*(self._adopt(name) for name in names))
        finally:
            held, self._held = self._held, None
            for event in held:
                self._loop.call_soon(event)
        return [one for one in found if one]

    async def _adopt(self, name: str) -> Found | None:
        directory = self._directory / name
        started = pidfile.read_started(directory)
        if started and started["boot_id"] != pidfile.boot_id():
            (self._directory / f"{name}.pid").unlink(missing_ok=True)
            noted = pidfile.read_exit(directory)
            status = pidfile.exit_of(noted) if noted.get("generation") == started["generation"] else None
            context = started.get("context") or {}
            return Found(name, started["generation"], None, status, 0, False, context, False)
        engine = self._engines[name] = _Engine(name, directory, adopting=True)
        self._reach(engine)
        assert engine.reaching
        await asyncio.wait([engine.reaching])
        engine.adopting = False
        if not engine.generation:
            self.release(name)
            return None
        started = pidfile.read_started(directory)
        current = started.get("generation") == engine.generation
        engine.context = (started.get("context") if current else None) or {}
        return Found(
            name=name,
            generation=engine.generation,
            process=engine.process,
            exit=engine.exit,
            left=engine.left,
            ready=engine.ready,
            context=engine.context,
            same_boot=True,
        )

    def _take_over(self, engine: _Engine, hello: Mapping[str, Any]) -> None:
        """What a shim that we did not start has to tell."""
        engine.generation, engine.left = hello["generation"], hello["left"]
        engine.process = pidfile.process_of(hello["engine"])
        engine.exit, engine.ready = pidfile.exit_of(hello["exit"]), hello["ready"]
        if engine.process:
            engine.phase = Phase.RUNNING
        else:
            engine.phase = Phase.EXITED if engine.left else Phase.IDLE

    def reap(self) -> None:
        """Reap our zombie children that nobody has waited for in a while: orphans of dead shims."""
        now, seen = self._loop.time(), dict[tuple[int, int], float]()
        for pid in tree.children(os.getpid()):
            fields = tree.process_stat(pid)
            if not fields or tree.alive(fields):
                continue
            since = self._zombies.get((pid, int(fields[19])), now)
            seen[pid, int(fields[19])] = since
            if now - since >= SWEEP / 2:
                _reap(os.P_PID, pid)
        self._zombies = seen

    def _sweep(self) -> None:
        self.reap()
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)

    # --- Shims: making, losing and finding them again ---

    def _reach(self, engine: _Engine) -> None:
        """See that a shim is there, and that we talk with it."""
        if engine.reaching is None:
            engine.reaching = self._loop.create_task(self._until_greeted(engine))

            def done(task: asyncio.Task[None]) -> None:
                engine.reaching = None
                if not engine.talking and not task.cancelled() and engine.phase is not Phase.IDLE:
                    self._reach(engine)  # it was lost again, or is needed again, just now

            engine.reaching.add_done_callback(done)

    async def _until_greeted(self, engine: _Engine) -> None:
        """Connect to the living shim, else have one made that takes over what lives."""
        attempts = 0
        while True:
            engine.hello = self._loop.create_future()
            if not self._connect(engine):
                self._spawn(engine)
            try:
                async with asyncio.timeout(HUNG):
                    if await engine.hello:
                        return
            except TimeoutError:
                self._kill_hung(engine)
            attempts += 1
            if attempts >= ATTEMPTS and self._give_up(engine):
                return
            await asyncio.sleep(0.01 if attempts < ATTEMPTS else 1.0)

    def _connect(self, engine: _Engine) -> bool:
        if engine.shim_fd >= 0 and tree.has_ended(engine.shim_fd):
            return False
        try:
            self._attach(engine, connect(engine.directory))
        except OSError:
            return False
        return True

    def _spawn(self, engine: _Engine) -> None:
        assert self._zygote
        ours, theirs = socket.socketpair()
        self._attach(engine, ours)
        order = {
            "name": engine.name,
            "dir": str(engine.directory),
            "log": {"path": str(self.log_path(engine.name)), **self._log_limits},
            "mode": "adopt" if engine.directory.exists() else "new",
        }
        self._zygote.spawn(order, theirs)

    def _attach(self, engine: _Engine, sock: socket.socket) -> None:
        if engine.link:
            engine.link.close()
        engine.talking = False
        engine.link = Link(sock, lambda message: self._receive(engine, message), lambda: self._lost(engine))

    def _lost(self, engine: _Engine) -> None:
        """The connection is gone, and perhaps the shim with it."""
        engine.link, engine.talking = None, False
        if engine.hello and not engine.hello.done():
            engine.hello.set_result(False)
        if engine.releasing:
            engine.releasing = False
            self._forget_shim(engine)
            if engine.order is None:
                self._engines.pop(engine.name, None)
                return
        if engine.phase is not Phase.IDLE or engine.killing:
            self._reach(engine)

    def _forget_shim(self, engine: _Engine) -> None:
        if engine.shim_fd >= 0:
            self._loop.remove_reader(engine.shim_fd)
            _reap(os.P_PIDFD, engine.shim_fd)  # ours only if its zygote died before it
            os.close(engine.shim_fd)
        engine.shim_fd, engine.shim_pid = -1, 0

    def _shim_died(self, engine: _Engine) -> None:
        self._loop.remove_reader(engine.shim_fd)
        if engine.link and engine.talking:
            engine.link.close()
            self._lost(engine)

    def _kill_hung(self, engine: _Engine) -> None:
        """A shim that does not answer (stopped, say) is worth less than a new one that adopts."""
        pid, _, since = (engine.directory / "shim.lock").read_text().strip().partition(" ")
        if pid.isdecimal() and since.isdecimal():
            tree.kill_verified(int(pid), int(since), signal.SIGKILL)

    def _give_up(self, engine: _Engine) -> bool:
        """After too many attempts: a launch fails, an adoption goes on, a living engine is not left alone."""
        text = engine.trouble or f"its shim ends at once (see {engine.directory}/shim.crash)"
        if engine.phase is Phase.LAUNCHING and not engine.adopting:
            engine.phase, engine.order = Phase.IDLE, None
            self._emit(lambda: self._sink.spawn_failed(engine.name, engine.generation, text))
            return True
        self._emit(lambda: self._sink.log_trouble(engine.name, text))
        return engine.adopting

    # --- What shims tell ---

    def _emit(self, event: Callable[[], None]) -> None:
        if self._held is None:
            event()
        else:
            self._held.append(event)

    def _send_launch(self, engine: _Engine) -> None:
        order = engine.order
        assert engine.link
        assert order
        limits = {"nofile": self._nofile, **order.rlimits} if self._nofile else dict(order.rlimits)
        engine.link.send(
            {
                "op": "launch",
                "generation": order.generation,
                "argv": order.argv,
                "env": dict(order.env),
                "cwd": order.cwd,
                "user": order.user,
                "nice": order.nice,
                "oom_score_adjust": order.oom_score_adjust,
                "rlimits": limits,
                "context": dict(engine.context or {}),
            }
        )

    def _receive(self, engine: _Engine, message: dict[str, Any]) -> None:
        name, op, generation = engine.name, message["op"], message.get("generation")
        if op == "hello":
            self._on_hello(engine, message)
        elif op in ("measured", "pids"):
            answer = self._asked.get(message["id"])
            if answer and not answer.done():
                answer.set_result(message)
        elif op == "log-trouble":
            self._emit(lambda: self._sink.log_trouble(name, message["text"]))
        elif op == "fatal":
            engine.trouble = message["text"]
        elif generation == engine.generation:
            self._receive_current(engine, generation, message)

    def _receive_current(self, engine: _Engine, generation: int, message: dict[str, Any]) -> None:
        name, op = engine.name, message["op"]
        if op == "started":
            self._on_started(engine, message)
        elif op == "refused" and engine.phase is Phase.LAUNCHING:
            self._on_refused(engine, message["text"])
        elif op == "exited":
            self._on_exited(engine, message, message["left"])
        elif op == "tree-empty":
            self._on_empty(engine)
        elif op == "stubborn":
            self._emit(lambda: self._sink.stubborn(name, generation, tuple(message["pids"])))
        elif op == "notify":
            self._emit(lambda: self._sink.notified(name, generation, message["fields"]))

    def _on_started(self, engine: _Engine, record: Mapping[str, Any]) -> None:
        process, generation = pidfile.process_of(record), engine.generation
        assert process
        engine.process, engine.phase, engine.order = process, Phase.RUNNING, None
        self._emit(lambda: self._sink.spawned(engine.name, generation, process))

    def _on_refused(self, engine: _Engine, text: str) -> None:
        generation, engine.phase, engine.order = engine.generation, Phase.IDLE, None
        self._emit(lambda: self._sink.spawn_failed(engine.name, generation, text))

    def _on_exited(self, engine: _Engine, record: Mapping[str, Any], left: int) -> None:
        generation, status = engine.generation, pidfile.exit_of(record) or ExitStatus()
        if engine.process:
            _reap(os.P_PID, engine.process.pid)  # ours only if its shim died before it
        engine.process, engine.exit, engine.left = None, status, left
        engine.phase = Phase.EXITED if left else Phase.IDLE
        self._emit(lambda: self._sink.exited(engine.name, generation, status, left))

    def _on_empty(self, engine: _Engine) -> None:
        generation, engine.phase, engine.killing = engine.generation, Phase.IDLE, False
        self._emit(lambda: self._sink.tree_empty(engine.name, generation))

    def _on_hello(self, engine: _Engine, hello: dict[str, Any]) -> None:
        name, pid = engine.name, hello["shim_pid"]
        if engine.shim_pid and pid != engine.shim_pid:
            text = f"its shim {engine.shim_pid} died; shim {pid} took over"
            self._emit(lambda: self._sink.shim_replaced(name, text))
        if pid != engine.shim_pid:
            self._forget_shim(engine)
            with contextlib.suppress(OSError):  # it died meanwhile: the link's end tells
                engine.shim_fd, engine.shim_pid = os.pidfd_open(pid), pid
                self._loop.add_reader(engine.shim_fd, self._shim_died, engine)
        engine.talking = True
        if hello["log"]["trouble"]:
            self._emit(lambda: self._sink.log_trouble(name, hello["log"]["trouble"]))
        if engine.adopting:
            self._take_over(engine, hello)
        else:
            self._catch_up(engine, hello)
        if engine.hello and not engine.hello.done():
            engine.hello.set_result(True)

    def _catch_up(self, engine: _Engine, hello: dict[str, Any]) -> None:
        """Tell what happened while there was no connection, and say again what may not have arrived."""
        assert engine.link
        current = hello["generation"] == engine.generation
        running, ended, left = hello["engine"], hello["exit"] or {}, hello["left"]
        if engine.phase is Phase.LAUNCHING:
            started = running or pidfile.read_started(engine.directory)
            if not current:
                self._send_launch(engine)
            elif started.get("pid"):
                self._on_started(engine, started)
            else:  # killed between starting it and noting that: it cannot be told from its children
                engine.link.send({"op": "kill-tree", "generation": engine.generation})
                self._on_refused(engine, "its shim was killed while it started")
        if engine.phase is Phase.RUNNING and not running:
            self._on_exited(engine, ended if current else {}, left if current else 0)
        elif engine.phase is Phase.EXITED and not (current and left):
            self._on_empty(engine)
        if engine.context is not None and current:
            engine.link.send({"op": "context", "context": dict(engine.context)})
        for message in engine.backlog:
            engine.link.send(message)
        engine.backlog.clear()
        if engine.killing:
            engine.link.send({"op": "kill-tree", "generation": engine.generation})


def _reap(kind: int, number: int) -> None:
    """Reap this child if it is one of ours and has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(kind, number, os.WEXITED | os.WNOHANG)
