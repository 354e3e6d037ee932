"""The file below the store: opening it, telling damage from want of room, setting a damaged one aside."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

SCHEMA_VERSION = 1
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
_SIDES = ("-wal", "-shm")
_PATIENCE = 0.1  # seconds for somebody else's lock; the event loop waits
_ROOM = "make room on its file system"
_RIGHTS = "see to the owner and the mode of its directory, and to its file system"
_OTHERS = "see who else has it open"
_LEAST_ROOM = 64 << 10  # bytes; the smallest file that SQLite reads with has 32 KiB
_FOR_NOW = frozenset(
    (
        *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
    )
)
"""Codes that tell of the place where the database lies, and nothing about what is in it."""


class Damaged(Exception):
    """What lies there is no database of ours, or not a whole one; says why."""

    remedy = "move it away"


class Unusable(Exception):
    """It cannot be opened or written now; says why.

    remedy: what to do about that. passing: the connection is sound, and the same write may work later.
    """

    def __init__(self, why: str, remedy: str, *, passing: bool = False) -> None:
        super().__init__(why)
        self.remedy = remedy
        self.passing = passing


def judged(error: Exception, path: Path) -> Damaged | Unusable:
    """What an error of SQLite or the system means for the database."""
    if isinstance(error, OSError):
        return Unusable(error.strerror or str(error), _remedy(path))
    code = getattr(error, "sqlite_errorcode", -1) & 0xFF
    if code not in _FOR_NOW:
        return Damaged(str(error))
    others = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    full = code == sqlite3.SQLITE_FULL
    remedy = _OTHERS if others else _ROOM if full else _remedy(path)
    return Unusable(str(error), remedy, passing=others or full)


def _remedy(path: Path) -> str:
    """SQLite says no more than `disk I/O error`, or that it cannot open the file, of full disks too."""
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return _RIGHTS
    if found.f_flag & os.ST_RDONLY:
        return "its file system is read-only, see why and remount it"
    return _ROOM if found.f_bavail * found.f_frsize < _LEAST_ROOM else _RIGHTS


def connect(path: Path) -> sqlite3.Connection:
    """Open the database, make it where there is none, and check it. Raises Damaged, Unusable."""
    try:
        new = not path.exists() or is_empty(path)
        _make_private(path)
        db = sqlite3.connect(path, timeout=_PATIENCE)
    except (OSError, sqlite3.Error) as error:
        raise judged(error, path) from error
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if new:
            _furnish(db)
        check(db)
        db.executescript(_SCHEMA)
    except Damaged:
        db.close()
        raise
    except sqlite3.Error as error:
        db.close()
        raise judged(error, path) from error
    return db


def _furnish(db: sqlite3.Connection) -> None:
    """Make it one of ours, in the file itself, so that one that lost its -wal file is told from a new one."""
    db.executescript(_SCHEMA)
    with db:
        db.execute("INSERT INTO meta SELECT ? WHERE NOT EXISTS (SELECT * FROM meta)", (SCHEMA_VERSION,))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def check(db: sqlite3.Connection) -> None:
    """Raises Damaged for one that is not whole, not ours or of another version, and sqlite3.Error."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise Damaged(f"it is damaged: {found}")
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    row = db.execute("SELECT version FROM meta").fetchone() if "meta" in tables else None
    if row is None:
        raise Damaged("it lacks what every database of sagectl has")
    if row[0] != SCHEMA_VERSION:
        raise Damaged(f"it has version {row[0]}, this sagectl writes version {SCHEMA_VERSION}")


def in_memory() -> sqlite3.Connection:
    """A database that ends with us."""
    db = sqlite3.connect(":memory:")
    _furnish(db)
    return db


def copied(path: Path) -> sqlite3.Connection | None:
    """What a database that cannot be written holds, in memory; None where it cannot be read either.

    Without room, or on a file system that is read-only, SQLite cannot make the files beside the
    database that it reads one with. Told that nobody writes (which is true then) it does without;
    but then it does not see what lies in the -wal file only, so that comes second.
    """
    if not path.is_file():
        return None
    for mode in ("mode=ro", "immutable=1"):
        copy = in_memory()
        try:
            reading = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=_PATIENCE)
            with contextlib.closing(reading) as db:
                check(db)
                db.backup(copy)
            copy.executescript(_SCHEMA)
        except (sqlite3.Error, Damaged):
            copy.close()
        else:
            return copy
    return None


def is_empty(path: Path) -> bool:
    """Somebody, or a crash of the machine, left nothing of it but its name."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def set_aside(path: Path) -> Path:
    """Rename a damaged database, and what belongs to it; returns its new name. Raises OSError."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    count = 1
    while aside.exists():
        aside = path.with_name(f"{path.name}.corrupt-{stamp}-{count}")
        count += 1
    path.rename(aside)
    for suffix in _SIDES:
        extra = path.with_name(path.name + suffix)
        if extra.exists():
            extra.rename(aside.with_name(aside.name + suffix))
    return aside


def _make_private(path: Path) -> None:
    """Definitions are nobody else's business. What SQLite puts beside the database gets its mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for suffix in ("", *_SIDES):
        with contextlib.suppress(FileNotFoundError):
            os.chmod(f"{path}{suffix}", 0o600)
