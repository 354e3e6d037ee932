"""What outlives the daemon: engines, overrides of autostart, and the journal's events, in SQLite."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from sagectl.system import database
from sagectl.system.database import Damaged, Unusable

KEPT_EVENTS = 10_000
RETRY_SECONDS = 1.0
"""How long after a write that failed the next one is tried."""
_TRIM_EVERY = 256
_EVENT_COLUMNS = "id, at, engine, engine_id, kind, level, text, state, substate"
_event_row = attrgetter(*_EVENT_COLUMNS.split(", "))


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the journal. `at` is wall clock, Unix seconds; ids count up without gaps."""

    id: int
    at: float
    engine: str | None
    engine_id: str | None
    kind: str
    level: str
    text: str
    state: str | None
    substate: str | None


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """One row of `engines`; `data` is whatever JSON object the supervisor keeps of it."""

    id: str
    name: str
    transient: bool
    data: Mapping[str, Any]


class Store:
    """The state database. Methods change memory at once; `flush` writes and commits what changed.

    It never raises for the database's sake. One that is damaged is set aside as `NAME.corrupt-TIME`
    and rebuilt. One that cannot be written (no room, read-only, locked by somebody) is left as it is and
    tried again each second, while everything goes on in memory, from what could be read of it. One that
    was removed is made again. `trouble` says so.

    Not thread safe: one thread, the event loop's.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(os.path.abspath(path))
        self._failure: Damaged | Unusable | None = None
        self._lost: str | None = None
        self._engines: dict[str, StoredEngine] = {}
        self._overrides: dict[str, bool] = {}
        self._facts: dict[str, Any] = {}
        self._changed_engines: set[str] = set()
        self._changed_facts: set[str] = set()
        self._changed_overrides: set[str] = set()
        self._pending: deque[Entry] = deque(maxlen=KEPT_EVENTS)
        self._next_id = 1
        self._trimmed_at = 0
        self._retry_at = 0.0
        self._inode = 0
        """Of the file that `_db` is; 0 where it is in memory."""
        self._size = 0
        """Of that file when we last looked."""
        self._db = self._open()

    @property
    def trouble(self) -> str | None:
        """What is wrong, a sentence without a final period; None while all is well.

        A write that failed is forgotten once one succeeds, a database that was set aside never is.
        """
        if self._failure is None:
            return self._lost
        return (
            f"the state database {self.path} cannot be written ({self._failure}); the daemon goes on from "
            "memory and tries again, and what changes until then is lost if the daemon ends: "
            f"{self._failure.remedy}"
        )

    @property
    def failure(self) -> Damaged | Unusable | None:
        """Why what changes is kept in memory alone for now; None where it is not."""
        return self._failure

    @property
    def lost(self) -> str | None:
        """The part of `trouble` that is never forgotten: what became of an earlier database."""
        return self._lost

    # --- engines and overrides

    def engines(self) -> list[StoredEngine]:
        """All engines, in no order."""
        return list(self._engines.values())

    def put_engine(self, engine_id: str, name: str, transient: bool, data: Mapping[str, Any]) -> None:
        """Insert or replace an engine. `data` must be JSON; it is not copied, so do not change it."""
        self._engines[engine_id] = StoredEngine(engine_id, name, transient, data)
        self._changed_engines.add(engine_id)

    def drop_engine(self, engine_id: str) -> None:
        """Forget an engine; one that is unknown is no error."""
        if self._engines.pop(engine_id, None) is not None:
            self._changed_engines.add(engine_id)

    def overrides(self) -> dict[str, bool]:
        """`enable` (True) and `disable` (False) by engine name."""
        return dict(self._overrides)

    def set_override(self, name: str, autostart: bool | None) -> None:
        """Store an override of autostart; None removes it."""
        if autostart is None:
            self._overrides.pop(name, None)
        else:
            self._overrides[name] = autostart
        self._changed_overrides.add(name)

    def fact(self, key: str) -> Any:
        """What was noted under this key, None where nothing was."""
        return self._facts.get(key)

    def set_fact(self, key: str, value: Any) -> None:
        """Note a JSON value."""
        if self._facts.get(key) != value:
            self._facts[key] = value
            self._changed_facts.add(key)

    # --- events

    @property
    def last_id(self) -> int:
        """The id of the newest event, 0 where there was never one."""
        return self._next_id - 1

    def add_event(
        self,
        kind: str,
        text: str,
        *,
        level: str = "info",
        engine: str | None = None,
        engine_id: str | None = None,
        state: str | None = None,
        substate: str | None = None,
    ) -> Entry:
        """Append an event and return it with its id."""
        entry = Entry(self._next_id, time.time(), engine, engine_id, kind, level, text, state, substate)
        self._next_id += 1
        self._pending.append(entry)
        return entry

    def events(self, *, after: int = 0, limit: int = 1000) -> list[Entry]:
        """The first `limit` events whose id is larger than `after`, oldest first."""
        rows = self._read(
            f"SELECT {_EVENT_COLUMNS} FROM events WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        )
        rows += [entry for entry in self._pending if entry.id > after]
        return rows[:limit]

    def newest_events(self, count: int, engine: str | None = None) -> list[Entry]:
        """The newest `count` events (of `engine`, by name), oldest first."""
        where, values = ("WHERE engine = ?", (engine,)) if engine is not None else ("", ())
        rows = self._read(
            f"SELECT {_EVENT_COLUMNS} FROM events {where} ORDER BY id DESC LIMIT ?", (*values, count)
        )
        rows.reverse()
        rows += [entry for entry in self._pending if engine is None or entry.engine == engine]
        return rows[-count:] if count > 0 else []

    def _read(self, query: str, values: Sequence[Any]) -> list[Entry]:
        self.flush()
        try:
            return [Entry(*row) for row in self._db.execute(query, values)]
        except sqlite3.Error as error:
            self._failed(database.judged(error, self.path))
            return []

    # --- writing

    @property
    def dirty(self) -> bool:
        """Something waits for `flush`."""
        return bool(self._pending or self._changed_engines or self._changed_overrides or self._changed_facts)

    def flush(self, *, at_once: bool = False) -> bool:
        """Write and commit what changed since the last time. False where that did not work (yet).

        Args:
            at_once: also where a write failed less than a second ago.
        """
        if not self.dirty and self._failure is None:
            return True
        if time.monotonic() < self._retry_at and not at_once:
            return False
        try:
            if self._inode and not self._is_there():
                self._let_go()
                self._lost = f"the state database {self.path} was removed under the daemon; it was made again"
            if not self._inode:
                self._attach()
            self._write()
            self._size = self.path.stat().st_size
        except (sqlite3.Error, OSError) as error:
            self._failed(database.judged(error, self.path))
            return False
        except (Damaged, Unusable) as error:
            self._failed(error)
            return False
        self._changed_engines.clear()
        self._changed_overrides.clear()
        self._changed_facts.clear()
        self._pending.clear()
        self._failure = None
        return True

    def close(self) -> bool:
        """Flush, also when a failed write was due to wait, and close. False where something is lost."""
        kept = self.flush(at_once=True)
        self._db.close()
        return kept

    def _write(self) -> None:
        trim = self._next_id - self._trimmed_at > _TRIM_EVERY
        with self._db:
            for engine_id in self._changed_engines:
                self._write_engine(engine_id)
            for name in self._changed_overrides:
                if name in self._overrides:
                    self._db.execute("REPLACE INTO overrides VALUES (?, ?)", (name, self._overrides[name]))
                else:
                    self._db.execute("DELETE FROM overrides WHERE name = ?", (name,))
            for key in self._changed_facts:
                self._db.execute("REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(self._facts[key])))
            self._db.executemany(
                "REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_event_row, self._pending)
            )
            if trim:
                self._db.execute("DELETE FROM events WHERE id < ?", (self._next_id - KEPT_EVENTS,))
        if trim:
            self._trimmed_at = self._next_id

    def _write_engine(self, engine_id: str) -> None:
        engine = self._engines.get(engine_id)
        if engine is None:
            self._db.execute("DELETE FROM engines WHERE id = ?", (engine_id,))
            return
        self._db.execute(
            "REPLACE INTO engines VALUES (?, ?, ?, ?, ?)",
            (engine_id, engine.name, engine.transient, json.dumps(engine.data), time.time()),
        )

    # --- opening, and what goes wrong

    def _open(self) -> sqlite3.Connection:
        try:
            if database.is_empty(self.path):  # SQLite would take it for new, and what lies beside it for old
                raise Damaged("it is empty: somebody, or a crash of the machine, truncated it")
            db = self._connect()
        except Unusable as error:
            return self._do_without(error)
        except Damaged as error:
            return self._rebuild(error)
        try:
            self._load(db)
        except (Damaged, Unusable) as error:
            db.close()
            return self._rebuild(error) if isinstance(error, Damaged) else self._do_without(error)
        return db

    def _connect(self) -> sqlite3.Connection:
        """Open the file. Raises Damaged, Unusable."""
        db = database.connect(self.path)
        found = self.path.stat()
        self._inode, self._size = found.st_ino, found.st_size
        return db

    def _load(self, db: sqlite3.Connection) -> None:
        """Raises Damaged, Unusable."""
        try:
            for engine_id, name, transient, text in db.execute(
                "SELECT id, name, transient, json FROM engines"
            ):
                self._engines[engine_id] = StoredEngine(engine_id, name, bool(transient), json.loads(text))
            for name, autostart in db.execute("SELECT name, autostart FROM overrides"):
                self._overrides[name] = bool(autostart)
            for key, text in db.execute("SELECT key, json FROM facts"):
                self._facts[key] = json.loads(text)
            newest = db.execute("SELECT max(id) FROM events").fetchone()[0]
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise database.judged(error, self.path) from error
        self._next_id = max(self._next_id, (newest or 0) + 1)

    def _do_without(
        self, why: Damaged | Unusable, instead: sqlite3.Connection | None = None
    ) -> sqlite3.Connection:
        """Go on from what can be read of the file (or is `instead` of it), and leave it as it is."""
        self._inode = 0
        self._failure = why
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if instead is None and (copy := database.copied(self.path)) is not None:
            try:
                self._load(copy)
            except (Damaged, Unusable):
                copy.close()
            else:
                instead = copy
        if instead is None:
            self._skip_ids()
        return instead or database.in_memory()

    def _skip_ids(self) -> None:
        """Go on with event ids that nobody has seen yet."""
        # Ids must go on rising, or a client that resumes after an id would miss events. They count
        # far fewer than one a second, so that the clock is ahead of whatever the lost ones were.
        if self._next_id == 1:
            self._next_id = int(time.time())

    def _is_there(self) -> bool:
        """The file that we write is the one that lies there. Raises Damaged, OSError."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        if found.st_ino == self._inode and found.st_size < self._size:  # SQLite never makes it smaller
            raise Damaged("it was truncated under the daemon")
        return found.st_ino == self._inode

    def _let_go(self) -> None:
        """Close the file, and go on reading from a copy of it.

        Another connection is opened only after that: with the last one SQLite removes the -wal file of
        this name, whosever that is by then.
        """
        copy = database.in_memory()
        with contextlib.suppress(sqlite3.Error):
            self._db.backup(copy)
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._db, self._inode = copy, 0

    def _attach(self) -> None:
        """Write into the file, which we had to do without, all that memory has.

        Raises:
            Damaged, Unusable, OSError, sqlite3.Error.
        """
        self._write_everything()
        self.path.parent.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        new = not self.path.exists()
        db = database.connect(self.path)
        try:
            if new:
                self._db.backup(db)
            with db:
                for engine in self._engines.values():  # a name has one engine, and memory has the newer one
                    db.execute("DELETE FROM engines WHERE name = ? AND id != ?", (engine.name, engine.id))
            found = self.path.stat()
        except (sqlite3.Error, OSError):
            db.close()
            raise
        self._db.close()
        self._db, self._inode, self._size = db, found.st_ino, found.st_size

    def _write_everything(self) -> None:
        self._changed_engines.update(self._engines)
        self._changed_overrides.update(self._overrides)
        self._changed_facts.update(self._facts)

    def _rebuild(self, why: Damaged) -> sqlite3.Connection:
        """Set the database aside and open a fresh one; memory is written into it with the next flush."""
        self._skip_ids()
        self._write_everything()
        try:
            aside = self._set_aside()
            db = self._connect()
        except (Damaged, Unusable) as error:
            self._lost = f"the state database {self.path} could not be read ({why})"
            return self._do_without(error, database.in_memory())
        self._lost = f"the state database {self.path} could not be read ({why}); it was set aside as {aside}"
        return db

    def _set_aside(self) -> Path:
        try:
            return database.set_aside(self.path)
        except OSError as error:
            raise database.judged(error, self.path) from error

    def _failed(self, why: Damaged | Unusable) -> None:
        if isinstance(why, Damaged):
            self._db.close()
            self._db = self._rebuild(why)
            return
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._failure = why
        if self._inode and not why.passing:
            self._let_go()
