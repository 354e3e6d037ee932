from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagectl.system import journal as journal_module
from sagectl.system import store as store_module
from sagectl.system.journal import Entry, Journal, Lost
from sagectl.system.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state.db")
    yield store
    store.close()


@pytest.fixture
def journal(store: Store) -> Journal:
    return Journal(store)


def say(journal: Journal, text: str, engine: str | None = "chat") -> int:
    return journal.record(engine, f"id-{engine}", "started", text)


def words(entries: list[Entry | Lost]) -> list[str]:
    return [entry.text if isinstance(entry, Entry) else f"lost {entry.count}" for entry in entries]


def test_what_is_recorded_is_read_back(journal: Journal) -> None:
    first = say(journal, "one")
    say(journal, "two", engine="embed")
    say(journal, "three")
    assert [e.text for e in journal.tail(2)] == ["two", "three"]
    assert [e.text for e in journal.tail(5, engine="chat")] == ["one", "three"]
    assert [e.text for e in journal.since(first)] == ["two", "three"]


def test_the_past_of_an_earlier_daemon_is_there(store: Store) -> None:
    say(Journal(store), "before")
    store.flush()
    journal = Journal(store)
    assert [e.text for e in journal.since(0)] == ["before"]
    say(journal, "after")
    assert [e.text for e in journal.since(0)] == ["before", "after"]


async def test_a_subscriber_gets_what_comes_after_it(journal: Journal) -> None:
    say(journal, "before")
    with journal.subscribe() as events:
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        assert not waiting.done()
        say(journal, "after")
        assert words([await waiting]) == ["after"]


async def test_a_subscriber_resumes_where_it_was(journal: Journal) -> None:
    last_seen = say(journal, "one")
    say(journal, "two")
    with journal.subscribe(after=last_seen) as events:
        assert words([await anext(events)]) == ["two"]


async def test_a_subscriber_of_one_engine_is_spared_the_others(journal: Journal) -> None:
    with journal.subscribe(engine="chat") as events:
        say(journal, "other", engine="embed")
        say(journal, "mine")
        assert words([await anext(events)]) == ["mine"]


async def test_a_slow_subscriber_reads_on_from_the_store(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal.subscribe() as events:
        for number in range(journal_module._RECENT + 500):
            say(journal, str(number))
        got = [await anext(events) for _ in range(journal_module._RECENT + 500)]
    assert words(got) == [str(number) for number in range(journal_module._RECENT + 500)]


async def test_a_subscriber_is_told_what_the_store_dropped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "KEPT_EVENTS", 100)
    monkeypatch.setattr(journal_module, "_RECENT", 10)
    journal = Journal(store)
    with journal.subscribe() as events:
        for number in range(600):
            say(journal, str(number))
            store.flush()
        oldest = store.events(limit=1)[0]
        assert words([await anext(events), await anext(events)]) == [f"lost {oldest.id - 1}", oldest.text]


async def test_a_subscriber_that_asks_for_the_future_is_told_and_goes_on(journal: Journal) -> None:
    with journal.subscribe(after=10**6) as events:
        assert await anext(events) == Lost(0)
        say(journal, "now")
        assert words([await anext(events)]) == ["now"]


async def test_closing_ends_a_waiting_reader(journal: Journal) -> None:
    events = journal.subscribe()
    waiting = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0)
    events.close()
    assert await waiting is None
    say(journal, "nobody listens")
