"""Learned footprints: the measured peak of each engine, by what it ran, for its next start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sagectl.core.engine import Engine
from sagectl.core.sizing import footprint_key
from sagectl.system.store import Store

FACT = "footprints"
MOST = 500
"""Footprints kept; the one that was confirmed longest ago is dropped first."""
SINKS = 0.9
"""By how much at most a run lowers what an earlier one took: it may have been idle."""
WORTH_A_WRITE = 1.005
"""A peak that is this much higher than the one known is written down."""


class Footprints:
    """`footprint_key` → bytes on the fullest GPU, kept in the database.

    A peak is never lowered by a later measurement of the same process, and by that of the next one slowly.
    """

    def __init__(self, store: Store, written: Callable[[], None]) -> None:
        """
        Args:
            written: told of each change in the store, which is to be committed.
        """
        self._store = store
        self._written = written
        found = store.fact(FACT)
        # key → [peak, engine's id, generation of the start that it was measured in]
        self._known: dict[str, list[Any]] = dict(found) if isinstance(found, dict) else {}

    def __call__(self) -> Mapping[str, int]:
        """What is known."""
        return {key: peak for key, (peak, _, _) in self._known.items()}

    def note(self, engine: Engine, measured: Mapping[tuple[str, int], int]) -> None:
        """Take in what a running engine holds now."""
        held = engine.reservation
        if held is None or not held.filed_under or not engine.went_ready:
            return
        parts = [size for gpu in held.gpu_ids if (size := measured.get((engine.name, gpu)))]
        if len(parts) < len(held.gpu_ids):
            return
        if held.elastic and held.kv_cache is None:
            return  # it fills what it is given, and nobody knows how much of that is its cache
        peak = max(parts) - (held.kv_cache or 0)
        key = footprint_key(engine.spec.kind, held.filed_under, held.tensor_parallel, held.pipeline_parallel)
        run = [engine.id, engine.generation]
        known, *of = self._known.get(key, [0])
        if of == run and peak <= known * WORTH_A_WRITE:
            return
        if of != run:
            peak = max(peak, int(known * SINKS))
        self._known.pop(key, None)
        self._known[key] = [max(peak, held.floor), *run]
        while len(self._known) > MOST:
            self._known.pop(next(iter(self._known)))
        self._store.set_fact(FACT, dict(self._known))
        self._written()
