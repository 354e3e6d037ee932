"""The composition root: which part knows which, and the order in which they come up and go down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import resource
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sagectl
from sagectl.config.load import Config, load
from sagectl.config.paths import Paths
from sagectl.core import events as ev
from sagectl.core.engine import Engine, Moment, State, Sub
from sagectl.core.exits import unasked
from sagectl.core.times import counted, rfc3339
from sagectl.daemon import environment, gpu_report
from sagectl.daemon.control import Control
from sagectl.daemon.effects import Effects, World
from sagectl.daemon.ending import Ending
from sagectl.daemon.footprints import Footprints
from sagectl.daemon.guard import Guard
from sagectl.daemon.jobs import Jobs
from sagectl.daemon.keeper import Keeper, read_row
from sagectl.daemon.memory import GpuMemory
from sagectl.daemon.preflight import Preflight
from sagectl.daemon.reloading import Reloader
from sagectl.daemon.restore import restore
from sagectl.daemon.results import Results
from sagectl.daemon.supervisor import Supervisor
from sagectl.errors import InvalidConfig, SagectlError
from sagectl.system import pidfile, plugins, sdnotify
from sagectl.system.gpu_owners import Owners
from sagectl.system.gpus import Gpus
from sagectl.system.journal import Journal
from sagectl.system.processes import Known, Processes
from sagectl.system.start_zygote import Started
from sagectl.system.store import Store
from sagectl.system.unit import Unit, inherited_socket

if TYPE_CHECKING:
    from sagectl.api.server import ApiServer

log = logging.getLogger("sagectld")

CONFIG_FILE = "config_file"
"""The fact in the database that tells which main file was read last: `{"path", "read"}`."""
STATUS_SECONDS = 1.0
"""How soon a change shows in `systemctl status`; a storm of restarts is told once."""
PREFLIGHTS_SECONDS = 0.3
"""How long the control API may wait for the first launches to be under way."""


async def serve(paths: Paths, zygote: Started, unit: Unit | None, *, explicit: bool) -> int | None:
    """Run the daemon on these paths until it is told to end. Raises InvalidConfig, DaemonRefusal.

    Returns a descriptor of the API's socket where this process is to go on with newly installed code.
    """
    return await Runtime(paths, zygote, unit, explicit=explicit).run()


def now() -> Moment:
    """The moment that the reducer is given."""
    return Moment(time.monotonic(), time.time(), random.random())


class Runtime:
    """One run of the daemon."""

    def __init__(self, paths: Paths, zygote: Started, unit: Unit | None, *, explicit: bool) -> None:
        """
        Args:
            unit: the systemd service that we are of.
            explicit: the configuration was named, so that its absence is an error.
        """
        self.paths = paths
        self._zygote = zygote
        self._explicit = explicit
        self._unit = unit
        self._degraded: tuple[str, ...] = ()
        self._guard: Guard | None = None
        self._own: list[asyncio.Task[None]] = []
        self._started = time.monotonic()
        self._started_wall = time.time()
        self.kinds = plugins.discover()
        self.by_name = self.kinds.by_name()
        self.boot_id = pidfile.boot_id()
        self.store = Store(paths.database)
        self.journal = Journal(self.store)
        self.keeper = Keeper(self.store, self.journal, self.boot_id)
        self.supervisor = Supervisor(now, self.keeper, self.journal)
        self.ending = Ending(self.supervisor, self.journal, unit)
        inherited = environment.base(os.environ)
        self.memory = self._gpu_memory()
        self.supervisor.watchers.append(self.memory.changed)
        self.preflight = Preflight(
            paths, self.by_name, inherited, self._ports_of_others, self.supervisor.assign_port, self.memory
        )
        self.effects = Effects(
            World(paths, self.by_name, inherited, self.journal), self.supervisor, self.preflight, self.memory
        )
        self.supervisor.effects = self.effects
        self.supervisor.watchers.append(self.effects.moved)
        self.reloader = Reloader(
            self.supervisor, self.journal, self.preflight, self._load, self.store.overrides, Control.new_id
        )
        self.control = self._operations()
        self.reloader.attach(
            self.control, lambda config: gpu_report.overdrawn(self.memory, config.gpu), self.memory.quiet
        )
        self.results = self._results()
        self.supervisor.watchers.append(self.results.moved)
        self.control.taken_out = self.results.taken_out

    def _operations(self) -> Control:
        return Control(
            self.supervisor,
            self.store,
            self.journal,
            self.kinds,
            self.paths,
            self.reloader,
            self.describe,
            self.ending,
            self.effects.prober.last_detail,
            self.keeper.flush,
            self.memory,
            self.preflight,
        )

    def _results(self) -> Results:
        return Results(
            self.supervisor,
            self.journal,
            self.control,
            self.preflight.loading,
            self.effects.target,
            str(self.paths.models),
        )

    def _gpu_memory(self) -> GpuMemory:
        return GpuMemory(
            self.supervisor,
            self.journal,
            Owners(self.paths.engines),
            Footprints(self.store, self.keeper.soon),
            lambda settings: Gpus(settings, self.paths.runtime / "gpus"),
        )

    def _load(self) -> Config:
        file, others = self.paths.config_file, self.paths.engines_d
        broken = self.kinds.broken_by_name()
        # A file that was there and is gone is a mistake, not the wish to stop every engine.
        before = self.store.fact(CONFIG_FILE) or {}
        known = bool(before.get("read")) and before.get("path") == str(file)
        return load(file, others, self.by_name, broken=broken, explicit=self._explicit or known)

    def _ports_of_others(self, engine_id: str) -> set[int]:
        others = [engine for engine in self.supervisor if engine.id != engine_id]
        ports = {engine.port for engine in others} | {engine.spec.port for engine in others}
        return {port for port in ports if port is not None}

    # --- Up, on, down ---------------------------------------------------------------------------

    async def run(self) -> int | None:
        """Come up, serve until told to end, go down; as `serve`."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.ending.asked_by_signal)
        loop.add_signal_handler(signal.SIGINT, self.ending.end)
        given, ours = inherited_socket(self.paths.socket, os.environ) or (None, False)
        settings = await self._come_up(renewed=ours)
        # The engines' way up goes on in their shims, while this process imports aiohttp, its largest part.
        await self.supervisor.until(self._all_launched, PREFLIGHTS_SECONDS)
        from sagectl.api.server import ApiServer

        api = ApiServer(
            self.control,
            self.paths.socket,
            owner_uid=os.geteuid(),
            group=settings.daemon.group,
            listening=given,
            ours=ours,
        )
        await api.start()
        assert self.effects.processes is not None
        self._guard = Guard(self.paths, self.journal, api, self.effects.processes)
        self.reloader.applied = lambda config: self._reloaded(config, api)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        self._own.append(loop.create_task(self._tell_systemd(), name="status"))
        jobs = Jobs(self.supervisor, self.control.progress, self.journal)
        self._own.append(loop.create_task(jobs.run(), name="jobs"))
        self.results.look_at_all()
        engines = counted(len(list(self.supervisor)), "engine", "engines")
        log.info("ready: %s, socket %s", engines, self.paths.socket)
        sdnotify.ready(self._summary())
        try:
            await self.ending.begun.wait()
            await self.reloader.close()
            await self.ending.bring_down()
            handover = api.handover() if self.ending.renewing else None
        finally:
            for task in self._own:
                task.cancel()
            await asyncio.gather(*self._own, return_exceptions=True)
            await api.stop()
            await self._close()
        log.info("the engines go on" if self.ending.leaving else "all engines are down")
        return handover

    async def _come_up(self, *, renewed: bool) -> Config:
        """Adopt, restore, start; what the logs and the API are to be like.

        Args:
            renewed: only our code changed: a broken configuration does not end a daemon that runs.
        """
        log_settings, config, problem = self._read_configuration()
        processes = Processes(
            self.paths.runtime,
            self.paths.log,
            self.effects,
            log_max_bytes=log_settings.daemon.log_max_size,
            log_keep=log_settings.daemon.log_keep,
            zygote=self._zygote,
            unit=self._unit,
        )
        # The zygote, and all engines through it, keep the limits that the daemon was started with.
        await processes.open()
        self.effects.processes = self.keeper.processes = processes
        _raise_open_files()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, processes.reap)
        found, _ = await asyncio.gather(
            processes.adopt(self._known_processes()), self.memory.configure(log_settings.gpu)
        )
        if problem is not None and not renewed and not any(item.process for item in found):
            await processes.close()
            raise problem
        self.effects.said_ready.update({item.name: item.generation for item in found if item.ready})
        self._own.append(asyncio.get_running_loop().create_task(self.memory.run(), name="GPU memory"))
        self._note_troubles(problem)
        specs = self.reloader.specs(config) if config else None
        restored = restore(self.store.engines(), found, specs, self.by_name, self.boot_id)
        for engine, _ in restored:
            self.supervisor.add(engine)
        for engine, event in restored:
            if isinstance(event, ev.StartRequested):
                self.control.start_with_dependencies(engine, by_user=False)
            elif event is not None:
                self.supervisor.post(engine.id, self._diagnosed(engine, event))
        if config is not None:
            self._apply(config)
        return log_settings

    def _known_processes(self) -> dict[str, Known]:
        known = {}
        for row in self.store.engines():
            read = read_row(row, self.by_name)
            if read is not None and read[0].process is not None and read[1] == self.boot_id:
                engine, process = read[0], read[0].process
                ready = engine.state is State.ACTIVE
                known[row.name] = Known(engine.generation, process, ready, {"engine": row.data["engine"]})
        return known

    def _diagnosed(self, engine: Engine, event: ev.Event) -> ev.Event:
        """An end that came while there was no daemon is explained as any other."""
        if not isinstance(event, ev.Exited) or event.diagnosis is not None:
            return event
        if not (engine.outcome or unasked(engine.spec.mode, event.status)).failed:
            return event
        return replace(event, diagnosis=self.effects.diagnose(engine, event.status))

    def _read_configuration(self) -> tuple[Config, Config | None, InvalidConfig | None]:
        """The configuration, or (with the problem) the defaults to look after running engines with."""
        try:
            config = self._load()
        except InvalidConfig as error:
            return Config(), None, error
        return config, config, None

    def _note_troubles(self, problem: InvalidConfig | None) -> None:
        if problem is not None:
            self._degraded = tuple(str(item) for item in problem.problems)
            text = "the configuration is broken; engines that run go on as they were: " + "; ".join(
                self._degraded
            )
            log.error(text)
            self.journal.record(None, None, "config-broken", text, "error")
        if self.store.trouble is not None:
            log.error(self.store.trouble)
            self.journal.record(None, None, "state-trouble", self.store.trouble, "error")
        for broken in self.kinds.broken:
            text = f"the plugin {broken.name} of {broken.distribution} is broken: {broken.reason}"
            log.error(text)
            self.journal.record(None, None, "plugin-broken", text, "error")

    def _apply(self, config: Config) -> None:
        """Take the configuration in, and start what is new and wants to be started at boot."""
        for warning in config.warnings:
            log.warning("%s", warning)
        for problem in config.left_out:
            log.error("%s", problem)
            self.journal.record(None, None, "left-out", str(problem), "error")
        self._note_file(config)
        added = self.reloader.adopt(config).added
        for name in added:
            engine = self.supervisor.named(name)
            if engine is not None and engine.spec.autostart:
                self.control.start_with_dependencies(engine, by_user=False)

    def _all_launched(self) -> bool:
        return not any(engine.sub is Sub.PREFLIGHT for engine in self.supervisor)

    async def _close(self) -> None:
        await self.results.close()
        await self.effects.close()
        if self.effects.processes is not None:
            await self.effects.processes.close()
        self.memory.close()
        self.keeper.processes = None
        self.keeper.flush()
        if not self.store.close():
            log.error("what changed since then is lost: %s", self.store.trouble)

    # --- Signals and systemd --------------------------------------------------------------------

    def _reloaded(self, config: Config, api: ApiServer) -> None:
        self._note_file(config)
        api.regroup(config.daemon.group)
        self._configuring = asyncio.get_running_loop().create_task(self.memory.configure(config.gpu))

    def _note_file(self, config: Config) -> None:
        """Remember the main file, so that its disappearance is told from its absence."""
        path = str(self.paths.config_file)
        before = self.store.fact(CONFIG_FILE)
        if before and before.get("path") != path:
            text = f"the configuration is {path} now; before it was {before['path']}"
            log.warning(text)
            self.journal.record(None, None, "config-moved", text, "warning")
        self.store.set_fact(CONFIG_FILE, {"path": path, "read": path in config.files})

    def _reload_by_signal(self) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self._reload(), name="reload")

    async def _reload(self) -> None:
        sdnotify.reloading()
        try:
            await self.control.reload()
            status = self._summary()
        except SagectlError as error:
            log.error("reload: %s", error)
            self.journal.record(None, None, "reload-refused", str(error), "error")
            status = f"the configuration is broken and was not applied; {self._summary()}"
        sdnotify.ready(status)

    async def _tell_systemd(self) -> None:
        """Feed the watchdog from the event loop, whose health it stands for, and keep the status current."""
        interval = sdnotify.watchdog_interval()
        told = ""
        while True:
            await asyncio.sleep(STATUS_SECONDS if interval is None else min(STATUS_SECONDS, interval / 2))
            if self._guard is not None and not self.ending.begun.is_set():
                await self._guard.look()
            fields = {"WATCHDOG": "1"} if interval is not None else {}
            if (text := self._summary()) != told:
                fields["STATUS"] = told = text
            if fields:
                sdnotify.notify(fields)

    def _summary(self) -> str:
        states = [engine.state for engine in self.supervisor]
        counts = [f"{states.count(state)} {state}" for state in State if states.count(state)]
        return f"{counted(len(states), 'engine', 'engines')}: {', '.join(counts)}" if counts else "no engines"

    # --- Telling --------------------------------------------------------------------------------

    def _tracking(self) -> dict[str, Any]:
        """How processes of engines are kept together, and what can limit a whole tree."""
        processes = self.effects.processes
        found = processes.groups if processes is not None else None
        if found is None:
            return {"method": "subreaper", "cgroup": None, "controllers": []}
        return {"method": "cgroup", "cgroup": str(found.base), "controllers": sorted(found.controllers)}

    def describe(self) -> dict[str, Any]:
        """The daemon's part of `status`."""
        config = self.reloader.config
        return {
            "version": sagectl.__version__,
            "pid": os.getpid(),
            "started_at": rfc3339(self._started_wall),
            "uptime_seconds": time.monotonic() - self._started,
            "socket": str(self.paths.socket),
            "config_file": str(self.paths.config_file),
            "config_files": list(config.files) if config else [],
            "config_errors": [str(p) for p in config.left_out] if config else list(self._degraded),
            "warnings": [str(warning) for warning in config.warnings] if config else [],
            "broken_plugins": [
                {"name": b.name, "distribution": b.distribution, "reason": b.reason}
                for b in self.kinds.broken
            ],
            "trouble": self.store.trouble,
            "process_tracking": self._tracking(),
            "stopping": self.ending.begun.is_set(),
        }


def _raise_open_files() -> None:
    """Two hundred engines with their probes and clients need more than the usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
