"""Real processes under real shims, for tests: `Machine` makes daemons over one directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sagectl.core.engine import Process
from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from sagectl.system import groups
from sagectl.system.processes import Found, LaunchOrder, Processes

T = TypeVar("T")
SLEEP = ("/bin/sleep", "1000")
HOSTILE = r"""
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
def child(depth):
    if os.fork() == 0:
        os.setsid()
        if depth % 2:
            if os.fork():            # double-forked: its parent goes
                os._exit(0)
        if depth:
            child(depth - 1)
            child(depth - 1)
        if depth == 0:
            os.execve("/bin/sleep", ["sleep", "1000"], {})  # without a mark
        time.sleep(1000)
        os._exit(0)
for _ in range(4):
    child(4)
print("up", flush=True)
time.sleep(1000)
"""


class Events:
    """Collects what Processes tells."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.seen: list[tuple[Any, ...]] = []

    def _put(self, *event: Any) -> None:
        self.seen.append(event)
        self.queue.put_nowait(event)

    def spawned(self, name: str, generation: int, process: Process) -> None:
        self._put("spawned", name, generation, process)

    def spawn_failed(self, name: str, generation: int, text: str) -> None:
        self._put("spawn_failed", name, generation, text)

    def exited(self, name: str, generation: int, status: ExitStatus, left: int) -> None:
        self._put("exited", name, generation, status, left)

    def tree_empty(self, name: str, generation: int) -> None:
        self._put("tree_empty", name, generation)

    def stubborn(self, name: str, generation: int, pids: tuple[int, ...]) -> None:
        self._put("stubborn", name, generation, pids)

    def notified(self, name: str, generation: int, fields: Mapping[str, str]) -> None:
        self._put("notified", name, generation, dict(fields))

    def log_trouble(self, name: str, text: str) -> None:
        self._put("log_trouble", name, text)

    def shim_replaced(self, name: str, text: str) -> None:
        self._put("shim_replaced", name, text)

    async def next(self, kind: str) -> tuple[Any, ...]:
        """The next event, which must be of this kind; its arguments after the name."""
        async with asyncio.timeout(15):
            event = await self.queue.get()
        assert event[0] == kind, event
        return event[2:]

    async def until(self, kind: str) -> tuple[Any, ...]:
        """The next event of this kind, whatever comes before."""
        async with asyncio.timeout(15):
            while True:
                event = await self.queue.get()
                if event[0] == kind:
                    return event[2:]


class Machine:
    """Processes over a directory, and as many daemons one after the other as a test wants."""

    def __init__(self, home: Path, **limits: Any) -> None:
        self.home, self.limits = home, limits
        self.run, self.log = home / "run", home / "log"
        self.generation = 0
        self.events = Events()
        self.processes = Processes(self.run, self.log, self.events, **limits)

    def order(self, *argv: str, **changes: Any) -> LaunchOrder:
        self.generation += 1
        env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        values: dict[str, Any] = {"argv": argv, "env": env, "cwd": "/", "context": {"of": "a test"}}
        return LaunchOrder(generation=self.generation, **(values | changes))

    async def start(self, *argv: str, **changes: Any) -> Process:
        self.processes.launch("chat", self.order(*argv, **changes))
        return (await self.events.until("spawned"))[1]

    async def lose_daemon(self) -> None:
        """As if the daemon had been killed: its connections just close."""
        await self.processes.close()

    async def new_daemon(self) -> list[Found]:
        self.events = Events()
        self.processes = Processes(self.run, self.log, self.events, **self.limits)
        await self.processes.open()
        return await self.processes.adopt()

    def shim(self, name: str = "chat") -> int:
        return int((self.run / "engines" / name / "shim.lock").read_text().split()[0])

    def pid_file(self) -> Path:
        return self.run / "engines" / "chat.pid"

    async def wrote(self, text: str) -> str:
        """The log, as soon as `text` is in it."""
        await eventually(lambda: text in self.text())
        return self.text()

    async def grown(self, count: int) -> tuple[int, ...]:
        """The tree's processes, as soon as there are so many."""
        async with asyncio.timeout(20):
            while True:
                pids = await self.processes.pids("chat")
                if len(pids) >= count:
                    return pids

    def text(self) -> str:
        path = self.log / "chat.log"
        return path.read_text(errors="replace") if path.exists() else ""


async def eventually(condition: Callable[[], T], seconds: float = 10.0) -> T:
    """The condition's first true value: for what no event announces."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        await asyncio.sleep(0.005)
    raise AssertionError("it never became true")


@contextlib.asynccontextmanager
async def running(home: Path, **limits: Any) -> AsyncIterator[Machine]:
    """A machine on which nothing may be left after the test."""
    it = Machine(home, **limits)
    await it.processes.open()
    try:
        yield it
    finally:
        await tidy(it)
        leave_no_group(it.run)


def leave_no_group(run: Path) -> None:
    """Remove the control groups of a home that is gone."""
    if (root := groups.mount()) is not None:
        groups.remove(root / groups.name_of(Path(os.path.abspath(run)) / "engines"))


async def tidy(it: Machine) -> None:
    await it.processes.close()
    for found in await it.new_daemon():
        it.processes.kill_tree(found.name, found.generation)
        await it.events.until("tree_empty")
        it.processes.release(found.name)
    await eventually(lambda: not list((it.run / "engines").glob("*/shim.sock")))
    await it.processes.close()
    assert processes_of(it) == []


def processes_of(it: Machine) -> list[int]:
    """Whoever carries the mark of the engine `chat`.

    For an instant after its exec began a process has no environment at all: none is looked for twice.
    """
    for _ in range(2):
        marked = tree.marked(str(it.run / "engines" / "chat"), -1, 0)
        if found := [pid for pid, generation in marked.items() if generation]:
            return found
        time.sleep(0.01)
    return []


def is_gone(pid: int) -> bool:
    fields = tree.process_stat(pid)
    return fields is None or not tree.alive(fields)
