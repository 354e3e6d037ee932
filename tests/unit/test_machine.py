"""A hypothesis state machine over the reducer: no order of events leads where no engine may be.

The world is `FakeProcesses`: its processes live and die by themselves, its timers fire early or late,
what it reports arrives late, in any order and twice. The daemon is killed at any point, also between
two actions of one step, and the next one starts from memories that may be a transition old.
"""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sagectl.core.actions import Launch
from sagectl.core.adoption import reconcile
from sagectl.core.engine import (
    SUBSTATES,
    Desired,
    Engine,
    EngineSpec,
    ProbePolicy,
    RestartPolicy,
    RestartWhen,
    State,
    Sub,
)
from sagectl.core.events import (
    DependenciesReady,
    Drained,
    Event,
    Exited,
    GpuFailed,
    MemoryExceeded,
    MemoryGranted,
    MemoryLacking,
    MemoryNeeded,
    MemoryReleased,
    PreflightPassed,
    PreflightRefused,
    ProbeFailed,
    ProbeRole,
    ProbeSucceeded,
    ProgressMeasured,
    Removed,
    ResetFailed,
    RestartRequested,
    Spawned,
    SpawnFailed,
    SpecReplaced,
    StartRequested,
    StatusNotified,
    StopRequested,
    Timer,
    TreeEmpty,
)
from sagectl.core.lifecycle import step
from sagectl.plugin import Diagnosis, ExitStatus, LaunchPlan, Mode, Refusal
from sagectl.testing import ANY_GPU, PLAN, Behaviour, Due, FakeClock, FakeProcesses

