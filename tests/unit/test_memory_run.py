"""The loop of the GPU accounts: it ends when it is told to, whatever happens at that moment."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from sagectl.core.gpu import GpuReading
from sagectl.daemon.memory import GpuMemory


class Meter:
    """A machine without GPUs."""

    def read(self, patience: float | None = None) -> GpuReading:
        return GpuReading("none")

    def environment(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


class Nobody:
    """Supervisor and owners of no engine."""

    def __iter__(self) -> Any:
        return iter(())

    def of(self, pids: Any) -> dict[str, set[int]]:
        return {}


@pytest.mark.parametrize("turns", range(6))
async def test_it_ends_when_it_is_cancelled_just_after_something_changed(turns: int) -> None:
    """Python 3.11's asyncio.wait_for forgets a cancellation that meets the end of what it waits for."""
    nobody = cast(Any, Nobody())
    memory = GpuMemory(nobody, nobody, nobody, nobody, lambda settings: Meter())
    await memory.configure(memory.settings)
    running = asyncio.ensure_future(memory.run())
    await asyncio.sleep(0.05)
    memory.kick()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=2)
    running.cancel()
    assert done == {running}
