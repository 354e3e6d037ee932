"""show, cat, explain."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from sagectl.cli import exits, render
from sagectl.cli.look import figures
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
    diagnosis = engine["diagnosis"] or {}
    yield from render.properties(
        [
            ("Diagnosis", render.clean(diagnosis.get("summary", ""))),
            *figures(explanation.get("arithmetic") or []),
            ("What to do", render.clean(explanation.get("remedy") or "")),
            ("Waits for", ", ".join(explanation["waiting_for"])),
            ("Restarts", _restarts(explanation.get("restarts") or {})),
            ("Command", _command(explanation.get("command") or [])),
            *(("Note", render.clean(note)) for note in explanation.get("notes") or []),
        ],
        style,
        indent=4,
    )
    history = explanation.get("history") or []
    if history:
        yield ""
        for event in history[-_HISTORY:]:
            look = {"warning": "yellow", "error": "red"}.get(event["level"], "")
            when = style.paint(render.local_time(event["at"]), "dim")
            yield f"  {when}  {style.paint(render.clean(event['text']) or event['kind'], look)}"


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
