"""Learned footprints: the measured peak of each engine, by what it ran, for its next start."""

from __future__ import annotations

from collections.abc import Mapping

from sagectl.core.engine import Engine
from sagectl.core.sizing import footprint_key
from sagectl.system.store import Store

FACT = "footprints"
MOST = 500
"""Footprints kept; the one that was confirmed longest ago is dropped first."""
WORTH_A_WRITE = 1.005
"""A peak that is this much higher than the one known is written down."""


class Footprints:
    """`footprint_key` → bytes on the fullest GPU, kept in the database.

    A peak is never lowered by a later measurement of the same process, but replaced by that of the next.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        found = store.fact(FACT)
        self._peaks: dict[str, int] = dict(found) if isinstance(found, dict) else {}
        self._of: dict[str, tuple[str, int]] = {}

    def __call__(self) -> Mapping[str, int]:
        """What is known."""
        return self._peaks

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
        run = (engine.id, engine.generation)
        known = self._peaks.get(key, 0) if self._of.get(key) == run else 0
        if peak <= known * WORTH_A_WRITE:
            return
        self._of[key] = run
        self._peaks.pop(key, None)
        self._peaks[key] = max(peak, held.floor)
        while len(self._peaks) > MOST:
            self._peaks.pop(next(iter(self._peaks)))
        self._store.set_fact(FACT, dict(self._peaks))
