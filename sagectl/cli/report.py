"""How a wait ended: a line for each success, the reason, the remedy and the log for each failure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagectl.cli import exits, render
from sagectl.cli.excerpt import failure_details
from sagectl.cli.session import Session
from sagectl.cli.verdict import Goal, Verdict

if TYPE_CHECKING:
    from sagectl.client import Engine


@dataclass(slots=True)
class Awaited:
    """One engine of a wait: before the request, as last read, and what was shown of it.

    after: seconds from the request to the verdict, or to the end of the waiting.
    line: its newest log line. said, warned: the last plain line and the last warning about it.
    """

    before: Engine
    now: Engine | None
    verdict: Verdict | None = None
    after: float = 0.0
    line: str = ""
    said: str = ""
    warned: str = ""

    @property
    def id(self) -> str:
        """Its id."""
        return self.before["engine_id"]

    @property
    def name(self) -> str:
        """Its name."""
        return self.before["name"]


def tell(session: Session, awaited: Awaited, verdict: Verdict, *, aside: bool = False) -> None:
    """Say how the wait for one engine ended; `aside`: success too goes to standard error."""
    if not verdict.ok:
        _tell_failure(session, awaited, verdict)
    elif aside:
        session.note(_success(awaited, verdict, render.stderr()))
    else:
        session.out(_success(awaited, verdict, render.stdout()))
        sys.stdout.flush()


def conclude(session: Session, goal: Goal, engines: Sequence[Awaited]) -> int:
    """Say what is unfinished (or everything, as JSON), and return the exit code."""
    if session.json:
        session.dump({"engines": [a.now for a in engines if a.now is not None]})
    else:
        session.note(_unfinished(goal, awaited) for awaited in engines if awaited.verdict is None)
    return exits.OK if all(a.verdict and a.verdict.ok for a in engines) else exits.FAILURE


def _success(awaited: Awaited, verdict: Verdict, style: render.Style) -> str:
    now = awaited.now
    after = f" after {render.duration(awaited.after)}" if awaited.after >= 1 else ""
    if now is None:
        return f"{awaited.name}: gone{after}"
    text = f"{awaited.name}: {style.state(now)}"
    if now["state"] == "active":
        text += f" on {now['address']}" if now["address"] else ""
        text += f", pid {now['pid']}" if now["pid"] else ""
    remark = f": {render.clean(verdict.why)}" if verdict.why else ""
    return text + after + remark


def reason_of(engine: Engine) -> str:
    """`: reason`, or nothing."""
    return f": {render.clean(engine['reason'])}" if engine["reason"] else ""


def _unfinished(goal: Goal, awaited: Awaited) -> str:
    now = awaited.now or awaited.before
    return (
        f"{awaited.name}: still {render.state_of(now)} after {render.duration(awaited.after)}"
        f"{reason_of(now)}. "
        f"The {goal.value} goes on; `sagectl status {awaited.name}` shows how far it is."
    )


def _tell_failure(session: Session, awaited: Awaited, verdict: Verdict) -> None:
    now, style = awaited.now, render.stderr()
    if now is None:
        session.note(f"{awaited.name}: {verdict.why}")
        return
    session.note(f"{awaited.name}: {style.state(now)}: {render.clean(verdict.why)}")
    session.note(failure_details(session, now, style))
