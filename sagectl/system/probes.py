"""Asks the probes of all engines, at their intervals, with one timer for all of them."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from sagectl.core.events import ProbeRole
from sagectl.plugin import ExecProbe, HttpProbe, NotifyProbe, Probe, TcpProbe
from sagectl.system import connections
from sagectl.system.commands import CommandResult, run_command
from sagectl.system.http_probe import OUR_FAULT, Answer, Trouble, Wire, judge, request_bytes, resolve

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 1.0
_COALESCED = 2.0
"""Seconds. Intervals from here on are rounded to full seconds, so that one wake-up serves many."""
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Target:
    """What is probed.

    port: None where the engine does not listen; HTTP and TCP probes then fail.
    env, cwd, user: the engine's own, for exec probes and `HttpProbe.bearer_env`; user is uid, gid and
        supplementary groups.
    notify_state: whether `READY=1` was said before this prober heard of the engine (an adopted one).
    """

    host: str = "127.0.0.1"
    port: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: tuple[int, int, Sequence[int]] | None = None
    notify_state: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What came of asking a probe.

    detail: why it failed, a sentence without a final period; "" where it did not.
    timed_out: no answer in time, rather than a wrong one or a refused connection.
    advancing: it timed out, but the engine sent something to somebody else since it was last asked.
    """

    ok: bool
    detail: str = ""
    timed_out: bool = False
    advancing: bool = False


Report = Callable[[str, int, ProbeRole, ProbeOutcome], None]


class _Job:
    """One sequence of probes of one engine, asked for one role or more."""

    def __init__(
        self,
        key: str,
        generation: int,
        target: Target,
        probes: tuple[Probe, ...],
        interval: float,
        timeout: float,
        begun: float,
    ) -> None:
        self.key = key
        self.generation = generation
        self.target = target
        self.probes = probes
        self.interval = interval
        self.timeout = timeout
        self.passed: dict[ProbeRole, bool | None] = {}
        self.index = 0
        self.delay = _FIRST_DELAY
        self.detail = ""
        self.stopped = False
        self.ticket = 0
        self.begun = begun
        self.asked = begun
        self.asked_before = begun
        self.wire: Wire | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def probe(self) -> Probe:
        return self.probes[self.index]

    @property
    def startup(self) -> bool:
        return ProbeRole.STARTUP in self.passed

    @property
    def limit(self) -> float:
        probe = self.probe
        own = probe.timeout if isinstance(probe, HttpProbe) else None
        return self.timeout if own is None else own

    def same_question(self, probes: tuple[Probe, ...], interval: float, timeout: float) -> bool:
        """Whether a role that asks this can share the job. What notify means depends on the role."""
        if self.startup or isinstance(self.probe, NotifyProbe):
            return False
        return (self.probes, self.interval, self.timeout) == (probes, interval, timeout)

    def give_up(self) -> None:
        """Take back what is being asked."""
        if self.wire is not None:
            self.wire.close()
        if self.task is not None:
            self.task.cancel()
            self.task = None


@dataclass(slots=True)
class _Notified:
    """What an engine said on its notify socket."""

    generation: int
    ready: bool | None = None
    alive: float = -math.inf


