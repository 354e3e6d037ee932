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

SCHEMA_VERSION = 1
KEPT_EVENTS = 10_000
_TRIM_EVERY = 256
_RETRY_SECONDS = 1.0
_BUSY_MILLISECONDS = 100
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS engines(
    id TEXT PRIMARY KEY, name TEXT NOT NULL, transient INTEGER NOT NULL, json TEXT NOT NULL,
    updated REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS facts(key TEXT PRIMARY KEY, json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS overrides(name TEXT PRIMARY KEY, autostart INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS events(
    id INTEGER PRIMARY KEY, at REAL NOT NULL, engine TEXT, engine_id TEXT, kind TEXT NOT NULL,
    level TEXT NOT NULL, text TEXT NOT NULL, state TEXT, substate TEXT
);
CREATE INDEX IF NOT EXISTS events_of_engine ON events(engine, id);
"""
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

    It never raises for the database's sake: one that cannot be read is set aside as
    `NAME.corrupt-TIME` and rebuilt, one that cannot be written is tried again each second while
    everything goes on in memory. `trouble` says so.

    Not thread safe: one thread, the event loop's.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._failure: str | None = None
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
        self._db = self._open()

    @property
    def trouble(self) -> str | None:
        """What is wrong, a sentence without a final period; None while all is well.

        A write that failed is forgotten once one succeeds, a database that was set aside never is.
        """
        return self._failure or self._lost

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
            self._failed(error)
            return []

    # --- writing

    @property
    def dirty(self) -> bool:
        """Something waits for `flush`."""
        return bool(self._pending or self._changed_engines or self._changed_overrides or self._changed_facts)

    def flush(self) -> bool:
        """Write and commit what changed since the last time. False where that did not work (yet)."""
        if not self.dirty:
            return True
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._write()
        except sqlite3.Error as error:
            self._failed(error)
            return False
        self._changed_engines.clear()
        self._changed_overrides.clear()
        self._changed_facts.clear()
        self._pending.clear()
        self._failure = None
        return True

    def close(self) -> None:
        """Flush, also when a failed write was due to wait, and close."""
        self._retry_at = 0.0
        self.flush()
        self._db.close()

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
            return self._connect(self.path)
        except (sqlite3.Error, OSError, ValueError) as error:
            return self._rebuild(str(error))

    def _connect(self, path: Path | str) -> sqlite3.Connection:
        """Open and load. Raises sqlite3.Error or ValueError where it is no database of ours."""
        if isinstance(path, Path):
            _make_private(path)
        db = sqlite3.connect(path, timeout=1.0)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            check = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if check != "ok":
                raise ValueError(f"it is damaged: {check}")
            db.executescript(_SCHEMA)
            self._check_version(db)
            self._load(db)
            db.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        except (sqlite3.Error, ValueError):
            db.close()
            raise
        return db

    @staticmethod
    def _check_version(db: sqlite3.Connection) -> None:
        row = db.execute("SELECT version FROM meta").fetchone()
        if row is None:
            with db:
                db.execute("INSERT INTO meta VALUES (?)", (SCHEMA_VERSION,))
        elif row[0] != SCHEMA_VERSION:
            raise ValueError(f"it has version {row[0]}, this sagectl writes version {SCHEMA_VERSION}")

    def _load(self, db: sqlite3.Connection) -> None:
        for engine_id, name, transient, text in db.execute("SELECT id, name, transient, json FROM engines"):
            data = json.loads(text)
            if engine_id not in self._engines:
                self._engines[engine_id] = StoredEngine(engine_id, name, bool(transient), data)
        for name, autostart in db.execute("SELECT name, autostart FROM overrides"):
            self._overrides.setdefault(name, bool(autostart))
        for key, text in db.execute("SELECT key, json FROM facts"):
            self._facts.setdefault(key, json.loads(text))
        newest = db.execute("SELECT max(id) FROM events").fetchone()[0]
        self._next_id = max(self._next_id, (newest or 0) + 1)

    def _rebuild(self, why: str) -> sqlite3.Connection:
        """Set the database aside, open a fresh one, and write what memory still has into it."""
        # Ids must go on rising, or a client that resumes after an id would miss events. They count
        # far fewer than one a second, so that the clock is ahead of whatever the lost one had.
        if self._next_id == 1:
            self._next_id = int(time.time())
        try:
            aside = self._set_aside()
            db = self._connect(self.path)
            self._lost = (
                f"the state database {self.path} could not be read ({why}); it was set aside as {aside}"
            )
        except (sqlite3.Error, OSError, ValueError) as error:
            db = self._connect(":memory:")
            self._lost = (
                f"the state database {self.path} cannot be used ({why}; {error}); "
                "nothing that changes now survives the daemon: check its directory's owner, mode and space"
            )
        self._changed_engines.update(self._engines)
        self._changed_overrides.update(self._overrides)
        self._changed_facts.update(self._facts)
        return db

    def _set_aside(self) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.corrupt-{stamp}")
        count = 1
        while aside.exists():
            aside = self.path.with_name(f"{self.path.name}.corrupt-{stamp}-{count}")
            count += 1
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            extra = self.path.with_name(self.path.name + suffix)
            if extra.exists():
                extra.rename(aside.with_name(aside.name + suffix))
        return aside

    def _failed(self, error: sqlite3.Error) -> None:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if damaged:
            self._db.close()
            self._db = self._rebuild(str(error))
            return
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        self._failure = (
            f"the state database {self.path} cannot be written ({error}); the daemon goes on from memory "
            "and tries again: make room on its file system"
        )


def _make_private(path: Path) -> None:
    """Definitions are nobody else's business. What SQLite puts beside the database gets its mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.chmod(f"{path}{suffix}", 0o600)
