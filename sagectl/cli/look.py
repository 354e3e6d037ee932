"""status and list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.render import Cell, Column
from sagectl.cli.session import Session, json_option, pass_session, refs_argument

if TYPE_CHECKING:
    from sagectl.client import Engine, Status

COLUMNS = (
    Column("NAME", shrink=12),
    Column("KIND", drop=5),
    Column("MODEL", shrink=12, drop=6),
    Column("STATE"),
    Column("UP", right=True, drop=1),
    Column("ADDRESS", drop=4),
    Column("GPU", drop=2),
    Column("MEMORY", drop=3, right=True),
    Column("PID", drop=8, right=True),
    Column("RESTARTS", drop=7, right=True),
    Column("PROGRESS", shrink=4),
    Column("REASON", shrink=14),
)


# --- list ------------------------------------------------------------------------------------


def engine_table(engines: Sequence[Engine], style: render.Style, *, ids: bool = False) -> Iterable[str]:
    """A table, an engine a line."""
    columns = ((Column("ENGINE ID"), *COLUMNS)) if ids else COLUMNS
    rows = [((e["engine_id"], *_row(e)) if ids else _row(e)) for e in engines]
    return render.table(columns, rows, style)


def _row(engine: Engine) -> tuple[str | Cell, ...]:
    up = engine["uptime_seconds"]
    settled = engine["state"] == "active" and engine["substate"] != "unready"
    return (
        engine["name"],
        engine["engine_kind"],
        model_of(engine),
        Cell(render.state_of(engine), render.state_colour(engine)),
        render.duration(round(up)) if up is not None else "",
        engine["address"] or "",
        ", ".join(map(str, engine["gpu_ids"] or [])),
        render.gib(engine["memory_per_gpu_gb"]) if engine["memory_per_gpu_gb"] else "",
        str(engine["pid"] or ""),
        str(engine["restart_count"] or ""),
        _progress_cell(engine),
        "" if settled else render.clean(engine["reason"]),
    )


def _progress_cell(engine: Engine) -> str:
    if not engine["progress"]:
        return ""
    from sagectl.cli.progress import in_list

    return in_list(engine)


def model_of(engine: Engine) -> str:
    """The model's name; of a path its last part."""
    model = engine["model_id"] or ""
    return model.rstrip("/").rsplit("/", 1)[-1] if model.startswith(("/", ".")) else model


@click.command("list", short_help="A table, an engine a line (also: ps).")
@json_option
@pass_session
def list_verb(session: Session) -> int:
    """A table of all engines.

    \b
      sagectl list
      sagectl list --json | jq -r '.engines[] | select(.state == "failed") | .name'
    """
    return print_list(session, ids=False)


def print_list(session: Session, *, ids: bool) -> int:
    """Print the table of all engines."""
    engines = session.client.engines()
    if session.json:
        session.dump({"engines": engines})
    elif engines:
        session.out(engine_table(engines, render.stdout(), ids=ids))
    else:
        session.out(_NO_ENGINES)
    return exits.OK


_INDENT = 18
"""Columns before a property's value."""
_WIDTH = 80
_NO_ENGINES = "No engines. Add one to the configuration, or try `sagectl run MODEL`."


# --- status ----------------------------------------------------------------------------------


@click.command("status", short_help="The overview, or engines in detail.")
@refs_argument(required=False)
@click.option(
    "-n", "--lines", default=10, show_default=True, metavar="N", help="Log lines shown of an engine."
)
@json_option
@pass_session
def status_verb(session: Session, names: tuple[str, ...], lines: int) -> int:
    """The overview; with a NAME that engine in detail, with its last log lines.

    Exit code with a NAME: 0 active, 3 not active, 4 unknown; always: 5 no daemon answers.

    \b
      sagectl status
      sagectl status chat
    """
    if not names:
        status = session.client.status()
        if session.json:
            session.dump(status)
        else:
            session.out(_overview(status, render.stdout()))
        return exits.OK
    return print_status(session, names, lines)


def print_status(session: Session, names: Sequence[str], lines: int) -> int:
    """Print engines in detail; the exit code of the worst."""
    engines: list[Engine] = []
    code = exits.OK
    for name in names:
        try:
            engines += [e for e in session.client.resolve(name) if e not in engines]
        except errors.UnknownEngine as error:
            if len(names) == 1:
                raise
            session.complain(error)
            code = exits.UNKNOWN
    if session.json:
        session.dump(engines[0] if len(engines) == 1 == len(names) else {"engines": engines})
    else:
        style = render.stdout()
        for place, engine in enumerate(engines):
            session.out([""] if place else [])
            session.out(_detail(session, engine, style, lines))
    return max([code, *(exits.of_engine(e) for e in engines)])


def _overview(status: Status, style: render.Style) -> Iterable[str]:
    daemon, engines = status["control_plane"], status["engines"]
    up = daemon.get("uptime_seconds")
    words = [
        f"sagectld {daemon.get('version', '')}".rstrip(),
        f"pid {daemon['pid']}" if daemon.get("pid") else "",
        f"up {render.duration(round(up))}" if up is not None else "",
        _counts(engines, style),
    ]
    yield ", ".join(word for word in words if word)
    if daemon.get("stopping"):
        yield style.paint("The daemon is stopping its engines and itself.", "yellow")
    for error in (*daemon.get("config_errors", []), daemon.get("trouble")):
        if error:
            yield style.paint(f"error: {render.clean(error)}", "red")
    for warning in daemon.get("warnings", []):
        yield style.paint(f"warning: {warning}", "yellow")
    for broken in daemon.get("broken_plugins", []):
        yield style.paint(render.broken_plugin(broken), "yellow")
    yield ""
    if engines:
        yield from engine_table(engines, style)
    else:
        yield _NO_ENGINES
    gpu = status["gpu"]
    if gpu.get("devices") or gpu.get("trouble") or gpu.get("queue"):
        from sagectl.cli.gpu_view import summary

        yield ""
        yield from summary(gpu, style)


