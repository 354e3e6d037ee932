"""How a run of the daemon ends: with its engines stopped, or with them left to the daemon that comes next."""

from __future__ import annotations

import asyncio
import logging
import sys

from sagectl.core import events as ev
from sagectl.core.engine import Engine, State
from sagectl.daemon.supervisor import Supervisor
from sagectl.errors import Conflict
from sagectl.system import sdnotify, systemd
from sagectl.system.journal import Journal
from sagectl.system.unit import Unit

log = logging.getLogger("sagectld")

TOLD_SECONDS = 1.0
"""How often systemd is told which engines are waited for."""
TRIAL_SECONDS = 30.0
TRIAL = "import sagectl.api.server, sagectl.daemon.main, sagectl.daemon.runtime"
"""What a new image of the daemon loads; if that fails, so would the new image."""


class Ending:
    """Decides once, and then brings it about.

    leaving: the engines are left as they are. renewing: this process goes on with the code that is
    installed now.
    """

    def __init__(self, supervisor: Supervisor, journal: Journal, unit: Unit | None) -> None:
        self.begun = asyncio.Event()
        self.leaving = self.renewing = False
        self._supervisor = supervisor
        self._journal = journal
        self._unit = unit
        self._asking: asyncio.Task[None] | None = None

    def asked_by_signal(self) -> None:
        """SIGTERM: systemd sends it for a stop and for a restart alike, and says which if it is asked."""
        if self._unit is None or self._asking is not None or self.begun.is_set():
            self.end()
        else:
            self._asking = asyncio.get_running_loop().create_task(self._ask(self._unit), name="job")

    async def _ask(self, unit: Unit) -> None:
        job = await systemd.job(unit)
        if job in systemd.KEEPING_JOBS:
            self.leave(f"systemd restarts {unit.name}")
        else:
            self.end()

    def end(self) -> None:
        """Stop every engine, then the daemon; asked for a second time, no longer wait for requests."""
        if not self.begun.is_set():
            log.info("stopping all engines")
            self.begun.set()
        elif not self.leaving:
            log.warning("asked again: no longer waiting for requests in flight")
            for engine in self._supervisor:
                self._supervisor.post(engine.id, ev.StopRequested(drain=0, why="the daemon ends", hold=True))

    def leave(self, why: str) -> None:
        """End the daemon alone; the next one adopts the engines."""
        if self.begun.is_set():
            return
        text = f"{why}: the daemon ends, its engines go on"
        log.info(text)
        self._journal.record(None, None, "daemon-leaves", text)
        self.leaving = True
        self.begun.set()

    async def renew(self) -> None:
        """Go on with the code that is installed now, engines running. Raises Conflict where it is broken."""
        if self.begun.is_set():
            raise Conflict("the daemon is ending", remedy="wait until it has, and start another")
        trial = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", TRIAL),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                _, words = await trial.communicate()
        except TimeoutError:
            trial.kill()
            await trial.wait()
            words = b"it does not load in time"
        if trial.returncode != 0:
            last = (words.decode(errors="replace").strip().splitlines() or ["it does not load"])[-1]
            raise Conflict(
                f"the sagectl that is installed now cannot be loaded: {last}",
                remedy="mend the installation; this daemon goes on as it is",
            )
        if not self.begun.is_set():
            self.renewing = True
            self.leave("daemon-reexec")

    async def bring_down(self) -> None:
        """Return when every engine is down, or at once where they are left."""
        if self.leaving:
            return
        sdnotify.stopping("stopping engines")
        stop = ev.StopRequested(why="the daemon ends", hold=True)
        for engine in self._supervisor:
            self._supervisor.post(engine.id, stop)
        while not await self._supervisor.until(self._all_down, TOLD_SECONDS):
            left = [engine.name for engine in self._supervisor if not is_down(engine)]
            sdnotify.stopping(f"waiting for {', '.join(left)}")
            deadlines = (engine.spec.stop.drain + engine.spec.stop.timeout for engine in self._supervisor)
            sdnotify.extend_timeout(max(deadlines) + 10)

    def _all_down(self) -> bool:
        return all(is_down(engine) for engine in self._supervisor)


def is_down(engine: Engine) -> bool:
    """Nothing of it runs."""
    return engine.state in (State.INACTIVE, State.FAILED)
