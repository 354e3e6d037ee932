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
from sagectl.system.journal import Journal
from sagectl.system.processes import Processes
from sagectl.system.store import RETRY_SECONDS, Store, StoredEngine

log = logging.getLogger("sagectl.keeper")


class Keeper:
    """Writes what changed when the event loop turns: after all that had to happen at once, in one commit.

    What the disk refuses is tried again each second, and both its refusal and its end are an event.
    """

    def __init__(self, store: Store, journal: Journal, boot_id: str) -> None:
        self.processes: Processes | None = None
        self._store = store
        self._journal = journal
        self._boot_id = boot_id
        self._scheduled = False
        self._retry: asyncio.TimerHandle | None = None
        self._told = (store.failure is not None, store.lost)
        self._changed: dict[str, Engine] = {}
        journal.recorded = self.soon

    def keep(self, engine: Engine) -> None:
        """Note an engine as it is now."""
        self._changed[engine.id] = engine
        self.soon()

    def drop(self, engine: Engine) -> None:
        """Forget an engine."""
        self._changed.pop(engine.id, None)
        self._store.drop_engine(engine.id)
        self.soon()

    def soon(self) -> None:
        """Commit when the event loop turns."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self, *, at_once: bool = False) -> bool:
        """Commit. False where the disk refused that, which leaves it in memory until a later try.

        Args:
            at_once: also where the disk refused less than a second ago.
        """
        self._scheduled = False
        for engine in self._changed.values():
            self._write(engine)
        self._changed.clear()
        kept = self._store.flush(at_once=at_once)
        self._tell()
        if not kept and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._try_again)
        return kept

    def _try_again(self) -> None:
        self._retry = None
        self.flush()

    def _tell(self) -> None:
        before, self._told = self._told, (self._store.failure is not None, self._store.lost)
        if self._told == before:
            return
        (was_failing, lost_before), (failing, lost) = before, self._told
        if was_failing and not failing:
            text = "the state database is written again; nothing of what happened meanwhile is missing"
            log.warning(text)
            self._journal.record(None, None, "state-recovered", text, "warning")
        for trouble in (lost if lost != lost_before else None, self._store.trouble if failing else None):
            if trouble is not None:
                log.error(trouble)
                self._journal.record(None, None, "state-trouble", trouble, "error")

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
