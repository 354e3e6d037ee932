"""The engines' processes as the daemon sees them: through the shims, over connections that may break.

Nothing here waits: orders are sent, and what comes of them arrives as `ProcessEvents`. A connection
or a shim that is lost is replaced, and the shim's hello then tells what happened in between.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sagectl.core.engine import Process
from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from sagectl.system import groups, pidfile, strays
from sagectl.system.shim_keeper import HUNG, ShimKeeper, reap
from sagectl.system.shim_link import Zygote
from sagectl.system.start_zygote import Started
from sagectl.system.supervised import LaunchOrder, ProcessEvents, Supervised
from sagectl.system.unit import Unit

__all__ = ["Found", "Known", "LaunchOrder", "Measurement", "ProcessEvents", "Processes"]

PR_SET_CHILD_SUBREAPER = 36
RELEASED = 2.0  # seconds that shims have to end after their engines
SCOPED = 2.0  # seconds that systemd may take to make a scope
SWEEP = 5.0  # seconds between looks for zombies that nobody waits for, and for shims that were stopped


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a whole tree uses. log_written, read_bytes: bytes since ever; read_bytes includes caches."""

    log_written: int
    rss_bytes: int
    read_bytes: int
    cpu_seconds: float
    processes: int


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows of a process, for where its directory was removed."""

    generation: int
    process: Process
    ready: bool
    context: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What `adopt` found of one engine.

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


class Processes:
    """All engines' processes.

    runtime: the directory of PID files and shims; log_dir: of NAME.log.
    nofile: RLIMIT_NOFILE for engines; None for ours as it is now, before the daemon raises its own.
    zygote: one that was started already. unit: the systemd service that we are of.
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
        zygote: Started | None = None,
        unit: Unit | None = None,
    ) -> None:
        self._directory = Path(os.path.abspath(runtime)) / "engines"
        self._log_dir = Path(os.path.abspath(log_dir))
        self._sink = events
        self._log_limits = {"max_bytes": log_max_bytes, "keep": log_keep}
        self._nofile = nofile or resource.getrlimit(resource.RLIMIT_NOFILE)
        self._engines: dict[str, Supervised] = {}
        self._held: list[Callable[[], None]] | None = None  # events during adoption
        self._zombies: dict[tuple[int, int], float] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._known: Mapping[str, Known] = {}
        self._started_zygote = zygote
        self._unit = unit
        self.groups: groups.Groups | None = None
        self._zygote: Zygote | None = None

    async def open(self) -> None:
        """Make the directories, become a subreaper, start the zygote. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._zygote = Zygote(self._directory.parent, self._started_zygote, self._unit, self._place)
        await self._settle_zygote()
        self._place(self._zygote.pid)
        self._sweep()

    async def _settle_zygote(self) -> None:
        """Wait until systemd has moved the zygote into its scope, from which the groups' place is seen."""
        root = groups.mount()
        pid = self._zygote.pid if self._zygote else None
        if self._unit is None or root is None or pid is None:
            return
        end = self._loop.time() + SCOPED
        while self._loop.time() < end:
            group = groups.own_group(pid, root)
            if group is None or self._unit.scope in group.parts:
                return
            await asyncio.sleep(0.005)  # systemd-run becomes the zygote without a word

    def _place(self, zygote: int | None) -> None:
        """A zygote was started: its shims and their engines get their places."""
        name, scope = groups.name_of(self._directory), self._unit.scope if self._unit else None
        self.groups = groups.prepare(zygote, name, scope) if zygote is not None else None

    async def close(self) -> None:
        """Let go of everything; shims and engines stay as they are."""
        await self._released()
        engines, self._engines = list(self._engines.values()), {}
        await asyncio.gather(*(engine.shim.close() for engine in engines))
        if self._sweeper:
            self._sweeper.cancel()
        if self._zygote:
            self._zygote.close()
            self._zygote = None
        if self.groups and self._unit is None:
            groups.remove(self.groups.base)

    async def _released(self) -> None:
        """Wait for shims that were told to end: one that is just being replaced has not heard of it yet."""
        end = self._loop.time() + RELEASED
        while self._loop.time() < end and any(engine.releasing for engine in self._engines.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # each tells its own keeper

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
        self._engine(name).launch(replace(order, nofile=order.nofile or self._nofile))

    def signal(self, name: str, generation: int, signum: int) -> None:
        """Signal the main process alone, if it is still of this generation."""
        if name in self._engines:
            self._engines[name].signal(generation, signum)

    def kill_tree(self, name: str, generation: int) -> None:
        """SIGKILL everything in the tree until nothing is left. → exited if need be, then tree_empty."""
        engine = self._engines.get(name)
        if engine is None or not engine.kill_tree(generation):
            self._loop.call_soon(self._emit, lambda: self._sink.tree_empty(name, generation))

    def update_context(self, name: str, context: Mapping[str, Any]) -> None:
        """Replace the context that `adopt` will hand back."""
        if name in self._engines:
            self._engines[name].update_context(context)

    def release(self, name: str) -> None:
        """The engine is down and stays down: its shim and its runtime directory may go."""
        if name in self._engines:
            self._engines[name].release()

    async def measure(self, name: str, generation: int) -> Measurement | None:
        """What the tree uses; None where nobody can tell now."""
        engine = self._engines.get(name)
        answer = await engine.ask("measure", HUNG) if engine else None
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
        engine = self._engines.get(name)
        answer = await engine.ask("pids", HUNG) if engine else None
        return tuple(answer["pids"]) if answer else ()

    # --- Adoption ---

    async def adopt(self, known: Mapping[str, Known] | None = None) -> list[Found]:
        """Find what an earlier daemon left. Events of it come only after this has returned.

        Args:
            known: engine → the process that the database remembers.
        """
        self._held = []
        self._known = known or {}
        found_astray = strays.find(self._directory)
        for name in found_astray:
            # Only a new shim for an existing directory looks for what lives already.
            (self._directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in self._directory.glob("*.pid"):
            if not entry.with_suffix("").is_dir():
                entry.unlink(missing_ok=True)
        names = {entry.name for entry in self._directory.iterdir() if entry.is_dir()} | found_astray.keys()
        try:
            found = await asyncio.gather(
                *(self._adopt(name, found_astray.get(name)) for name in sorted(names))
            )
        finally:
            self._known = {}
            held, self._held = self._held, None
            for event in held:
                self._loop.call_soon(event)
        return [one for one in found if one]

    async def _adopt(self, name: str, shim: strays.Identity | None) -> Found | None:
        directory = self._directory / name
        started = pidfile.read_started(directory)
        if started and started["boot_id"] != pidfile.boot_id():
            (self._directory / f"{name}.pid").unlink(missing_ok=True)
            noted = pidfile.read_exit(directory)
            status = pidfile.exit_of(noted) if noted.get("generation") == started["generation"] else None
            context = started.get("context") or {}
            return Found(name, started["generation"], None, status, 0, False, context, False)
        engine = self._engine(name)
        engine.adopting = True
        engine.shim.stray = shim
        await asyncio.wait([engine.shim.reach()])
        engine.adopting, engine.shim.stray = False, None
        if not engine.generation:
            engine.release()
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

    # --- Engines, and children of ours that nobody else reaps ---

    def _engine(self, name: str) -> Supervised:
        engine = self._engines.get(name)
        if engine is None:
            directory = self._directory / name
            engine = Supervised(name, directory, self._sink, self._emit, self._gone)
            engine.shim = ShimKeeper(
                directory, engine, lambda sock: self._spawn(name, sock), self._replace_zygote
            )
            self._engines[name] = engine
        return engine

    def _gone(self, engine: Supervised) -> None:
        if self._engines.get(engine.name) is engine:
            del self._engines[engine.name]

    def _spawn(self, name: str, sock: socket.socket) -> bool:
        assert self._zygote
        directory = self._directory / name
        engine = self._engines[name]
        known = self._known.get(name) or _known(engine)
        if known and not pidfile.read_started(directory):
            self._remember(directory, known)
        new = not engine.begun and not directory.exists()
        order = {
            "name": name,
            "dir": str(directory),
            "log": {"path": str(self.log_path(name)), **self._log_limits},
            "mode": "new" if new else "adopt",
            "group": str(self.groups.base) if self.groups else None,
        }
        self._zygote.spawn(order, sock)
        return new

    def _replace_zygote(self) -> None:
        """It was told to make a shim, of which nothing was heard: it may hang, or be stopped."""
        if self._zygote:
            self._zygote.replace(HUNG)

    @staticmethod
    def _remember(directory: Path, known: Known) -> None:
        """Write down for a new shim what its engine's process is, where that was removed, and it lives."""
        fd = pidfile.open_verified(known.process)
        if fd is None:
            return
        try:
            uid = os.stat(f"/proc/{known.process.pid}").st_uid
            directory.mkdir(mode=0o700 if uid == os.geteuid() else 0o711, exist_ok=True)
            pidfile.write_started(directory, known.generation, known.process, uid, known.ready, known.context)
        except OSError:
            return  # then the engine can be ended, but not adopted
        finally:
            os.close(fd)

    def _emit(self, event: Callable[[], None]) -> None:
        if self._held is None:
            event()
        else:
            self._held.append(event)

    def reap(self) -> None:
        """Reap our zombie children that nobody has waited for in a while: orphans of dead shims."""
        now, seen = self._loop.time(), dict[tuple[int, int], float]()
        for pid in tree.children(os.getpid()):
            fields = tree.process_stat(pid)
            if not fields or tree.alive(fields):
                continue
            since = self._zombies.get((pid, int(fields[19])), now)
            seen[pid, int(fields[19])] = since
            if now - since >= SWEEP:
                reap(os.P_PID, pid)
        self._zombies = seen

    def renew(self) -> None:
        """Somebody removed the runtime directory: make it again, and have every shim put its files back."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for engine in self._engines.values():
            engine.shim.send({"op": "renew"})

    def _sweep(self) -> None:
        self.reap()
        for engine in self._engines.values():
            engine.wake()
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)


def _known(engine: Supervised) -> Known | None:
    if engine.process is None:
        return None
    return Known(engine.generation, engine.process, engine.ready, engine.context or {})
