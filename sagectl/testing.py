"""For tests of engines: a fake clock, fake processes, and tests that read as dialogues.

`Playbook` checks the reducer step by step; `Life` runs a whole engine on a fake clock, without a
process and without a sleep:

    life = Life(EngineSpec(name="chat", kind="exec", port=8001), Behaviour(ready_after=3.0))
    life.tell(StartRequested())
    life.until("active (ready)")
    life.world.crash(ExitStatus(signal=9))
    life.until("activating (backoff)")
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from sagectl.core import actions as act
from sagectl.core import events as ev
from sagectl.core.adoption import Found, reconcile
from sagectl.core.engine import Engine, EngineSpec, Process, Reservation
from sagectl.core.events import Event, ProbeRole, Timer
from sagectl.core.lifecycle import step
from sagectl.playbook import FakeClock, Playbook, phase, show
from sagectl.plugin import Diagnosis, ExitStatus, HttpProbe, LaunchPlan, Probes, Refusal

__all__ = [
    "ANY_GPU",
    "PLAN",
    "Behaviour",
    "Due",
    "FakeClock",
    "FakeProcesses",
    "Life",
    "Playbook",
    "phase",
    "show",
]

SIGKILL = 9


# --- Fake processes ----------------------------------------------------------------------------

HEALTH = HttpProbe("/health")
PLAN = LaunchPlan(argv=("fake-engine",), probes=Probes(startup=(HEALTH,), readiness=HEALTH, liveness=HEALTH))
"""A plan with all three probes."""

FAILURE = ExitStatus(code=1)
ANY_GPU = Reservation((0,), (2 << 30,), (24 << 30,))


@dataclass(slots=True)
class Behaviour:
    """How the world treats an engine. Change a field at any time; it counts from then on.

    Times are seconds; None means never.

    plan, port, refusal: what preflight answers (a refusal comes before a plan).
    spawn_error: why no process comes to be.
    ready_after: from the launch to the success of the startup probes.
    progresses: whether a starting engine logs, reads or grows.
    exits_after, exit, diagnosis: when it ends by itself, how, and what the kind says to it.
    serves, lives: what the readiness and the liveness probe find; `busy`: requests advance.
    drains_after: until no request is in flight.
    stops_after: from the stop signal to the exit; None ignores the signal.
    children: how many processes the main one starts.
    outlived: the children survive the main process and the stop signal.
    kills_after: from SIGKILL to death; more than 0 for a process in uninterruptible sleep.
    reservation: what it is given of GPUs; None where it needs none. granted_after: from asking for it.
    released_after: from the last process's end until the GPU driver has it back.
    """

    plan: LaunchPlan = PLAN
    port: int | None = 8001
    refusal: Refusal | None = None
    dependencies_after: float | None = 0.0
    spawn_error: str | None = None
    ready_after: float | None = 1.0
    progresses: bool = True
    exits_after: float | None = None
    exit: ExitStatus = FAILURE
    diagnosis: Diagnosis | None = None
    serves: bool = True
    lives: bool = True
    busy: bool = False
    drains_after: float | None = 0.0
    stops_after: float | None = 0.5
    children: int = 0
    outlived: bool = False
    kills_after: float | None = 0.0
    reservation: Reservation | None = None
    granted_after: float | None = 0.0
    released_after: float | None = 0.0


@dataclass(slots=True)
class Due:
    """A change of the world or an event to deliver. What is not of topic `world` dies with the daemon."""

    at: float
    happens: Callable[[], None] | Event
    topic: str


class FakeProcesses:
    """One engine's shim, processes, probes and timers in memory. `do` takes the reducer's actions.

    due: what will happen, changes of the world as well as answers on their way to the reducer.
    main, children: the living processes. launches: every process that ever was.
    wrongs: what no reducer may ask for and this one did, such as a second live process.
    """

    def __init__(self, clock: FakeClock, behaviour: Behaviour | None = None) -> None:
        self.clock = clock
        self.behaviour = behaviour or Behaviour()
        self.due: list[Due] = []
        self.timers: dict[Timer, tuple[float, int]] = {}
        self.probes: dict[ProbeRole, act.StartProbe] = {}
        self.main: Process | None = None
        self.children = 0
        self.generation = 0
        self.exit: ExitStatus | None = None
        self.launches: list[Process] = []
        self.signals: list[int] = []
        self.preflights = 0
        self.records: list[act.Record] = []
        self.wrongs: list[str] = []
        self.forgotten = False

    @property
    def alive(self) -> int:
        """How many processes live."""
        return self.children + (self.main is not None)

    def do(self, action: act.Action) -> None:
        """Carry out one action; what comes of it appears in `due`."""
        b = self.behaviour
        match action:
            case act.AwaitDependencies(generation):
                self._later(b.dependencies_after, ev.DependenciesReady(generation))
            case act.Preflight(generation):
                self._later(0.0, self._preflight(generation))
            case act.Launch(generation, _):
                self._launch(generation)
            case act.SendSignal(generation, signal):
                self._signal(generation, signal)
            case act.KillTree(generation):
                self._kill_tree(generation)
            case act.Drain(generation):
                self._later(b.drains_after, ev.Drained(generation))
            case act.StartProbe():
                self._start_probe(action)
            case act.StopProbes():
                self.probes.clear()
                self.due = [d for d in self.due if d.topic != "probe"]
            case act.MeasureProgress(generation):
                self._later(0.0, ev.ProgressMeasured(generation, b.progresses, "wrote to its log"))
            case _:
                self._note(action)

    def _note(self, action: act.Action) -> None:
        b = self.behaviour
        match action:
            case act.Plan(generation):
                self._later(0.0, ev.PreflightPassed(generation, b.plan, b.port))
            case act.AwaitMemory(generation):
                granted = b.reservation or ANY_GPU  # it may have needed one when it asked
                self._later(b.granted_after, ev.MemoryGranted(generation, granted))
            case act.AwaitRelease(generation):
                self._later(b.released_after, ev.MemoryReleased(generation))
            case act.SetTimer(generation, timer, seconds):
                self.timers[timer] = (self.clock.monotonic + seconds, generation)
            case act.CancelTimer(timer):
                self.timers.pop(timer, None)
            case act.Record():
                self.records.append(action)
            case act.ReleaseShim():
                if self.alive == 0:
                    self.generation, self.exit = 0, None
            case act.Forget():
                if self.alive:
                    self.wrongs.append("forgotten while processes live")
                self.forgotten = True
            case _:
                raise AssertionError(f"unknown action {action}")

    def _later(
        self, seconds: float | None, happens: Callable[[], None] | Event, topic: str = "daemon"
    ) -> None:
        if seconds is not None:
            self.due.append(Due(self.clock.monotonic + seconds, happens, topic))

    def _preflight(self, generation: int) -> Event:
        b = self.behaviour
        self.preflights += 1
        if b.refusal is not None:
            return ev.PreflightRefused(generation, b.refusal)
        if b.reservation is not None:
            return ev.MemoryNeeded(generation)
        return ev.PreflightPassed(generation, b.plan, b.port)

    def _launch(self, generation: int) -> None:
        b = self.behaviour
        if self.alive:
            self.wrongs.append(f"start {generation} was launched while {self.alive} processes live")
            self._later(0.0, ev.SpawnFailed(generation, "processes still live", busy=True))
            return
        if b.spawn_error is not None:
            self._later(0.0, ev.SpawnFailed(generation, b.spawn_error))
            return
        pid = 100 + len(self.launches)
        self.main = Process(pid, pid, "boot", self.clock.monotonic, self.clock.wall)
        self.launches.append(self.main)
        self.generation, self.children, self.exit = generation, b.children, None
        self._later(0.0, ev.Spawned(generation, self.main))
        self._later(b.exits_after, lambda: self._end(generation, b.exit), "world")

    def _signal(self, generation: int, signal: int) -> None:
        if generation != self.generation or self.main is None:
            return
        self.signals.append(signal)
        after = 0.0 if signal == SIGKILL else self.behaviour.stops_after
        self._later(after, lambda: self._end(generation, ExitStatus(signal=signal)), "world")

    def _kill_tree(self, generation: int) -> None:
        if self.alive == 0:
            self._later(0.0, ev.TreeEmpty(generation))
            return
        slow, tree = self.behaviour.kills_after, self.generation
        if slow != 0.0:
            self._later(1.0, ev.TreeStubborn(generation, tuple(range(900, 900 + self.alive))))
        self._later(slow, lambda: self._killed(tree, generation), "world")

    def _start_probe(self, action: act.StartProbe) -> None:
        if action.role is not ProbeRole.STARTUP:
            self.probes[action.role] = action
            self._later(action.interval, lambda: self._ask(action), "probe")
        elif self.main is not None and self.behaviour.ready_after is not None:
            left = self.main.started + self.behaviour.ready_after - self.clock.monotonic
            self._later(max(0.0, left), ev.ProbeSucceeded(action.generation, action.role), "probe")

    def crash(self, status: ExitStatus | None = None) -> None:
        """The main process ends now, as `status` says (default: the behaviour's `exit`)."""
        self._end(self.generation, status or self.behaviour.exit)

    def _end(self, generation: int, status: ExitStatus) -> None:
        if generation != self.generation or self.main is None:
            return
        self.main, self.exit = None, status
        if not self.behaviour.outlived:
            self.children = 0
        self._later(0.0, ev.Exited(generation, status, self.children, self.behaviour.diagnosis))

    def _killed(self, tree: int, asked: int) -> None:
        if tree == self.generation:
            self.children = 0
            self._end(tree, ExitStatus(signal=SIGKILL))
        self._later(0.0, ev.TreeEmpty(asked))

    def _ask(self, probe: act.StartProbe) -> None:
        good = self.behaviour.serves if probe.role is ProbeRole.READINESS else self.behaviour.lives
        self._later(probe.interval, lambda: self._ask(probe), "probe")
        self._later(0.0, self.answer(probe, good), "probe")

    def answer(self, probe: act.StartProbe, good: bool) -> Event:
        """What a probe reports; a bad one times out."""
        if good:
            return ev.ProbeSucceeded(probe.generation, probe.role)
        busy = self.behaviour.busy
        return ev.ProbeFailed(probe.generation, probe.role, "no answer", timed_out=True, advancing=busy)

    def next_due(self) -> float:
        """When the next thing happens; infinity where nothing will."""
        return min((*(d.at for d in self.due), *(at for at, _ in self.timers.values())), default=math.inf)

    def take(self) -> Event | None:
        """Let the next thing happen; the event that it is, None where it only changed the world."""
        if self.due and min(d.at for d in self.due) <= self.next_due():
            return self.happen(self.due.index(min(self.due, key=lambda d: d.at)))
        return self.fire(min(self.timers, key=lambda t: self.timers[t][0]))

    def happen(self, index: int) -> Event | None:
        """Let this one of `due` happen now."""
        happens = self.due.pop(index).happens
        if not callable(happens):
            return happens
        happens()
        return None

    def fire(self, timer: Timer) -> Event:
        """Fire this running timer now."""
        _, generation = self.timers.pop(timer)
        return ev.TimerFired(generation, timer)

    def daemon_dies(self) -> None:
        """Timers, probes and everything on its way to the reducer are lost. Processes live on."""
        self.due = [d for d in self.due if d.topic == "world"]
        self.timers.clear()
        self.probes.clear()

    def found(self, told: Engine | None = None) -> Found | None:
        """What a new daemon finds; `told` is the engine that the launch's context carries."""
        if self.generation == 0:
            return None
        return Found(self.generation, self.main, self.exit, self.children, engine=told)


# --- A whole life ------------------------------------------------------------------------------


@dataclass(slots=True)
class Life:
    """An engine and its world. History holds every state that it was in, as `phase` spells it."""

    spec: EngineSpec
    behaviour: Behaviour = field(default_factory=Behaviour)
    clock: FakeClock = field(default_factory=FakeClock)
    world: FakeProcesses = field(init=False)
    engine: Engine = field(init=False)
    history: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.world = FakeProcesses(self.clock, self.behaviour)
        self.engine = Engine("engine-00000001", self.spec)
        self.history = [phase(self.engine)]

    def tell(self, *events: Event) -> None:
        """Give the reducer these events, and the world what it answers."""
        for event in events:
            self.engine, actions = step(self.engine, event, self.clock.now())
            if self.history[-1] != phase(self.engine):
                self.history.append(phase(self.engine))
            for action in actions:
                self.world.do(action)

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that falls into it."""
        end = self.clock.monotonic + seconds
        while self.world.next_due() <= end:
            self._next()
        self.clock.advance(end - self.clock.monotonic)

    def until(self, wanted: str, *, within: float = 3600.0) -> None:
        """Let things happen until the engine is in that state. Raises AssertionError after `within`."""
        end = self.clock.monotonic + within
        while phase(self.engine) != wanted:
            if self.world.next_due() > end:
                way = " → ".join(self.history)
                raise AssertionError(f"never became {wanted}: {way}; {self.engine.reason}")
            self._next()

    def _next(self) -> None:
        self.clock.advance(max(0.0, self.world.next_due() - self.clock.monotonic))
        event = self.world.take()
        self.tell(*([event] if event is not None else []))

    def daemon_restarts(self, *, stored: Engine | None = None, told: Engine | None = None) -> None:
        """SIGKILL the daemon and start a new one. Defaults: its database knew everything."""
        self.world.daemon_dies()
        known = self.engine if stored is None and told is None else stored
        adopted = reconcile(known, self.world.found(told))
        assert adopted is not None, "nobody remembers the engine"
        self.engine, event = adopted
        self.tell(event)

    @property
    def recorded(self) -> list[str]:
        """The kinds of what was recorded for people, in order."""
        return [record.kind for record in self.world.records]
