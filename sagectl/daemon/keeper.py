"""Keeps every engine twice: in the database, and beside its process in the shim's `started.json`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from sagectl.config import persist
from sagectl.core.engine import Engine
from sagectl.plugin import EngineKind
from sagectl.system.processes import Processes
from sagectl.system.store import Store, StoredEngine

log = logging.getLogger("sagectl.keeper")


class Keeper:
    """Writes what changed when the event loop turns: after all that had to happen at once, in one commit."""

    def __init__(self, store: Store, boot_id: str) -> None:
        self.processes: Processes | None = None
        self._store = store
        self._boot_id = boot_id
        self._scheduled = False
        self._changed: dict[str, Engine] = {}

    def keep(self, engine: Engine) -> None:
        """Note an engine as it is now."""
        self._changed[engine.id] = engine
        self._schedule()

    def drop(self, engine: Engine) -> None:
        """Forget an engine."""
        self._changed.pop(engine.id, None)
        self._store.drop_engine(engine.id)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Commit. What the disk refuses stays in memory and is tried again at the next change."""
        self._scheduled = False
        for engine in self._changed.values():
            self._write(engine)
        self._changed.clear()
        self._store.flush()

    def _write(self, engine: Engine) -> None:
        text = persist.dump_engine(engine)
        data = {"boot_id": self._boot_id, "engine": text}
        self._store.put_engine(engine.id, engine.name, engine.transient, data)
        if self.processes is not None and engine.process is not None:
            self.processes.update_context(engine.name, {"engine": text})


def read_row(row: StoredEngine, kinds: Mapping[str, EngineKind[Any]]) -> tuple[Engine, str] | None:
    """An engine and the boot it was kept in; None for a row that nobody can read."""
    try:
        return persist.load_engine(str(row.data["engine"]), kinds), str(row.data.get("boot_id", ""))
    except (KeyError, ValueError) as error:
        log.warning("the stored state of %s cannot be read and is dropped: %s", row.name, error)
        return None


def read_context(context: Mapping[str, Any], kinds: Mapping[str, EngineKind[Any]]) -> Engine | None:
    """The engine that a shim kept beside its process."""
    try:
        return persist.load_engine(str(context["engine"]), kinds)
    except (KeyError, ValueError, json.JSONDecodeError):
        return None
