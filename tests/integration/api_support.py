"""A control API on a real socket over a fake Control, which holds real engines and a real journal."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sagectl.api.limits import Limits
from sagectl.api.server import ApiServer
from sagectl.core import ledger
from sagectl.core.engine import Desired, Engine, EngineSpec, Process, State, Sub
from sagectl.core.gpu import Gpu, GpuReading
from sagectl.core.ledger import Account, Entry, Phase
from sagectl.core.reload import Change, ReloadPlan
from sagectl.errors import Conflict, InvalidConfig, Problem, UnknownEngine
from sagectl.plugin import Diagnosis, ExitStatus, LaunchPlan, Mode
from sagectl.system.journal import Journal
from sagectl.system.store import Store


def engine(name: str, **changes: Any) -> Engine:
    """An engine that was never started."""
    spec = EngineSpec(name=name, kind="exec", group=name.partition("@")[0] if "@" in name else "")
    return replace(Engine(id=f"engine-{abs(hash(name)) % 16**8:08x}", spec=spec), **changes)


def running(name: str, **changes: Any) -> Engine:
    """An engine that is ready, on port 8001."""
    process = Process(pid=4711, starttime=99, boot_id="b", started=1.0, started_wall=1.7e9)
    up = {
        "state": State.ACTIVE,
        "sub": Sub.READY,
        "desired": Desired.RUNNING,
        "process": process,
        "port": 8001,
    }
    plan = LaunchPlan(argv=("/bin/true",), served_models=(name,))
    return engine(name, **{**up, "plan": plan, "since_wall": 1.7e9, **changes})


def failed(name: str) -> Engine:
    """An engine that a signal ended."""
    return engine(
        name,
        state=State.FAILED,
        sub=Sub.PREFLIGHT_FAILED,
        reason="the port is in use",
        last_exit=ExitStatus(signal=9),
        diagnosis=Diagnosis("Something else has the port", "Choose another"),
    )


def job(name: str) -> Engine:
    """A job that runs."""
    up = running(name, sub=Sub.RUNNING, port=None)
    return replace(up, spec=replace(up.spec, mode=Mode.RUN))


GPUS: dict[str, Any] = {
    "backend": "simulated",
    "managed": True,
    "is_mock": True,
    "driver": "simulated",
    "trouble": None,
    "devices": [
        {
            "gpu_id": 0,
            "uuid": "GPU-simulated-0",
            "name": "Simulated GPU",
            "memory_total_gb": 24.0,
            "memory_used_gb": 5.0,
            "memory_free_gb": 16.0,
            "memory_reserved_gb": 4.0,
            "memory_measured_gb": 3.0,
            "memory_foreign_gb": 2.0,
            "memory_kept_free_gb": 1.0,
            "utilization": None,
            "temperature_celsius": None,
            "power_watts": None,
            "power_limit_watts": None,
            "numa_node": 0,
            "cpus": [0],
            "nvlink": [1],
            "mig_parent": None,
            "lost": None,
            "is_mock": True,
            "attribution": "process",
            "engines": [
                {
                    "name": "chat",
                    "engine_kind": "llm",
                    "phase": "resident",
                    "reserved_gb": 4.0,
                    "measured_gb": 3.0,
                }
            ],
            "foreign_processes": [{"pid": 7, "used_gb": 2.0, "command": "python3"}],
            "budgets": {"llm": {"budget_gb": 12.0, "held_gb": 4.0, "left_gb": 8.0}},
        }
    ],
    "queue": [
        {"name": "big", "priority": "normal", "needed_gb": 20.0, "reason": "no room", "waiting_for": ["chat"]}
    ],
}


@dataclass
class FakeControl:
    """Control as sagectl.daemon.control describes it, without processes."""

    journal: Journal
    logs: Path
    held: dict[str, Engine] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    settling: asyncio.Event = field(default_factory=asyncio.Event)
    settle: asyncio.Event = field(default_factory=asyncio.Event)
    defining: asyncio.Event = field(default_factory=asyncio.Event)
    plan: ReloadPlan = field(default_factory=ReloadPlan)
    invalid: list[Problem] = field(default_factory=list)
    figures: dict[str, Any] | None = None

    def put(self, *engines: Engine) -> None:
        self.held |= {e.id: e for e in engines}

    def engines(self) -> list[Engine]:
        return sorted(self.held.values(), key=lambda e: e.name)

    def resolve(self, ref: str) -> list[Engine]:
        found = [e for e in self.engines() if ref in (e.id, e.name)]
        found = found or [e for e in self.engines() if e.spec.group == ref]
        if not found:
            raise UnknownEngine(f"there is no engine {ref!r}", remedy="look", facts={"engine": ref})
        return found

    def by_port(self, port: int) -> Engine:
        for e in self.engines():
            if e.port == port:
                return e
        raise UnknownEngine(f"no engine has port {port}")

    def start(self, e: Engine, *, again: bool = False) -> None:
        self.asked.append(("start", e.name, again))
        if e.sub is Sub.COMPLETED and not again:
            raise Conflict(f"the job {e.name} is completed", remedy="again", facts={"engine": e.name})
        self.put(replace(e, desired=Desired.RUNNING, state=State.ACTIVATING, sub=Sub.STARTING))

    def stop(self, e: Engine, *, drain: float | None = None) -> None:
        self.asked.append(("stop", e.name, drain))
        self.put(replace(e, desired=Desired.STOPPED, state=State.DEACTIVATING, sub=Sub.DRAINING))

    def restart(self, e: Engine) -> None:
        self.asked.append(("restart", e.name))

    def reset_failed(self, e: Engine) -> None:
        self.asked.append(("reset-failed", e.name))

    def unload(self, e: Engine, name: str | None = None) -> None:
        self.asked.append(("unload", e.name, name))
        if name is not None:
            raise Conflict(f"{e.name} has taken in no model {name!r}", remedy="it took in none")

    def set_autostart(self, e: Engine, enabled: bool) -> None:
        self.asked.append(("autostart", e.name, enabled))
        self.put(replace(e, spec=replace(e.spec, autostart=enabled)))

    async def define(self, body: Mapping[str, Any]) -> Engine:
        self.asked.append(("define", dict(body)))
        if self.invalid:
            raise InvalidConfig(self.invalid)
        if body.get("name") == "slow":
            await self.defining.wait()
        if body.get("name") == "broken":
            raise RuntimeError("a fault of the daemon")
        made = engine(body.get("name", "unnamed"), transient=True)
        self.put(made)
        self.asked.append(("defined", made.name))
        return made

    async def settled(self, engine_id: str, timeout: float | None) -> Engine:
        self.settling.set()
        try:
            async with asyncio.timeout(timeout):
                await self.settle.wait()
        except TimeoutError:
            pass
        return self.resolve(engine_id)[0]

    async def reload(self, *, dry_run: bool = False, restart: bool = True) -> ReloadPlan:
        self.asked.append(("reload", dry_run, restart))
        if self.invalid:
            raise InvalidConfig(self.invalid)
        return self.plan

    def forget(self, e: Engine) -> None:
        if e.state not in (State.INACTIVE, State.FAILED):
            raise Conflict(f"{e.name} is up", remedy="stop it")
        del self.held[e.id]

    def explain(self, e: Engine) -> dict[str, Any]:
        row = {"gpu_id": 0, "total_gb": 24.0, "foreign_gb": 2.0, "reserved_gb": 0.0, "kept_free_gb": 1.0}
        row |= {"budget_left_gb": None, "free_gb": 21.0, "needed_gb": 4.0, "fits": True}
        words = {"decision": "running", "reason": "it is", "waiting_for": [], "arithmetic": []}
        return {**words, "needed_gb": 4.0, "devices": [row]}

    def definition(self, e: Engine) -> dict[str, Any]:
        return {"kind": {"value": e.spec.kind, "origin": "sagectl.toml:1"}}

    def kinds(self) -> list[dict[str, Any]]:
        return [{"name": "exec"}]

    def measured_gb(self, e: Engine) -> float | None:
        return 1.5 if e.reservation else None

    def reservations(self) -> list[dict[str, Any]]:
        return [{"engine": e.name} for e in self.engines() if e.reservation]

    def accounts(self) -> tuple[Account, ...]:
        gib = 1 << 30
        gpus = (
            Gpu(0, "GPU-0", "A card", 24 * gib, 5 * gib, utilization=0.25, temperature=61, power=200.5),
            Gpu(1, "GPU-1", "A card", 24 * gib, 0, lost="it fell off the bus"),
        )
        entry = Entry("chat", "llm", "", 0, 4 * gib, 3 * gib, Phase.RESIDENT)
        return ledger.accounts(GpuReading("nvml", gpus), [entry], gib)

    def budgets(self) -> dict[str, int | str]:
        return {"llm": "50%"}

    def queue_length(self) -> int | None:
        return 2

    def gpu(self) -> dict[str, Any]:
        return GPUS

    def status(self) -> dict[str, Any]:
        return {"version": "0", "pid": os.getpid()}

    def log_path(self, e: Engine) -> str:
        return str(self.logs / f"{e.name}.log")

    async def progress(self, e: Engine) -> dict[str, Any] | None:
        return self.figures

    async def history(self, e: Engine, points: int) -> list[dict[str, Any]]:
        self.asked.append(("history", e.name, points))
        return [{"step": 1, "at": 1.7e9, "loss": 2.5}, {"step": 2, "at": None}]

    async def reexec(self) -> None:
        self.asked.append(("reexec",))

    def shutdown(self) -> None:
        self.asked.append(("shutdown",))


PLAN = ReloadPlan(added=("new",), in_place=(Change("chat", ("labels",)),), unchanged=3, warnings=("hm",))


@dataclass
class Served:
    """An API that answers. `path` is its socket."""

    control: FakeControl
    server: ApiServer
    path: Path

    async def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own, by hand."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Host": "x", "Connection": "close"}
        if body is not None:
            given |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
        return await self.raw(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data)

    async def raw(self, data: bytes) -> Reply:
        """Send these bytes and read until the end."""
        reader, writer = await asyncio.open_unix_connection(str(self.path), limit=2**24)
        with closing(writer):
            try:
                writer.write(data)
                await writer.drain()
            except ConnectionError:
                pass
            async with asyncio.timeout(10):
                return Reply(await reader.read())

    def connect(self) -> socket.socket:
        """A connection to do odd things with."""
        line = socket.socket(socket.AF_UNIX)
        line.setblocking(False)
        line.connect(str(self.path))
        return line


class Reply:
    """A raw answer, taken apart."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1]) if first else 0
        self.headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self) -> dict[str, Any]:
        """The body as a problem document that says something."""
        assert self.headers["content-type"] == "application/problem+json", self.data[:500]
        found: dict[str, Any] = self.json
        assert found["status"] == self.status
        assert found["type"]
        assert found["title"]
        assert len(found["detail"]) > 10
        assert found["code"]
        assert b"Traceback" not in self.body
        return found


@asynccontextmanager
async def serving(
    folder: Path, limits: Limits | None = None, group: str | None = None
) -> AsyncIterator[Served]:
    """An API on FOLDER/s over a fake Control."""
    store = Store(folder / "db")
    control = FakeControl(Journal(store), folder)
    path = folder / "s"
    server = ApiServer(control, path, owner_uid=os.getuid(), group=group, limits=limits)  # type: ignore[arg-type]
    await server.start()
    try:
        yield Served(control, server, path)
    finally:
        await server.stop()
        store.close()