SETTINGS = settings(
    max_examples=int(os.environ.get("SAGECTL_EXAMPLES", "800" if os.environ.get("CI") else "400")),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

SPECS = st.builds(
    EngineSpec,
    name=st.just("chat"),
    kind=st.just("exec"),
    mode=st.sampled_from(Mode),
    depends_on=st.sampled_from([(), ("embed",)]),
    restart=st.builds(
        RestartPolicy,
        policy=st.sampled_from(RestartWhen),
        delay=st.sampled_from([0.0, 1.0]),
        limit=st.sampled_from([0, 2, 5]),
    ),
    probe=st.builds(ProbePolicy, startup_timeout=st.just(40.0), failures=st.sampled_from([1, 2])),
)
BEHAVIOURS = st.one_of(
    st.builds(
        Behaviour,
        plan=st.sampled_from([PLAN, LaunchPlan(("x",))]),
        progresses=st.booleans(),
        exits_after=st.sampled_from([None, 3.0, 80.0]),
        exit=st.sampled_from([ExitStatus(code=1), ExitStatus(code=0), ExitStatus()]),
        drains_after=st.sampled_from([0.0, None]),
        stops_after=st.sampled_from([5.0, None]),
        children=st.sampled_from([2, 0]),
        outlived=st.booleans(),
        kills_after=st.sampled_from([0.0, 4.0]),
    ),
    st.sampled_from(
        [
            Behaviour(children=2, outlived=True),
            Behaviour(spawn_error="no such file"),
            Behaviour(refusal=Refusal("no", "do")),
            Behaviour(refusal=Refusal("no", "wait", retryable=True)),
            Behaviour(ready_after=None, exits_after=9.0),
            Behaviour(exits_after=0.0, diagnosis=Diagnosis("bad", "fix", retryable=False)),
            *3 * [Behaviour(reservation=ANY_GPU, children=1, outlived=True, released_after=2.0)],
            Behaviour(reservation=ANY_GPU, granted_after=30.0, exits_after=3.0),
        ]
    ),
)
REQUESTS = st.sampled_from(
    [
        *2 * [StartRequested(), StopRequested(), RestartRequested()],
        StartRequested(by_user=False),
        StartRequested(again=True),
        StopRequested(drain=0.0),
        StopRequested(why="the daemon ends", hold=True),
        RestartRequested(by_user=False),
        ResetFailed(),
        StatusNotified(1, "fine", 90.0),
        SpecReplaced(EngineSpec("chat", "exec", env={"A": "1"}), needs_restart=True),
        SpecReplaced(EngineSpec("chat", "exec", env={"A": "2"})),
        Removed(),
    ]
)
DEATHS = st.sampled_from(["alone", "amid a step", "amid a step", "with everything"])
RECALLS = st.sampled_from(["told", "", "stale told", "stale", "lost told"])
ANSWERS = (
    DependenciesReady,
    PreflightPassed,
    PreflightRefused,
    Spawned,
    SpawnFailed,
    Exited,
    ProgressMeasured,
    Drained,
    TreeEmpty,
    MemoryNeeded,
    MemoryGranted,
    MemoryReleased,
)
"""Events that somebody owes the reducer; each is delivered at least once unless the daemon dies."""


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.delivered: list[Event] = []
        self.mortal_after: int | None = None
        self.steps = 0
        self.recall = ""

    @initialize(spec=SPECS, behaviour=BEHAVIOURS)
    def define(self, spec: EngineSpec, behaviour: Behaviour) -> None:
        self.world = FakeProcesses(self.clock, behaviour)
        self.stored = self.previous = self.engine = Engine("e1", spec)
        self.told: Engine | None = None
        self.tell(StartRequested())

    # --- the daemon ---

    def tell(self, event: Event) -> None:
        self.previous = self.engine
        self.engine, actions = step(self.engine, event, self.clock.now())
        self.steps += 1
        dies_after, self.mortal_after = self.mortal_after, None
        for action in actions[:dies_after]:
            if isinstance(action, Launch):
                self.told = self.engine  # what the shim will carry
            self.world.do(action)
        if dies_after is not None:
            self.restart_daemon(*self.remembered())
        elif self.world.forgotten:
            self.declare_again()

    def remembered(self) -> tuple[Engine | None, Engine | None]:
        """What the database and the context of a launch tell the next daemon."""
        stored = self.previous if "stale" in self.recall else self.engine
        if "lost" in self.recall and self.world.alive:
            return None, self.told
        return stored, self.told if "told" in self.recall else None

    def declare_again(self) -> None:
        assert self.world.alive == 0
        self.world = FakeProcesses(self.clock, self.world.behaviour)
        self.previous = self.engine = Engine("e1", self.engine.spec)
        self.told, self.delivered = None, []

    def restart_daemon(self, stored: Engine | None, told: Engine | None) -> None:
        self.world.daemon_dies()
        self.delivered.clear()
        if self.world.forgotten:
            self.declare_again()
            return
        adopted = reconcile(stored, self.world.found(told))
        if adopted is None:  # with the database lost, a shim that is gone leaves nothing to go on with
            self.declare_again()
            return
        self.engine, event = adopted
        assert not self.engine.held
        self.tell(event)

    # --- what users ask for ---

    @rule(request=REQUESTS, then=st.integers(0, 3))
    def somebody_asks(self, request: Event, then: int) -> None:
        if isinstance(request, SpecReplaced):
            request = replace(request, spec=replace(self.engine.spec, env=request.spec.env))
        self.tell(request)
        self.go_on(then)

    # --- what happens ---

    @rule(behaviour=BEHAVIOURS)
    def behave(self, behaviour: Behaviour) -> None:
        self.world.behaviour = behaviour

    @rule(seconds=st.sampled_from([0.1, 1.0, 45.0, 1000.0]), chance=st.floats(0, 1))
    def time_passes(self, seconds: float, chance: float) -> None:
        self.clock.advance(seconds)
        self.clock.chance = chance

    @rule(times=st.sampled_from([5, 1, 2, 20]))
    def life_goes_on(self, times: int) -> None:
        self.go_on(times)

    @rule()
    def it_comes_up(self) -> None:
        for _ in range(40):
            if self.engine.state is not State.ACTIVE:
                self.go_on(1)

    def go_on(self, times: int) -> None:
        for _ in range(times):
            if self.world.due or self.world.timers:
                self.clock.advance(max(0.0, self.world.next_due() - self.clock.monotonic))
                self.deliver(self.world.take())
                self.check()

    @rule(which=st.lists(st.integers(0, 7), min_size=1, max_size=6))
    def life_goes_on_in_disorder(self, which: list[int]) -> None:
        for number in which:
            if self.world.due:
                self.deliver(self.world.happen(-1 - number % len(self.world.due)))
                self.check()

    @precondition(lambda self: self.world.timers)
    @rule(which=st.integers(0, 3), late=st.sampled_from([0.0, 500.0]))
    def a_timer_fires(self, which: int, late: float) -> None:
        self.clock.advance(late)
        timers = sorted(self.world.timers)
        self.deliver(self.world.fire(timers[which % len(timers)]))

    @precondition(lambda self: self.engine.memory_wanted)
    @rule(then=st.integers(0, 3))
    def memory_lacks(self, then: int) -> None:
        self.tell(MemoryLacking(self.engine.generation, "waiting for GPU memory: needs more", ("other",)))
        self.go_on(then)

    @precondition(lambda self: self.engine.reservation)
    @rule(kind=st.sampled_from([GpuFailed, MemoryExceeded]), then=st.integers(0, 3))
    def a_gpu_fails_or_is_overrun(self, kind: type[GpuFailed | MemoryExceeded], then: int) -> None:
        self.tell(kind(self.engine.generation, "GPU 0 is lost, or too much of it is held"))
        self.go_on(then)

    @precondition(lambda self: self.world.main)
    @rule(code=st.sampled_from([1, 0]), then=st.integers(0, 3))
    def the_main_process_ends(self, code: int, then: int) -> None:
        self.world.crash(ExitStatus(code=code))
        self.go_on(then)

    @precondition(lambda self: self.world.children and not self.world.main)
    @rule()
    def an_orphan_ends(self) -> None:
        self.world.children -= 1

    @precondition(lambda self: self.world.probes)
    @rule(which=st.integers(0, 1), good=st.booleans(), times=st.integers(1, 3))
    def a_probe_answers(self, which: int, good: bool, times: int) -> None:
        roles = sorted(self.world.probes)
        probe = self.world.probes[roles[which % len(roles)]]
        for _ in range(times):
            self.deliver(self.world.answer(probe, good))

    @precondition(lambda self: self.delivered)
    @rule(kind=st.sampled_from([Exited, TreeEmpty, Spawned, *ANSWERS]), which=st.integers(0, 3))
    def an_event_arrives_again(self, kind: type[Event], which: int) -> None:
        events = [event for event in self.delivered if isinstance(event, kind)] or self.delivered
        self.tell(events[-1 - which % len(events)])

    def deliver(self, event: Event | None) -> None:
        if event is not None:
            if isinstance(event, (*ANSWERS, ProbeSucceeded, ProbeFailed)):
                self.delivered.append(event)
            self.tell(event)

    # --- how the daemon dies ---

    @precondition(lambda self: self.steps > 12)
    @rule(how=DEATHS, recall=RECALLS, then=st.integers(0, 3))
    def the_daemon_is_killed(self, how: str, recall: str, then: int) -> None:
        self.steps, self.recall = 0, recall
        if how == "amid a step":
            self.mortal_after = 1
        else:
            if how == "with everything":
                self.world.main, self.world.children, self.world.generation = None, 0, 0
                self.world.due = [d for d in self.world.due if d.topic != "world"]
            self.restart_daemon(*self.remembered())
        self.go_on(then)

    # --- what must hold ---

    @invariant()
    def check(self) -> None:
        if hasattr(self, "world"):
            assert self.world.wrongs == [], "never two starts live"
            self.the_state_is_legal()
            self.something_will_end_whatever_is_under_way()

    def the_state_is_legal(self) -> None:
        e = self.engine
        assert e.sub in SUBSTATES[e.state]
        alive = e.process is not None or e.launching or e.tree_alive
        if e.state in (State.INACTIVE, State.FAILED) or e.sub in (Sub.QUEUED, Sub.PREFLIGHT, Sub.BACKOFF):
            assert not alive
        if e.state is State.ACTIVE:
            assert e.process is not None
            assert e.desired is Desired.RUNNING
        if e.state is State.DEACTIVATING:
            assert e.outcome is not None
            assert alive or (e.sub is Sub.RELEASING and e.reservation is not None)
        if e.state in (State.INACTIVE, State.FAILED):
            assert e.reservation is None
        if e.sub is Sub.STARTING:
            assert (e.process is None) == e.launching
        if e.sub is Sub.COMPLETED:
            assert e.desired is Desired.STOPPED
        assert not (e.launching and e.process)

    def something_will_end_whatever_is_under_way(self) -> None:
        e, timers = self.engine, self.world.timers
        match e.sub:
            case Sub.QUEUED:
                assert self.owed(MemoryGranted if e.memory_wanted else DependenciesReady)
            case Sub.PREFLIGHT:
                assert self.owed(PreflightPassed, PreflightRefused, MemoryNeeded)
            case Sub.STARTING if e.launching:
                assert self.owed(Spawned, SpawnFailed, Exited)
            case Sub.STARTING:
                assert Timer.STARTUP in timers or self.owed(Exited, ProgressMeasured)
            case Sub.BACKOFF:
                assert timers[Timer.BACKOFF][1] == e.generation
            case Sub.READY | Sub.UNREADY | Sub.RUNNING:
                assert self.world.main is not None or self.owed(Exited)
            case Sub.DRAINING:
                assert Timer.DRAIN in timers or self.owed(Exited)
            case Sub.STOPPING if e.launching:
                assert self.owed(Spawned, SpawnFailed, Exited)
            case Sub.STOPPING:
                assert Timer.STOP in timers or self.owed(Exited)
            case Sub.RELEASING:
                assert self.owed(TreeEmpty, Exited, MemoryReleased) or self.owed_by_the_world()
            case _:
                assert e.settled

    def owed(self, *kinds: type[Event]) -> bool:
        generation = self.engine.generation
        return any(
            isinstance(d.happens, kinds) and d.happens.generation == generation for d in self.world.due
        )

    def owed_by_the_world(self) -> bool:
        return any(d.topic == "world" and callable(d.happens) for d in self.world.due)

    def teardown(self) -> None:
        """Let everything that is owed happen in a friendly world: nothing is lost, nothing left over."""
        if not hasattr(self, "world"):
            return
        self.mortal_after = None
        self.world.behaviour = Behaviour()
        if self.engine.sub is Sub.STARTING and self.engine.process and self.world.main:
            self.world.due.append(Due(self.clock.monotonic + 1.0, self.startup_answer(), "probe"))
        for _ in range(500):
            if not self.next_in_order():
                break
        else:
            raise AssertionError("it never comes to rest")
        self.check_rest()

    def startup_answer(self) -> Event:
        return ProbeSucceeded(self.engine.generation, ProbeRole.STARTUP)

    def next_in_order(self) -> bool:
        """The next thing that happens, probes of what is up and its timer aside; False at rest."""
        self.world.timers.pop(Timer.STABLE, None)
        self.world.due = [d for d in self.world.due if d.topic != "probe" or not callable(d.happens)]
        if not self.world.due and not self.world.timers:
            return False
        self.clock.advance(max(0.0, self.world.next_due() - self.clock.monotonic))
        event = self.world.take()
        if event is not None:
            self.tell(event)
        self.check()
        return True

    def check_rest(self) -> None:
        e = self.engine
        assert e.settled
        assert not e.removed
        if e.state is State.ACTIVE:
            assert self.world.main == e.process
            assert self.world.generation == e.generation
            return
        assert self.world.alive == 0
        if e.desired is Desired.RUNNING:
            assert e.state is State.FAILED or e.held


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = SETTINGS
