"""One engine's processes as the daemon follows them: what was ordered, what is known, what was told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from sagectl.core.engine import Process
from sagectl.plugin import ExitStatus
from sagectl.system import pidfile
from sagectl.system.shim_keeper import ShimKeeper, reap


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
    rlimits: (soft, hard) by the lower-case name behind RLIMIT_, such as `nofile`; -1 for unlimited.
        What cannot be set as it is wanted here, or in the next three, is a failed start.
    memory_max: bytes; cpu_weight: 1 to 10000. Both only where control groups have the controllers.
    nofile: the same for open files where `rlimits` does not say, as far as the shim may.
    """

    generation: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: tuple[int, int, tuple[int, ...]] | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    rlimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    nice: int | None = None
    oom_score_adjust: int | None = None
    cpu_affinity: tuple[int, ...] | None = None
    nofile: tuple[int, int] | None = None
    memory_max: int | None = None
    cpu_weight: int | None = None


class Phase(Enum):
    """How far a generation is, as far as it was told to the events."""

    IDLE = 0  # nothing alive
    LAUNCHING = 1
    RUNNING = 2
    EXITED = 3  # the main process ended, others of the tree live


class Supervised:
    """Owner of one engine's `ShimKeeper`.

    emit: passes an event on, now or later. gone: called when the shim left on our word.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        sink: ProcessEvents,
        emit: Callable[[Callable[[], None]], None],
        gone: Callable[[Supervised], None],
    ) -> None:
        self.name, self.directory = name, directory
        self._sink, self._emit, self._gone = sink, emit, gone
        self.shim: ShimKeeper
        self.generation = 0
        self.phase = Phase.IDLE
        self.process: Process | None = None
        self.exit: ExitStatus | None = None
        self.left = 0
        self.ready = False
        self.adopting = False  # what hello tells is taken over, not told
        self.releasing = False  # the shim was told to end, or will be
        self.begun = False  # a shim was there: something may live, whatever became of the files
        self.context: Mapping[str, Any] | None = None
        self._order: LaunchOrder | None = None  # until it is answered
        self._killing = False
        self._backlog: list[dict[str, Any]] = []
        self._asked: dict[int, asyncio.Future[dict[str, Any] | None]] = {}
        self._questions = 0

    # --- Orders ---

    def launch(self, order: LaunchOrder) -> None:
        """→ spawned or spawn_failed."""
        self._order, self.context = order, order.context
        self.generation, self.phase = order.generation, Phase.LAUNCHING
        self.process, self.exit, self._killing = None, None, False
        self._backlog.clear()
        if self.releasing:
            return  # the end of the old shim brings a new one
        if self.shim.talking:
            self.shim.send(self._launch_message(order))
        else:
            self.shim.reach()

    def signal(self, generation: int, number: int) -> None:
        """To the main process alone; what cannot be sent now is kept."""
        self.wake()
        message = {"op": "signal", "generation": generation, "signal": number}
        if not self.shim.send(message) and generation == self.generation:
            self._backlog.append(message)

    def kill_tree(self, generation: int) -> bool:
        """→ tree_empty. False where there is nothing that this could concern."""
        if generation == self.generation:
            self._killing = True
            self.wake()
            if not self.shim.send({"op": "kill-tree", "generation": generation}):
                self.shim.reach()
            return True
        return self.phase is not Phase.IDLE

    def wake(self) -> None:
        """Its shim sees nothing and does nothing while somebody keeps it stopped."""
        if self.shim.wake():
            text = f"its shim {self.shim.pid} was stopped by a signal; it was continued"
            self._emit(lambda: self._sink.shim_replaced(self.name, text))

    def update_context(self, context: Mapping[str, Any]) -> None:
        """Keep this beside the process."""
        self.context = context
        self.shim.send({"op": "context", "context": dict(context)})

    def release(self) -> None:
        """Have the shim end, if nothing is alive."""
        if self.phase is Phase.IDLE:
            self.releasing, self._order = True, None
            if not self.shim.send({"op": "end"}):
                self.shim.reach()

    async def ask(self, op: str, seconds: float) -> dict[str, Any] | None:
        """The shim's answer to a question; None where none comes in time, or its connection is lost."""
        self._questions += 1
        number = self._questions
        if not self.shim.send({"op": op, "id": number}):
            return None
        self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                return await self._asked[number]
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def _launch_message(self, order: LaunchOrder) -> dict[str, Any]:
        return {
            "op": "launch",
            "generation": order.generation,
            "argv": order.argv,
            "env": dict(order.env),
            "cwd": order.cwd,
            "user": order.user,
            "rlimits": dict(order.rlimits),
            "nice": order.nice,
            "oom_score_adjust": order.oom_score_adjust,
            "cpu_affinity": order.cpu_affinity,
            "nofile": order.nofile,
            "memory_max": order.memory_max,
            "cpu_weight": order.cpu_weight,
            "context": dict(self.context or {}),
        }

    # --- What the shim tells ---

    def received(self, message: dict[str, Any]) -> None:
        """A message of the shim."""
        name, op, generation = self.name, message["op"], message.get("generation")
        if op in ("measured", "pids"):
            answer = self._asked.get(message["id"])
            if answer and not answer.done():
                answer.set_result(message)
        elif op == "log-trouble":
            self._emit(lambda: self._sink.log_trouble(name, message["text"]))
        elif op == "refused" and self.releasing:
            self._not_released(generation or 0)
        elif op == "tree-empty" and self.releasing:
            self.shim.send({"op": "end"})
        elif generation == self.generation:
            self._received_current(generation, message)

    def _not_released(self, generation: int) -> None:
        """Its shim says that something of it lives, which we took for gone: that is ended, then the shim."""
        if self._order:
            self.releasing = False
            self.shim.send(self._launch_message(self._order))
        else:
            self.shim.send({"op": "kill-tree", "generation": max(generation, self.generation)})

    def _received_current(self, generation: int, message: dict[str, Any]) -> None:
        name, op = self.name, message["op"]
        if op == "started":
            self._on_started(message)
        elif op == "refused" and self.phase is Phase.LAUNCHING:
            self._on_refused(message["text"])
        elif op == "exited":
            self._on_exited(message, message["left"])
        elif op == "tree-empty":
            self._on_empty()
        elif op == "stubborn":
            self._emit(lambda: self._sink.stubborn(name, generation, tuple(message["pids"])))
        elif op == "notify":
            if message["fields"].get("READY") == "1" or message["fields"].get("STOPPING") == "1":
                self.ready = "STOPPING" not in message["fields"]
            self._emit(lambda: self._sink.notified(name, generation, message["fields"]))

    def _on_started(self, record: Mapping[str, Any]) -> None:
        process, generation = pidfile.process_of(record), self.generation
        assert process
        self.process, self.phase, self._order, self.ready = process, Phase.RUNNING, None, False
        self._emit(lambda: self._sink.spawned(self.name, generation, process))

    def _on_refused(self, text: str) -> None:
        generation, self.phase, self._order = self.generation, Phase.IDLE, None
        self._emit(lambda: self._sink.spawn_failed(self.name, generation, text))

    def _on_exited(self, record: Mapping[str, Any], left: int) -> None:
        generation, status = self.generation, pidfile.exit_of(record) or ExitStatus()
        if self.process:
            reap(os.P_PID, self.process.pid)  # ours only if its shim died before it
        self.process, self.exit, self.left = None, status, left
        self.phase = Phase.EXITED if left else Phase.IDLE
        self._emit(lambda: self._sink.exited(self.name, generation, status, left))

    def _on_empty(self) -> None:
        generation, self.phase, self._killing = self.generation, Phase.IDLE, False
        self._emit(lambda: self._sink.tree_empty(self.name, generation))

    # --- Meeting and losing shims ---

    def made(self) -> None:
        """The order goes along with the shim's making, which spares a greeting's way there and back."""
        self.begun = True
        if self._order and not self.releasing and not self.adopting:
            self.shim.order(self._order.generation, self._launch_message(self._order))

    def greeted(self, hello: dict[str, Any], replaced: int) -> None:
        """A shim said hello, perhaps in place of a dead one."""
        name, pid, trouble = self.name, hello["shim_pid"], hello["log"]["trouble"]
        self.begun = True
        if replaced:
            text = f"its shim {replaced} died; shim {pid} took over"
            self._emit(lambda: self._sink.shim_replaced(name, text))
        if trouble:
            self._emit(lambda: self._sink.log_trouble(name, trouble))
        if self.releasing:
            self.shim.send({"op": "end"})
        elif self.adopting:
            self._take_over(hello)
        else:
            self._catch_up(hello)

    def _take_over(self, hello: Mapping[str, Any]) -> None:
        """What a shim that we did not start has to tell."""
        self.generation, self.left, self.ready = hello["generation"], hello["left"], hello["ready"]
        self.process, self.exit = pidfile.process_of(hello["engine"]), pidfile.exit_of(hello["exit"])
        if self.process:
            self.phase = Phase.RUNNING
        else:
            self.phase = Phase.EXITED if self.left else Phase.IDLE

    def _catch_up(self, hello: Mapping[str, Any]) -> None:
        """Tell what happened while there was no connection, and say again what may not have arrived."""
        current = hello["generation"] == self.generation
        running, ended, left = hello["engine"], hello["exit"] or {}, hello["left"]
        if self.phase is Phase.LAUNCHING:
            started = running or pidfile.read_started(self.directory)
            if not current and self._order:
                if self.shim.ordered != self.generation:  # else it is about to read it
                    self.shim.send(self._launch_message(self._order))
            elif started.get("generation", self.generation) == self.generation and started.get("pid"):
                self._on_started(started)
            else:  # killed between starting it and noting that: it cannot be told from its children
                self.shim.send({"op": "kill-tree", "generation": self.generation})
                self._on_refused("its shim was killed while it started")
        if self.phase is Phase.RUNNING and not running:
            self._on_exited(ended if current else {}, left if current else 0)
        elif self.phase is Phase.EXITED and not (current and left):
            self._on_empty()
        if self.context is not None and current:
            self.shim.send({"op": "context", "context": dict(self.context)})
        for message in self._backlog:
            self.shim.send(message)
        self._backlog.clear()
        if self._killing:
            self.shim.send({"op": "kill-tree", "generation": self.generation})

    def lost(self) -> bool:
        """The connection is gone, and perhaps the shim with it."""
        for question in self._asked.values():
            if not question.done():
                question.set_result(None)
        if self.releasing:
            self.releasing = self.begun = False
            self.shim.forget()
            if self._order is None:
                self._gone(self)
                return False
        return self.phase is not Phase.IDLE or self._killing

    def unreachable(self, text: str) -> bool:
        """A launch fails, an adoption goes on without; a living engine is not left alone."""
        if self.phase is Phase.LAUNCHING and not self.adopting:
            self._on_refused(text)
            return True
        self._emit(lambda: self._sink.log_trouble(self.name, text))
        return self.adopting or self.releasing
