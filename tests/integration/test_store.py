from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from sagectl.system import store as store_module
from sagectl.system.store import Store


def reopened(store: Store) -> Store:
    store.close()
    return Store(store.path)


def test_engines_overrides_and_events_outlive_the_daemon(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.put_engine("e1", "chat", False, {"port": 8001})
    store.put_engine("e2", "embed", True, {})
    store.drop_engine("e2")
    store.set_override("chat", True)
    store.set_override("embed", False)
    store.set_override("embed", None)
    entry = store.add_event("started", "it runs", engine="chat", engine_id="e1")
    store = reopened(store)
    (engine,) = store.engines()
    assert (engine.id, engine.name, engine.transient, engine.data) == ("e1", "chat", False, {"port": 8001})
    assert store.overrides() == {"chat": True}
    assert store.newest_events(5) == [entry]
    assert store.last_id == entry.id
    assert store.trouble is None
    store.close()


def test_nothing_is_written_before_the_flush(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.put_engine("e1", "chat", False, {})
    with sqlite3.connect(store.path) as other:
        assert other.execute("SELECT count(*) FROM engines").fetchone() == (0,)
        assert store.dirty
        assert store.flush()
        assert other.execute("SELECT count(*) FROM engines").fetchone() == (1,)
    other.close()
    assert not store.dirty
    store.close()


def test_a_killed_daemon_loses_nothing_it_flushed(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.put_engine("e1", "chat", False, {})
    store.flush()
    after_the_crash = Store(store.path)
    assert [e.id for e in after_the_crash.engines()] == ["e1"]
    after_the_crash.close()
    store.close()


@pytest.mark.parametrize("content", [b"this is no database", b"SQLite format 3\0" + b"x" * 8192])
def test_a_corrupt_database_is_set_aside_and_rebuilt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(content)
    store = Store(path)
    assert store.trouble is not None
    assert "set aside" in store.trouble
    (aside,) = tmp_path.glob("state.db.corrupt-*")
    assert aside.read_bytes() == content
    store.put_engine("e1", "chat", False, {})
    store = reopened(store)
    assert [e.id for e in store.engines()] == ["e1"]
    assert store.trouble is None
    store.close()


def test_a_database_damaged_inside_is_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    for number in range(2000):
        store.add_event("started", f"event {number} " + "x" * 100)
    store.close()
    data = bytearray(store.path.read_bytes())
    data[4096 * 3 : 4096 * 20] = b"\xff" * (4096 * 17)
    store.path.write_bytes(data)
    store = Store(store.path)
    assert "set aside" in (store.trouble or "")
    store.close()


def test_a_database_of_a_newer_sagectl_is_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.close()
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE meta SET version = 99")
    other.close()
    store = Store(store.path)
    assert "version 99" in (store.trouble or "")
    store.close()


def test_events_of_a_rebuilt_database_have_larger_ids(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    before = store.add_event("started", "it runs").id
    store.close()
    store.path.write_bytes(b"garbage")
    store = Store(store.path)
    assert store.add_event("started", "it runs").id > before
    store.close()


def test_a_place_that_cannot_hold_a_database_leaves_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "state.db")
    store.put_engine("e1", "chat", False, {})
    assert not store.flush()
    assert "cannot be written (Not a directory)" in (store.trouble or "")
    assert [e.id for e in store.engines()] == ["e1"]
    assert not store.close()


def test_a_full_disk_is_reported_and_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_SECONDS", 0.0)
    store = Store(tmp_path / "state.db")
    store.flush()
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(100):
        store.add_event("started", f"event {number} " + "x" * 1000)
    assert not store.flush()
    assert "make room on its file system" in (store.trouble or "")
    assert len(store.newest_events(1000)) == 100, "read from memory"
    store._db.execute("PRAGMA max_page_count = 100000")
    assert store.flush()
    assert store.trouble is None
    store = reopened(store)
    assert len(store.newest_events(1000)) == 100
    store.close()


def test_a_database_that_another_has_locked_is_left_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_SECONDS", 0.0)
    store = Store(tmp_path / "state.db")
    store.put_engine("e1", "chat", False, {})
    store.put_engine("e2", "embed", False, {})
    store.set_override("chat", False)
    before = store.add_event("started", "before")
    assert store.close()
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    store = Store(tmp_path / "state.db")
    assert "locked" in (store.trouble or "")
    assert "who else has it open" in (store.trouble or "")
    assert {e.id for e in store.engines()} in ({"e1", "e2"}, set()), "read, or not to be read"
    store.drop_engine("e2")
    store.put_engine("e1", "chat", False, {"port": 1})
    after = store.add_event("started", "after")
    assert not store.flush()
    assert after.id > before.id
    other.close()
    assert store.flush()
    assert store.trouble is None
    store = reopened(store)
    assert [(e.id, e.data) for e in store.engines() if e.id == "e1"] == [("e1", {"port": 1})]
    assert store.overrides() == {"chat": False}
    assert store.newest_events(2) == [before, after]
    assert [path.name for path in tmp_path.glob("*corrupt*")] == []
    store.close()


def test_an_engine_that_got_another_id_meanwhile_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_SECONDS", 0.0)
    path = tmp_path / "dir" / "state.db"
    path.parent.mkdir()
    store = Store(path)
    store.put_engine("e1", "chat", False, {})
    store.put_engine("e2", "loose", True, {})
    store.close()
    path.parent.rename(tmp_path / "away")
    path.parent.write_text("")
    store = Store(path)
    store.put_engine("e9", "chat", False, {})
    assert not store.flush()
    path.parent.unlink()
    (tmp_path / "away").rename(path.parent)
    assert store.flush()
    store = reopened(store)
    assert {(e.id, e.name) for e in store.engines()} == {("e9", "chat"), ("e2", "loose")}
    store.close()


def test_a_database_that_was_removed_under_the_daemon_is_made_again_with_all_it_had(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    store = Store(tmp_path / "state" / "state.db")
    store.put_engine("e1", "chat", False, {})
    first = store.add_event("started", "before")
    assert store.flush()
    shutil.rmtree(tmp_path / "state")
    second = store.add_event("started", "after")
    assert store.flush()
    assert "was removed under the daemon" in (store.trouble or "")
    store = reopened(store)
    assert [e.id for e in store.engines()] == ["e1"]
    assert store.newest_events(5) == [first, second]
    assert store.trouble is None
    store.close()


def test_a_database_that_is_truncated_under_the_daemon_is_rebuilt_from_memory(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.put_engine("e1", "chat", False, {})
    store.set_override("chat", False)
    before = store.add_event("started", "before").id
    assert store.flush()
    os.truncate(store.path, 0)
    store.add_event("started", "after")
    assert not store.flush()
    assert store.flush()
    assert "truncated under the daemon" in (store.trouble or "")
    assert list(tmp_path.glob("state.db.corrupt-*"))
    store = reopened(store)
    assert [e.id for e in store.engines()] == ["e1"]
    assert store.overrides() == {"chat": False}
    assert store.newest_events(1)[0].id > before
    store.close()


def test_a_connection_that_broke_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_SECONDS", 0.0)
    store = Store(tmp_path / "state.db")
    store.put_engine("e1", "chat", False, {})
    before = store.add_event("started", "before")
    assert store.flush()
    store._db.execute("PRAGMA query_only = ON")  # as where its file system became read-only
    after = store.add_event("started", "after")
    assert not store.flush()
    assert "readonly" in (store.trouble or "")
    assert store.newest_events(5) == [before, after]
    assert store.flush()
    assert store.trouble is None
    store = reopened(store)
    assert store.newest_events(5) == [before, after]
    assert [e.id for e in store.engines()] == ["e1"]
    store.close()


def test_an_empty_file_in_its_place_is_said_and_what_lies_beside_it_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.put_engine("e1", "chat", False, {})
    store.flush()
    journal = (tmp_path / "state.db-wal").read_bytes()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "state.db").write_bytes(b"")
    (copy / "state.db-wal").write_bytes(journal)
    store.close()
    store = Store(copy / "state.db")
    assert "it is empty" in (store.trouble or "")
    assert [path.read_bytes() for path in copy.glob("*.corrupt-*-wal")] == [journal]
    store.close()


def test_the_newest_events_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEPT_EVENTS", 100)
    store = Store(tmp_path / "state.db")
    for number in range(1000):
        store.add_event("started", str(number))
        store.flush()
    kept = store.events()
    assert 100 <= len(kept) <= 100 + 256
    assert kept[-1].text == "999"
    store.close()


def test_events_of_one_engine_are_found_and_ordered(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    for number in range(6):
        store.add_event("started", str(number), engine="chat" if number % 2 else "embed")
    assert [e.text for e in store.newest_events(2, "chat")] == ["3", "5"]
    store.add_event("exited", "6", engine="chat")
    assert [e.text for e in store.newest_events(2, "chat")] == ["5", "6"]
    assert [e.text for e in store.events(after=2, limit=2)] == ["2", "3"]
    assert store.newest_events(0) == []
    store.close()


@pytest.mark.parametrize("mode", [None, 0o644])
def test_nobody_else_may_read_the_database(tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "state.db"
    if mode is not None:
        Store(path).close()
        path.chmod(mode)
    store = Store(path)
    store.put_engine("e1", "chat", False, {})
    store.flush()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["state.db", "state.db-shm", "state.db-wal"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    store.close()
