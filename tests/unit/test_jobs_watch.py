"""Stalls of jobs and what they report of themselves become events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagectl.core.engine import Desired, Engine, EngineSpec, State, Sub
from sagectl.daemon.jobs import STALL_SECONDS, Jobs
from sagectl.plugin import LaunchPlan, Mode
from sagectl.system.journal import Journal
from sagectl.system.store import Store

JOB = Engine(
    "e1", EngineSpec("tune", "finetune", mode=Mode.RUN), desired=Desired.RUNNING, state=State.ACTIVE,
    sub=Sub.RUNNING, generation=1, plan=LaunchPlan(("x",), progress_file="/state/progress.json"),
)  # fmt: skip


def at(done: int, **details: Any) -> dict[str, Any]:
    return {"done": done, "total": 9, "unit": "steps", "eta_seconds": None, "details": details}


class Lab:
    """Jobs with a clock and a progress of our own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = 0.0
        self.engines = [JOB]
        self.progress: dict[str, Any] | None = at(1)
        self.journal = Journal(store)
        self.begin()

    def begin(self) -> None:
        async def read(_engine: Engine) -> dict[str, Any] | None:
            return self.progress

        self.jobs = Jobs(self.engines, read, self.journal, lambda: self.now)

    async def look(self, after: float = 15.0) -> None:
        self.now += after
        await self.jobs.look()

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(entry.level, entry.text) for entry in self.journal.tail(99)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    store = Store(tmp_path / "state.db")
    yield Lab(store)
    store.close()


async def test_a_job_that_gets_no_further_is_said_once_and_when_it_goes_on(lab: Lab) -> None:
    for _ in range(3):
        await lab.look(STALL_SECONDS / 2 + 1)
    await lab.look(STALL_SECONDS)
    (level, text), *more = lab.said
    assert more == []
    assert level == "warning"
    assert "no progress for 10 min at 1 steps" in text
    assert "sagectl logs tune" in text
    lab.progress = at(2)
    await lab.look()
    assert lab.said[1:] == [("info", "gets further again, after 20 min")]
    await lab.look(STALL_SECONDS)
    await lab.look(STALL_SECONDS)
    assert len(lab.said) == 3


async def test_a_job_that_gets_further_slowly_is_no_stall(lab: Lab) -> None:
    for step in range(5):
        lab.progress = at(step)
        await lab.look(STALL_SECONDS - 1)
    assert lab.said == []


async def test_a_restart_begins_the_count_anew(lab: Lab) -> None:
    await lab.look(STALL_SECONDS - 1)
    lab.engines[:] = [replace(JOB, generation=2)]
    await lab.look(STALL_SECONDS - 1)
    await lab.look(2)
    assert lab.said == []


async def test_what_does_not_run_is_not_looked_at(lab: Lab) -> None:
    lab.engines[:] = [
        replace(JOB, state=State.INACTIVE, sub=Sub.STOPPED),
        replace(JOB, plan=LaunchPlan(("x",))),
        replace(JOB, plan=None),
    ]
    for _ in range(3):
        await lab.look(STALL_SECONDS)
    assert lab.said == []


async def test_what_a_job_says_of_itself_is_an_event_once(lab: Lab) -> None:
    lab.progress = at(2, loss="nan", event="the loss is no number at step 2")
    await lab.look()
    await lab.look()
    said = [("warning", "the loss is no number at step 2")]
    assert lab.said == said
    lab.begin()  # the next daemon
    await lab.look()
    assert lab.said == said
    lab.progress = at(5, event="the loss explodes at step 5")
    await lab.look()
    assert lab.said == [*said, ("warning", "the loss explodes at step 5")]
