"""Watches until the GPU driver has the memory of engines back whose processes have all ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sagectl.core import events as ev
from sagectl.core.engine import Engine, Sub
from sagectl.core.gpu import GpuReading
from sagectl.core.ledger import Key
from sagectl.core.sizes import gib
from sagectl.daemon.supervisor import Supervisor

PATIENCE = 10.0
"""So many seconds the driver may list processes that have ended, or hold their memory."""


class Releases:
    """Engines that are down but for their memory, each with the time since when."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._since: dict[str, tuple[int, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._since)

    def begin(self, engine: Engine) -> None:
        """All of its processes have ended. → MemoryReleased."""
        self._since[engine.id] = (engine.generation, asyncio.get_running_loop().time())

    def let_go(self) -> None:
        """There are no GPUs to manage any more: nothing is waited for."""
        known, self._since = self._since, {}
        for engine_id, (generation, _) in known.items():
            self._supervisor.post(engine_id, ev.MemoryReleased(generation))

    def watch(self, reading: GpuReading, measured: Mapping[Key, int]) -> None:
        """Look again, by what was just measured."""
        now = asyncio.get_running_loop().time()
        for engine_id, (generation, since) in list(self._since.items()):
            engine = self._supervisor.get(engine_id)
            if engine is None or engine.generation != generation or engine.sub is not Sub.RELEASING:
                del self._since[engine_id]
                continue
            late = _held(engine, reading, measured)
            if late and reading.trouble:
                late = f"nobody can say whether it gave its memory back: {reading.trouble.rstrip('.')}"
            elif late and now - since < PATIENCE:
                continue
            elif late:
                late = f"{late} {PATIENCE:g} s after its last process ended"
            del self._since[engine_id]
            self._supervisor.post(engine_id, ev.MemoryReleased(generation, late))


def _held(engine: Engine, reading: GpuReading, measured: Mapping[Key, int]) -> str:
    """What the driver still says of an engine none of whose processes lives; "" for nothing."""
    for index in engine.reservation.gpu_ids if engine.reservation else ():
        gpu, size = reading.gpu(index), measured.get((engine.name, index), 0)
        if gpu is not None and not gpu.lost and size:
            return f"the driver still says that it holds {gib(size)} of GPU {index}"
    return ""
