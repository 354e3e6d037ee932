"""check, reload, kinds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagectl import errors
from sagectl.cli import exits, render
from sagectl.cli.session import Session, json_option, pass_session, problem_json

if TYPE_CHECKING:
    from sagectl.client import Reload
    from sagectl.config.load import Config

PREFLIGHTS = 120.0
"""Seconds for an answer that waits until the engines that would restart have been looked at."""

# --- check -----------------------------------------------------------------------------------


@click.command("check", short_help="Check the configuration, without a daemon.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
@pass_session
def check_verb(session: Session, file: Path | None) -> int:
    """Check the configuration: every mistake with its file, line, key and remedy. Asks no daemon.

    Checks FILE and the engines.d beside it; without FILE the configuration that sagectld would read.
    Exit code 1 if anything is wrong; warnings alone are not.

    \b
      sagectl check
      sagectl check ./sagectl.toml
    """
    from sagectl.config import load, machine, paths
    from sagectl.system import plugins

    places = paths.resolve(os.environ, os.getuid(), config_file=file)
    kinds = plugins.discover()
    config: Config | None = None
    problems: tuple[errors.Problem, ...]
    try:
        config = load.load(
            places.config_file,
            places.engines_d,
            kinds.by_name(),
            broken=kinds.broken_by_name(),
            explicit=file is not None,
        )
    except errors.InvalidConfig as error:
        problems = error.problems
    else:
        problems = (*config.warnings, *machine.warnings(config), *config.left_out)
    wrong = any(problem.severity == "error" for problem in problems)
    broken = [{"name": b.name, "distribution": b.distribution, "reason": b.reason} for b in kinds.broken]
    if session.json:
        session.dump(
            {
                "ok": not wrong,
                "problems": [problem_json(p) for p in problems],
                "broken_plugins": broken,
                "files": list(config.files) if config else None,
                "engines": [spec.name for spec in config.specs] if config else None,
            }
        )
        return exits.FAILURE if wrong else exits.OK
    style = render.stdout()
    session.out(style.paint(f"warning: {render.broken_plugin(b)}", "yellow") for b in broken)
    session.out(_problem_line(problem, style) for problem in problems)
    if config is not None and not wrong:
        session.out(_summary(config, places.config_file))
    return exits.FAILURE if wrong else exits.OK


def _summary(config: Config, file: Path) -> str:
    count = "1 engine" if len(config.specs) == 1 else f"{len(config.specs)} engines"
    where = ", ".join(config.files) or f"{file} does not exist, which is fine"
    return f"No mistakes: {count} ({where})."


def _problem_line(problem: errors.Problem, style: render.Style) -> str:
    if problem.severity == "warning":
        return style.paint(f"warning: {problem}", "yellow")
    return str(problem)


# --- reload ----------------------------------------------------------------------------------


@click.command("reload", short_help="Read the configuration again and apply what changed.")
@click.option("--dry-run", is_flag=True, help="Print what would change, and change nothing.")
@click.option("--no-restart", is_flag=True, help="Restart no engine; mark it needs-restart instead.")
@json_option
@pass_session
def reload_verb(session: Session, dry_run: bool, no_restart: bool) -> int:
    """Read the configuration again, print what changes, and apply it. A wrong one changes nothing.

    What can change in place does so. An engine whose launch changed restarts, one at a time; a removed
    one drains and stops; jobs are never restarted.

    \b
      sagectl reload --dry-run
      sagectl reload
    """
    session.client.timeout = PREFLIGHTS
    plan = session.client.reload(dry_run=dry_run, restart=not no_restart)
    if session.json:
        session.dump(plan)
    else:
        session.out(_plan(plan, dry_run, render.stdout()))
    return exits.OK


def _plan(plan: Reload, dry_run: bool, style: render.Style) -> Iterable[str]:
    for warning in plan["warnings"]:
        yield style.paint(f"warning: {warning}", "yellow")
    rows = [
        *(("green", "new", name, "") for name in plan["added"]),
        *(("red", "removed", name, "drains and stops") for name in plan["removed"]),
        *(("", "changed in place", c["name"], _keys(c)) for c in plan["in_place"]),
        *(("yellow", "restarts", c["name"], _keys(c)) for c in plan["restarts"]),
        *(("yellow", "needs a restart", c["name"], _keys(c)) for c in plan["needs_restart"]),
    ]
    unchanged = plan["unchanged"]
    if not rows:
        yield f"Nothing changes ({unchanged} unchanged)."
        return
    what = max(len(row[1]) for row in rows)
    who = max(len(row[2]) for row in rows)
    for look, word, name, detail in rows:
        yield f"{style.paint(word.ljust(what), look)}  {name.ljust(who)}  {detail}".rstrip()
    if unchanged:
        yield style.paint(f"{unchanged} unchanged", "dim")
    if dry_run:
        yield "Nothing was changed (--dry-run)."
    elif plan["restarts"] or plan["removed"]:
        yield style.paint("This goes on one at a time; `sagectl events -f` shows it.", "dim")


def _keys(change: Mapping[str, Any]) -> str:
    return ", ".join(change["keys"])


# --- kinds -----------------------------------------------------------------------------------


@click.command("kinds", short_help="Engine kinds, their options, where they come from.")
@json_option
@pass_session
def kinds_verb(session: Session) -> int:
    """Engine kinds, their options and the packages they come from; broken plugins and why.

    Asks the daemon; where none answers, looks at this environment's packages.

    \b
      sagectl kinds
    """
    kinds = _kinds(session)
    if session.json:
        session.dump({"kinds": kinds})
        return exits.OK
    if not kinds:
        session.out("No engine kinds: no plugin is installed. Installing sagectl itself brings some.")
    style = render.stdout()
    for place, kind in enumerate(kinds):
        session.out([""] if place else [])
        session.out(_broken_kind(kind, style) if kind["broken"] else _kind(kind, style))
    return exits.OK


def _kinds(session: Session) -> list[dict[str, Any]]:
    try:
        return session.client.kinds()
    except errors.NoDaemon:
        from sagectl.system import plugins

        return plugins.discover().describe()


def _kind(kind: Mapping[str, Any], style: render.Style) -> Iterable[str]:
    origin = f"{kind['distribution']} {kind['version']}".strip()
    yield f"{style.paint(kind['name'], 'bold')}  {kind['summary']}"
    mode = "serves until it is stopped" if kind["mode"] == "serve" else "runs to completion"
    port = f"; ports from {kind['default_port']}" if kind["default_port"] else ""
    yield style.paint(f"  {mode}{port}; from {origin}", "dim")
    edge = max((render.cells(option["name"]) for option in kind["options"]), default=0)
    for option in kind["options"]:
        name = style.paint(option["name"].ljust(edge), "cyan")
        yield f"  {name}  {_type(option['type'])}, {_default(option)}"
        yield f"  {' ' * edge}  {render.clean(option['help'])}"


_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}


def _type(text: str) -> str:
    """A Python annotation in the words of the configuration."""
    if text.startswith("Literal[") and text.endswith("]"):
        return " | ".join(word.strip().strip("'\"") for word in text[len("Literal[") : -1].split(","))
    if text.startswith("tuple[") and text.endswith(", ...]"):
        return f"list of {_type(text[len('tuple[') : -len(', ...]')])}"
    if " | " in text:
        return " or ".join(_type(part) for part in text.split(" | ") if part != "None")
    return _TYPES.get(text, text)


def _default(option: Mapping[str, Any]) -> str:
    if option["required"]:
        return "required"
    value = option["default"]
    return "no default" if value is None else f"default {json.dumps(value, ensure_ascii=False)}"


def _broken_kind(kind: Mapping[str, Any], style: render.Style) -> Iterable[str]:
    yield style.paint(render.broken_plugin({**kind, "reason": kind["broken"]}), "red")
    for line in str(kind.get("detail", "")).rstrip().splitlines():
        yield style.paint(f"  {line}", "dim")
