"""Watches engines that measurably hold more GPU memory than was reserved for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sagectl.core import events as ev
from sagectl.core.engine import Engine, OnExceed
from sagectl.core.sizes import gib
from sagectl.daemon.supervisor import Supervisor
from sagectl.system.journal import Journal

TOLERANCE = 1.05
"""Drivers round, and contexts grow a little."""
SLACK = 128 << 20
TWICE = 2
"""So many measurements in a row it takes: a peak of a moment is none."""


def excess(engine: Engine, measured: Mapping[tuple[str, int], int]) -> str:
    """In which way the engine exceeds its reservation, in words; "" where it does not."""
    held = engine.reservation
    for gpu in held.gpu_ids if held is not None else ():
        assert held is not None
        size, reserved = measured.get((engine.name, gpu), 0), held.on(gpu)
        if size > reserved * TOLERANCE + SLACK:
            return f"holds {gib(size)} of GPU {gpu}, where {gib(reserved)} are reserved for it"
    return ""


class Exceeding:
    """Says so, once a run, and does what `on_exceed` says."""

    def __init__(self, supervisor: Supervisor, journal: Journal) -> None:
        self._supervisor = supervisor
        self._journal = journal
        self._seen: dict[str, tuple[int, int]] = {}

    def look(
        self,
        running: Iterable[Engine],
        measured: Mapping[tuple[str, int], int],
        quiet: Callable[[Engine], bool],
    ) -> None:
        """Judge all engines that run.

        Args:
            quiet: whether a stop of this engine would disturb nobody.
        """
        before, self._seen = self._seen, {}
        for engine in running:
            text = excess(engine, measured)
            if not text:
                continue
            generation, times = before.get(engine.id, (engine.generation, 0))
            times = times + 1 if generation == engine.generation else 1
            self._seen[engine.id] = (engine.generation, times)
            if times == TWICE:
                said = {
                    OnExceed.WARN: "",
                    OnExceed.RESTART: "; it is restarted",
                    OnExceed.STOP: "; it is stopped",
                }
                self._journal.record(
                    engine.name, engine.id, "memory-exceeded", text + said[engine.spec.on_exceed], "warning",
                    engine.state.value, engine.substate,
                )  # fmt: skip
            if times >= TWICE and engine.spec.on_exceed is not OnExceed.WARN and quiet(engine):
                self._act(engine, f"it {text}")

    def _act(self, engine: Engine, why: str) -> None:
        if engine.spec.on_exceed is OnExceed.STOP:
            self._supervisor.post(engine.id, ev.StopRequested(why=f"stopped: {why}"))
        else:
            self._supervisor.post(engine.id, ev.MemoryExceeded(engine.generation, why))
