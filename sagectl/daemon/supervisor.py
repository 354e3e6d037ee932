"""The only writer of engine state: one queue, one reducer, no locks.

Everything that happens to an engine is posted here as an event. A turn takes the queued events in
order, replaces the engine by what `lifecycle.step` answers, hands the actions to the effects, and
afterwards persists and publishes what changed. Effects that answer at once post back into the same
turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from sagectl.core import dependencies, lifecycle
from sagectl.core.actions import Action, AwaitDependencies, Forget, Record
from sagectl.core.engine import Desired, Engine, Moment, State, Sub
from sagectl.core.events import DependenciesReady, DependenciesWaiting, Event
from sagectl.system.journal import Journal

log = logging.getLogger("sagectl.supervisor")


class Effects(Protocol):
    """Whoever carries out actions. It never raises for what an engine or the machine did wrong."""

    def perform(self, engine: Engine, action: Action) -> None: ...


class Keeper(Protocol):
    """Whoever persists engines."""

    def keep(self, engine: Engine) -> None: ...

    def drop(self, engine: Engine) -> None: ...


class Supervisor:
    """Holds the engines. All methods belong to the event loop's thread."""

    def __init__(self, clock: Callable[[], Moment], keeper: Keeper, journal: Journal) -> None:
        self.effects: Effects | None = None
        self._clock = clock
        self._keeper = keeper
        self._journal = journal
        self._engines: dict[str, Engine] = {}
        self._names: dict[str, str] = {}
        self._waiting: set[str] = set()
        self._queue: deque[tuple[str, Event]] = deque()
        self._turning = False
        self._changed: dict[str, None] = {}
        self._waiters: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self.watchers: list[Callable[[Engine], None]] = []
        """Told of each engine whose state or substate changed."""

    # --- Reading --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Engine]:
        return iter(sorted(self._engines.values(), key=lambda engine: engine.name))

    def get(self, engine_id: str) -> Engine | None:
        """The engine with this id."""
        return self._engines.get(engine_id)

    def named(self, name: str) -> Engine | None:
        """The engine with this name."""
        engine_id = self._names.get(name)
        return None if engine_id is None else self._engines[engine_id]

    def up(self) -> Mapping[str, bool]:
        """For each engine by name, whether those that depend on it may start."""
        return {engine.name: engine.done for engine in self._engines.values()}

    # --- Writing --------------------------------------------------------------------------------

    def add(self, engine: Engine) -> None:
        """Take in an engine, restored or new."""
        self._engines[engine.id] = engine
        self._names[engine.name] = engine.id
        self._note(engine)
        if not self._turning:
            self._publish()

    def assign_port(self, engine_id: str, port: int | None) -> None:
        """Note the port that was chosen for an engine, before its preflight passed."""
        self._engines[engine_id] = replace(self._engines[engine_id], port=port)
        self._changed[engine_id] = None

    def post(self, engine_id: str, event: Event) -> None:
        """Something happened. Handled before this returns, unless a turn is under way already."""
        self._queue.append((engine_id, event))
        if self._turning:
            return
        self._turning = True
        try:
            while self._queue:
                self._apply(*self._queue.popleft())
                if not self._queue:
                    self._look_at_dependents()
        finally:
            self._turning = False
            self._publish()

    def _apply(self, engine_id: str, event: Event) -> None:
        before = self._engines.get(engine_id)
        if before is None:
            return
        after, actions = lifecycle.step(before, event, self._clock())
        if after is not before:
            self._engines[engine_id] = after
            self._note(after)
        for action in actions:
            self._perform(after, action)
        if (after.state, after.sub) != (before.state, before.sub):
            for told in self.watchers:
                told(after)
            self._journal.record(
                after.name, after.id, "state", after.reason, "debug", after.state.value, after.substate
            )

    def _note(self, engine: Engine) -> None:
        self._changed[engine.id] = None
        if engine.sub is Sub.QUEUED and not engine.memory_wanted:
            self._waiting.add(engine.id)
        else:
            self._waiting.discard(engine.id)

    def _perform(self, engine: Engine, action: Action) -> None:
        match action:
            case Record():
                self._journal.record(
                    engine.name,
                    engine.id,
                    action.kind,
                    action.text,
                    action.level,
                    engine.state.value,
                    engine.substate,
                )
            case Forget():
                del self._engines[engine.id]
                del self._names[engine.name]
                self._changed.pop(engine.id, None)
                self._waiting.discard(engine.id)
                self._keeper.drop(engine)
                self._carry_out(engine, action)
            case AwaitDependencies():
                pass  # every turn looks at those that wait
            case _:
                self._carry_out(engine, action)

    def _carry_out(self, engine: Engine, action: Action) -> None:
        assert self.effects is not None
        try:
            self.effects.perform(engine, action)
        except Exception:
            # A fault of ours with one engine must not end the supervision of the others.
            log.exception("%s: %s failed", engine.name, type(action).__name__)
            text = f"internal error in {type(action).__name__}; the daemon's own log has the details"
            self._journal.record(engine.name, engine.id, "internal-error", text, "error")

    def _look_at_dependents(self) -> None:
        if not self._waiting:
            return
        up = self.up()
        for engine in [engine for engine_id, engine in self._engines.items() if engine_id in self._waiting]:
            names = dependencies.waiting_for(engine.spec, up)
            if not names:
                self._queue.append((engine.id, DependenciesReady(engine.generation)))
                continue
            text = "waiting for " + ", ".join(self._describe(name) for name in names)
            if text != engine.reason:
                blocked = any(self._blocks(name) for name in names)
                self._queue.append((engine.id, DependenciesWaiting(engine.generation, names, text, blocked)))

    def _describe(self, name: str) -> str:
        engine = self.named(name)
        return (
            f"{name}, which does not exist"
            if engine is None
            else f"{name} ({engine.state} {engine.substate})"
        )

    def _publish(self) -> None:
        for engine_id in self._changed:
            self._keeper.keep(self._engines[engine_id])
        self._changed.clear()
        for waiter, arrived in list(self._waiters.items()):
            if not waiter.done() and arrived():
                waiter.set_result(None)

    # --- Waiting --------------------------------------------------------------------------------

    def arrived(self, engine_id: str) -> bool:
        """The engine is as desired, or will not get there without somebody's doing."""
        engine = self._engines.get(engine_id)
        if engine is None or engine.state in (State.INACTIVE, State.FAILED):
            return True
        if engine.state is State.ACTIVE:
            return engine.desired is Desired.RUNNING and not engine.held
        return engine.sub is Sub.QUEUED and engine.blocked

    def _blocks(self, name: str) -> bool:
        engine = self.named(name)
        return engine is None or engine.state is State.FAILED

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until a condition on the engines holds; False after `timeout` seconds without."""
        if condition():
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = condition
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            return False
        finally:
            del self._waiters[waiter]
        return True
