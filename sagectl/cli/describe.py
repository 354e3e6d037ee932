"""show, cat, explain."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from sagectl.cli import exits, render
from sagectl.cli.look import several
from sagectl.cli.render import Cell, Column
from sagectl.cli.session import Session, json_option, pass_session, ref_argument

if TYPE_CHECKING:
    from sagectl.client import Engine

_HISTORY = 15
"""Events shown of an engine's past."""


@click.command("show", short_help="All properties of an engine.")
@ref_argument
@json_option
@pass_session
def show_verb(session: Session, name: str) -> int:
    """All properties of an engine, in the API's words.

    \b
      sagectl show chat
      sagectl show chat --json
    """
    engines = session.client.resolve(name)
    if session.json:
        session.dump(engines[0] if len(engines) == 1 else {"engines": engines})
        return exits.OK
    style = render.stdout()
    for place, engine in enumerate(engines):
        session.out([""] if place else [])
        session.out(f"{style.paint(key, 'dim')}: {_plain(value)}" for key, value in engine.items())
    return exits.OK


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return render.clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@click.command("cat", short_help="The resolved definition and where each value came from.")
@ref_argument
@json_option
@pass_session
def cat_verb(session: Session, name: str) -> int:
    """The definition as the daemon has it, every default filled in, and where each value came from.

    \b
      sagectl cat chat
    """
    for place, engine in enumerate(session.client.resolve(name)):
        definition = session.client.definition(engine["engine_id"])
        if session.json:
            session.dump(definition)
        else:
            session.out([""] if place else [])
            session.out(_definition(engine["name"], definition, render.stdout()))
    return exits.OK


def _definition(name: str, definition: dict[str, Any], style: render.Style) -> Iterable[str]:
    yield style.paint(f"[engines.{_toml_key(name)}]", "bold")
    lines = [(_setting(key, entry["value"]), entry) for key, entry in definition.items()]
    edge = min(48, max((render.cells(line) for line, _ in lines), default=0))
    for line, entry in lines:
        pad = " " * max(0, edge - render.cells(line))
        origin = style.paint(f"# {entry['origin']}", "dim")
        yield f"{line}{pad}  {origin}"


def _toml_key(key: str) -> str:
    return key if all(c.isalnum() or c in "_-." for c in key) and key.isascii() else json.dumps(key)


def _setting(key: str, value: Any) -> str:
    """`key = value`; TOML has no word for what is not set."""
    return f"# {key} is not set" if value is None else f"{_toml_key(key)} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_toml_key(key)} = {_toml(entry)}" for key, entry in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


@click.command("explain", short_help="Why an engine is as it is.")
@ref_argument
@json_option
@pass_session
def explain_verb(session: Session, name: str) -> int:
    """Why an engine is placed, queued, refused or restarting, with the figures, and what led there.

    \b
      sagectl explain chat
    """
    for place, engine in enumerate(session.client.resolve(name)):
        explanation = session.client.explain(engine["engine_id"])
        if session.json:
            session.dump(explanation)
        else:
            session.out([""] if place else [])
            session.out(_explanation(engine, explanation, render.stdout()))
    return exits.OK


def _explanation(engine: Engine, explanation: dict[str, Any], style: render.Style) -> Iterable[str]:
    decision = style.state(engine, render.clean(explanation["decision"]))
    reason = render.clean(explanation["reason"])
    yield f"{style.paint(engine['name'], 'bold')}: {decision}{f': {reason}' if reason else ''}"
    summary = render.clean((engine["diagnosis"] or {}).get("summary", ""))
    yield from render.properties(
        [
            ("Diagnosis", "" if summary in reason else summary),
            *several("Figures", explanation.get("arithmetic") or []),
            ("What to do", render.clean(explanation.get("remedy") or "")),
            ("Waits for", ", ".join(explanation["waiting_for"])),
            ("GPU memory", _needed(explanation)),
            *several("Placement", explanation.get("placement") or []),
            ("Restarts", _restarts(explanation.get("restarts") or {})),
            ("Command", _command(explanation.get("command") or [])),
            *(("Note", render.clean(note)) for note in explanation.get("notes") or []),
        ],
        style,
        indent=4,
    )
    if explanation.get("devices") and explanation.get("needed_gb") is not None:
        yield ""
        yield from _devices(explanation["devices"], style)
    history = explanation.get("history") or []
    if history:
        yield ""
        for event in history[-_HISTORY:]:
            look = {"warning": "yellow", "error": "red"}.get(event["level"], "")
            when = style.paint(render.local_time(event["at"]), "dim")
            yield f"  {when}  {style.paint(render.clean(event['text']) or event['kind'], look)}"


_SIZE_FROM = {
    "gpu_memory": "set by gpu_memory",
    "learned": "measured in an earlier run",
    "estimate": "estimated from the model's own files",
    "assumed": "assumed, as nothing is known of its size",
}


def _needed(explanation: dict[str, Any]) -> str:
    """`12.0 GiB, estimated from …, on GPU 0`."""
    if explanation.get("needed_gb") is None:
        return ""
    ids = explanation.get("gpu_ids") or []
    words = [
        f"{'holds' if ids else 'needs'} {render.gib(explanation['needed_gb'])}",
        f"on {'each of the GPUs' if len(ids) > 1 else 'GPU'} {', '.join(map(str, ids))}" if ids else "",
    ]
    source = explanation.get("size_from") or ""
    source = _SIZE_FROM.get(source, source)
    return " ".join(word for word in words if word) + (f", {source}" if source else "")


_DEVICES = (
    Column("GPU", right=True),
    Column("TOTAL", right=True),
    Column("FOREIGN", right=True, drop=2),
    Column("OTHERS HOLD", right=True),
    Column("KEPT FREE", right=True, drop=3),
    Column("BUDGET LEFT", right=True, drop=1),
    Column("FREE", right=True),
    Column("NEEDED", right=True, drop=4),
    Column("FITS"),
)


def _devices(devices: list[dict[str, Any]], style: render.Style) -> Iterable[str]:
    """How each GPU stands to the engine, whose own part counts as free."""
    rows: list[render.Row] = []
    for one in devices:
        sizes = ("total", "foreign", "reserved", "kept_free", "budget_left", "free", "needed")
        told = [one[f"{size}_gb"] for size in sizes]
        fits = Cell("yes", "green") if one["fits"] else Cell("no", "yellow")
        cells = ["" if size is None else render.gib(size) for size in told]
        rows.append((str(one["gpu_id"]), *cells, fits))
    width = None if style.width is None else max(1, style.width - 2)
    for line in render.table(_DEVICES, rows, replace(style, width=width)):
        yield f"  {line}"


def _restarts(restarts: dict[str, Any]) -> str:
    if not restarts:
        return ""
    words = [f"{restarts['count']} so far", f"policy {restarts['policy']}"]
    if restarts["policy"] != "no":
        words += [
            f"{restarts['within_window']} of at most {restarts['limit']}",
            f"delay {render.duration(restarts['delay_seconds'])}"
            f" to {render.duration(restarts['max_delay_seconds'])}",
        ]
    if restarts["never_ready_in_a_row"]:
        words.append(f"{restarts['never_ready_in_a_row']} in a row never became ready")
    return ", ".join(words)


def _command(argv: list[str]) -> str:
    if not argv:
        return ""
    import shlex

    return render.clean(shlex.join(argv))
