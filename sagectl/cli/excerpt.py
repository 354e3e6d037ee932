"""Why an engine failed, and the end of its log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagectl import errors
from sagectl.cli import render
from sagectl.cli.session import Session

if TYPE_CHECKING:
    from sagectl.client import Engine

LOG_LINES = 10


def failure_details(
    session: Session, engine: Engine, style: render.Style, *, lines: int = LOG_LINES
) -> list[str]:
    """Why an engine failed, what to do, and its last log lines."""
    said = []
    diagnosis = engine.get("diagnosis")
    if diagnosis:
        if diagnosis["summary"] not in engine["reason"]:
            said.append(f"  {render.clean(diagnosis['summary'])}")
        said += [f"    {render.clean(line)}" for line in diagnosis.get("arithmetic", ())]
        said.append(f"  {style.paint('What to do:', 'bold')} {render.clean(diagnosis['remedy'])}")
    return said + (log_excerpt(session, engine, style, lines) if lines else [])


def log_excerpt(session: Session, engine: Engine, style: render.Style, count: int = LOG_LINES) -> list[str]:
    """The last lines of an engine's log under a heading; none where there is no log."""
    try:
        text = b"".join(session.client.logs(engine["engine_id"], tail=count)).decode("utf-8", "replace")
    except errors.NoDaemon:
        raise
    except errors.SagectlError:
        return []
    logged = [_last_written(line) for line in text.rstrip().split("\n")]
    if not any(logged):
        return []
    heading = f"  Last log lines ({engine.get('log_path') or engine['name']}):"
    bar = "│" if style.unicode else "|"
    return [style.paint(heading, "dim"), *(f"  {style.paint(bar, 'dim')} {line}" for line in logged)]


def _last_written(line: str) -> str:
    """What a terminal would show of a line: progress bars overwrite themselves."""
    return render.clean(line.rstrip("\r").rsplit("\r", 1)[-1])