def _counts(engines: Sequence[Engine], style: render.Style) -> str:
    counts: dict[str, int] = {}
    for engine in engines:
        counts[engine["state"]] = counts.get(engine["state"], 0) + 1
    order = ("active", "activating", "deactivating", "failed", "inactive")
    looks = {"failed": "red", "active": "green"}
    parts = [style.paint(f"{counts[s]} {s}", looks.get(s, "")) for s in order if counts.get(s)]
    total = "1 engine" if len(engines) == 1 else f"{len(engines)} engines"
    return f"{total}: {', '.join(parts)}" if parts else ""


def _detail(session: Session, engine: Engine, style: render.Style, lines: int) -> Iterable[str]:
    title = " ".join(word for word in (engine["engine_kind"], engine["model_id"] or "") if word)
    name = style.paint(engine["name"], "bold")
    yield f"{style.state(engine, style.dot)} {name} - {render.clean(title)}"
    yield from render.properties(_facts(session, engine, style), style, indent=4)
    if lines > 0:
        from sagectl.cli.excerpt import log_excerpt

        excerpt = log_excerpt(session, engine, style, lines)
        yield from ["", *excerpt] if excerpt else []


def _facts(session: Session, engine: Engine, style: render.Style) -> list[tuple[str, str]]:
    since = render.ago(engine["since"])
    state = style.state(engine) + (f" since {since}" if since else "")
    diagnosis = engine["diagnosis"] or {}
    summary = diagnosis.get("summary", "")
    return [
        ("State", state),
        ("Reason", render.clean(engine["reason"])),
        ("Diagnosis", "" if summary in engine["reason"] else render.clean(summary)),
        *several("Figures", diagnosis.get("arithmetic") or []),
        ("What to do", render.clean(diagnosis.get("remedy", ""))),
        ("Waits for", ", ".join(engine["waiting_for"])),
        ("Wanted", _wanted(engine)),
        *_progress(session, engine, style),
        ("Address", _address(engine)),
        ("Serves", ", ".join(engine["serves"])),
        ("PID", _pid(engine)),
        ("GPU memory" if engine["memory_per_gpu_gb"] else "GPUs", _gpus(engine)),
        ("Restarts", _restarts(engine)),
        ("Last exit", last_exit_text(engine)),
        ("Labels", ", ".join(f"{key}={value}" for key, value in engine["labels"].items())),
        ("ID", engine["engine_id"] + (" (transient)" if engine["transient"] else "")),
        ("Log", engine["log_path"] or ""),
    ]


def _progress(session: Session, engine: Engine, style: render.Style) -> list[tuple[str, str]]:
    if not engine["progress"]:
        return []
    from sagectl.cli.curve import Curve
    from sagectl.cli.progress import lines

    found = several("Progress", lines(engine, style))
    try:
        steps = session.client.history(engine["engine_id"])
    except (errors.UnknownRoute, errors.UnknownEngine):  # an older daemon; forgotten meanwhile
        return found
    columns = (style.width or _WIDTH) - _INDENT
    return [*found, ("Loss", Curve(steps).drawn(columns, unicode=style.unicode))]


def several(name: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Lines under one name, as properties."""
    return [("" if place else name, render.clean(line)) for place, line in enumerate(lines)]


def _wanted(engine: Engine) -> str:
    words = [str(engine["desired"])]
    if not engine["transient"]:
        words.append("starts with the daemon" if engine["autostart"] else "does not start with the daemon")
    if engine["needs_restart"]:
        words.append("needs a restart to take its new configuration")
    return "; ".join(words)


def _address(engine: Engine) -> str:
    if not engine["address"]:
        return ""
    healthy = engine["healthy"]
    return f"http://{engine['address']}" + (", not healthy" if healthy is False else "")


def _pid(engine: Engine) -> str:
    if not engine["pid"]:
        return ""
    up = engine["uptime_seconds"]
    return str(engine["pid"]) + (f", up {render.duration(round(up))}" if up is not None else "")


def _gpus(engine: Engine) -> str:
    """`20.0 GiB reserved, 18.7 GiB measured on GPU 0`; only the GPUs where nothing is reserved."""
    ids = engine["gpu_ids"] or []
    reserved, measured = engine["memory_per_gpu_gb"], engine["measured_memory_gb"]
    names = ", ".join(map(str, ids))
    if not reserved:
        return names
    if len(ids) == 1:
        held = "" if measured is None else f", {render.gib(measured)} measured"
        return f"{render.gib(reserved)} reserved{held} on GPU {names}"
    most = "" if measured is None else f"; at most {render.gib(measured)} measured"
    return f"{render.gib(reserved)} reserved on each of the GPUs {names}{most}"


def _restarts(engine: Engine) -> str:
    if not engine["restart_count"] and not engine["consecutive_failures"]:
        return ""
    failures = engine["consecutive_failures"]
    return str(engine["restart_count"]) + (f", {failures} failed in a row" if failures else "")


def last_exit_text(engine: Engine) -> str:
    """How the last process ended, in words."""
    last = engine["last_exit"]
    if last is None:
        return ""
    memory = " (out of memory)" if last["oom_kill"] else ""
    if last["signal"] is not None:
        import signal

        try:
            name = signal.Signals(last["signal"]).name
        except ValueError:
            name = f"signal {last['signal']}"
        return name + memory
    return (f"exit code {last['code']}" if last["code"] is not None else "unknown: nobody saw it") + memory