class Prober:
    """Asks probes and reports outcomes, by calling `on_result` on the event loop, never from `start`.

    STARTUP: asked one after the other, each until it succeeded once; one report when all have.
        Meanwhile `last_detail` says what is missing.
    READINESS, LIVENESS: asked every `interval`; every failure is reported, and the first success
        after the beginning or a failure.

    A failure of our own (no file descriptor left, say) is not reported: nothing follows from it.
    """

    def __init__(
        self, on_result: Report, *, advancing: Callable[[int, float], bool] = connections.advancing
    ) -> None:
        self._report = on_result
        self._advancing = advancing
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[str, list[_Job]] = {}
        self._notified: dict[str, _Notified] = {}
        self._due: list[tuple[float, int, _Job]] = []
        self._asking: dict[_Job, float] = {}
        self._order = count()
        self._spread = count()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = math.inf

    def start(
        self,
        key: str,
        generation: int,
        role: ProbeRole,
        target: Target,
        probes: tuple[Probe, ...],
        interval: float,
        timeout: float,
    ) -> None:
        """Begin to ask. Replaces the probes of the same role, and all those of other generations."""
        self._withdraw(key, lambda job: job.generation != generation, role)
        if not probes:
            return
        jobs = self._jobs.setdefault(key, [])
        if role is not ProbeRole.STARTUP:
            for job in jobs:
                # Readiness and liveness are mostly the same question: ask it once.
                if job.same_question(probes, interval, timeout):
                    job.passed[role] = None
                    return
        job = _Job(key, generation, target, probes, interval, timeout, self._loop.time())
        job.passed[role] = None
        jobs.append(job)
        if role is ProbeRole.STARTUP:
            self._schedule(job, self._loop.time())
        else:
            # Spread evenly over the interval, however many engines begin at the same moment.
            self._schedule(job, self._loop.time() + (next(self._spread) * _GOLDEN % 1.0) * interval)

    def stop(self, key: str) -> None:
        """Ask nothing of this engine any more, report nothing, close its connections."""
        self._withdraw(key, lambda _: True, None)
        self._jobs.pop(key, None)
        self._notified.pop(key, None)

    def close(self) -> None:
        """Stop everything."""
        for key in list(self._jobs):
            self.stop(key)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def last_detail(self, key: str) -> str | None:
        """Why a probe of this engine fails now, the newest that does; None where none does."""
        failing = [job for job in self._jobs.get(key, ()) if job.detail]
        return max(failing, key=lambda job: job.asked).detail if failing else None

    def notified(self, key: str, generation: int, fields: Mapping[str, str]) -> None:
        """The engine said this on its notify socket: `READY`, `STOPPING` and `WATCHDOG` matter here."""
        state = self._notified.get(key)
        if state is None or state.generation != generation:
            state = self._notified[key] = _Notified(generation)
        if fields.get("READY") == "1":
            state.ready = True
        if fields.get("STOPPING") == "1":
            state.ready = False
        if fields.get("WATCHDOG") == "1":
            state.alive = self._loop.time()
        if "READY" in fields or "STOPPING" in fields:
            for job in self._jobs.get(key, ()):
                if job.generation == generation and isinstance(job.probe, NotifyProbe):
                    self._schedule(job, self._loop.time())

    # --- when

    def _withdraw(self, key: str, every_role_of: Callable[[_Job], bool], role: ProbeRole | None) -> None:
        """Stop these jobs, and take `role` from the others."""
        for job in self._jobs.get(key, [])[:]:
            if role is not None:
                job.passed.pop(role, None)
            if not job.passed or every_role_of(job):
                self._end(job)

    def _end(self, job: _Job) -> None:
        job.stopped = True
        self._asking.pop(job, None)
        job.give_up()
        jobs = self._jobs.get(job.key, [])
        if job in jobs:
            jobs.remove(job)

    def _schedule(self, job: _Job, due: float) -> None:
        # Whatever was scheduled for it before is void.
        job.ticket = next(self._order)
        heapq.heappush(self._due, (due, job.ticket, job))
        self._arm(due)

    def _arm(self, when: float) -> None:
        if when >= self._wake_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = when
        self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer, self._wake_at = None, math.inf
        now = self._loop.time()
        for job in [job for job, deadline in self._asking.items() if deadline <= now]:
            if not job.stopped:
                self._time_out(job)
        while self._due and self._due[0][0] <= now:
            _, ticket, job = heapq.heappop(self._due)
            if not job.stopped and ticket == job.ticket:
                self._ask(job, now)
        if self._due:
            self._arm(self._due[0][0])
        if self._asking:
            self._arm(min(self._asking.values()))

    # --- asking

    def _ask(self, job: _Job, now: float) -> None:
        job.asked_before, job.asked = job.asked, now
        probe = job.probe
        deadline = now + job.limit
        self._asking[job] = deadline if job.limit < _COALESCED else float(math.ceil(deadline))
        if isinstance(probe, HttpProbe | TcpProbe):
            self._ask_wire(job, probe)
        elif isinstance(probe, ExecProbe):
            job.task = self._loop.create_task(self._ask_command(job, probe))
        else:
            self._ask_notified(job)

    def _ask_wire(self, job: _Job, probe: HttpProbe | TcpProbe) -> None:
        host, port = job.target.host, job.target.port
        if port is None:
            self._done(job, ProbeOutcome(False, "the engine has no port to probe"))
            return
        if job.wire is None:
            try:
                addresses = resolve(host, port)
            except (OSError, UnicodeError) as error:
                self._done(job, ProbeOutcome(False, f"the host {host!r} cannot be resolved ({error})"))
                return
            job.wire = Wire(addresses, lambda result: self._answered(job, result))
        if isinstance(probe, HttpProbe):
            job.wire.ask(probe.method, request_bytes(probe, host, port, job.target.env))
        else:
            job.wire.ask("", b"")

    def _answered(self, job: _Job, result: Answer | Trouble) -> None:
        if isinstance(result, Trouble):
            self._done(job, ProbeOutcome(False, f"{_question(job)}: {result.text}"), result.errno)
            return
        probe = job.probe
        detail_or_none = judge(probe, result) if isinstance(probe, HttpProbe) else None
        self._done(job, ProbeOutcome(detail_or_none is None, detail_or_none or ""))

    async def _ask_command(self, job: _Job, probe: ExecProbe) -> None:
        target = job.target
        # The prober keeps the time; the command's own limit is the second line of defence.
        result = await run_command(
            probe.argv, env=target.env, cwd=target.cwd, user=target.user, timeout=job.limit + 5.0, keep=4096
        )
        job.task = None
        if not job.stopped:
            self._done(job, _command_outcome(probe, result), result.errno)

    def _ask_notified(self, job: _Job) -> None:
        state = self._notified.get(job.key)
        if state is None or state.generation != job.generation:
            state = self._notified[job.key] = _Notified(job.generation)
        if state.ready is None:
            state.ready = job.target.notify_state()
        if ProbeRole.LIVENESS in job.passed:
            silence = self._loop.time() - max(state.alive, job.begun)
            # A little more than the interval, because both sides count from different moments.
            ok = silence <= job.interval * 1.25
            detail = "" if ok else f"no WATCHDOG=1 for {silence:.0f} s on its notify socket"
            self._done(job, ProbeOutcome(ok, detail, timed_out=not ok))
        else:
            detail = "" if state.ready else "no READY=1 on its notify socket yet"
            self._done(job, ProbeOutcome(state.ready, detail))

    # --- what came of it

    def _time_out(self, job: _Job) -> None:
        job.give_up()
        port = job.target.port
        since = self._loop.time() - job.asked_before
        advancing = not job.startup and port is not None and self._advancing(port, since)
        detail = f"{_question(job)} was not answered within {job.limit:g} s"
        self._done(job, ProbeOutcome(False, detail, timed_out=True, advancing=advancing))

    def _done(self, job: _Job, outcome: ProbeOutcome, number: int | None = None) -> None:
        self._asking.pop(job, None)
        if not outcome.ok and number in OUR_FAULT:
            self._schedule(job, _next(job.asked, job.interval))
            return
        job.detail = outcome.detail
        if job.startup:
            self._done_startup(job, outcome)
            return
        now = self._loop.time()
        self._schedule(job, max(_next(job.asked, job.interval), now))
        for role, before in list(job.passed.items()):
            job.passed[role] = outcome.ok
            if not (outcome.ok and before) and not job.stopped:
                self._report(job.key, job.generation, role, outcome)

    def _done_startup(self, job: _Job, outcome: ProbeOutcome) -> None:
        now = self._loop.time()
        if not outcome.ok:
            self._schedule(job, now + job.delay)
            job.delay = min(job.delay * 2, job.interval, _LONGEST_DELAY)
        elif job.index + 1 < len(job.probes):
            job.index += 1
            job.delay = _FIRST_DELAY
            self._schedule(job, now)
        else:
            self._end(job)
            self._report(job.key, job.generation, ProbeRole.STARTUP, outcome)


def _next(asked: float, interval: float) -> float:
    """When to ask again, on a full second where the interval is long enough for that not to matter."""
    return asked + interval if interval < _COALESCED else float(round(asked + interval))


def _question(job: _Job) -> str:
    where = f"{job.target.host}:{job.target.port}"
    if isinstance(job.probe, HttpProbe):
        return f"{job.probe.method} {job.probe.path} at {where}"
    return (
        f"the command {job.probe.argv[0]}" if isinstance(job.probe, ExecProbe) else f"connecting to {where}"
    )


def _command_outcome(probe: ExecProbe, result: CommandResult) -> ProbeOutcome:
    if result.error is not None:
        return ProbeOutcome(False, result.error)
    if result.code == 0:
        return ProbeOutcome(True)
    said = result.output.strip().splitlines()
    end = "it did not end in time" if result.timed_out else _ending(result.code)
    return ProbeOutcome(False, f"{probe.argv[0]}: {end}" + (f": {said[-1][:200]}" if said else ""))


def _ending(code: int | None) -> str:
    if code is None:
        return "it ended, nobody knows how"
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
