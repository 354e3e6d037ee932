"""engine start, list, status, logs, stop, prune: the spelling that SAGE's users know."""

from __future__ import annotations

from typing import Any

import click

from sagectl import errors
from sagectl.cli import exits
from sagectl.cli.definition import WordsAfterDashes, body, definition_options
from sagectl.cli.follow import logs_verb
from sagectl.cli.lifecycle import stop_verb, wait_options
from sagectl.cli.look import print_list, status_verb
from sagectl.cli.session import Session, engine_names, json_option, pass_session
from sagectl.cli.training import taken, training_options
from sagectl.cli.verdict import Goal
from sagectl.cli.wait import follow_up, newest_event


@click.group("engine", short_help="Engines without a configuration: start, list, stop, prune.")
def engine_verb() -> None:
    """Engines without a configuration. They survive the daemon, until they are stopped and pruned.

    \b
      ID=$(sagectl engine start Qwen/Qwen2.5-0.5B-Instruct --engine-kind llm)
      sagectl engine stop $ID
    """


engine_verb.add_command(status_verb)
engine_verb.add_command(logs_verb)
engine_verb.add_command(stop_verb)


@engine_verb.command("start", cls=WordsAfterDashes, short_help="Define an engine, start it, print its id.")
@click.argument("model", required=False)
@definition_options
@training_options
@wait_options
@json_option
@click.pass_context
def engine_start(
    context: click.Context, /, model: str | None, no_wait: bool, timeout: float | None, **options: Any
) -> int:
    """Define an engine, start it and wait until it is ready. Prints its id alone on stdout.

    What follows `--` are further flags of the model's server, or the command of kind exec.

    \b
      sagectl engine start Qwen/Qwen2.5-0.5B-Instruct --engine-kind llm --port 8001
      sagectl engine start BAAI/bge-small-en-v1.5 --engine-kind embedding --use-gpu
      sagectl engine start ./base --engine-kind finetune --dataset train.jsonl --output out --num-epochs 1
    """
    session = context.ensure_object(Session)
    training = taken(options)
    definition = {**training, **body(model, context.meta.get("words", ()), **options)}
    since = newest_event(session)
    engine = session.client.define(definition)
    if session.json:
        if no_wait:
            session.dump(engine)
    else:
        session.out(engine["engine_id"])
    if no_wait:
        return exits.OK
    return follow_up(session, Goal.UP, engine, since, timeout=timeout)


@engine_verb.command("list", short_help="A table of all engines with their ids.")
@json_option
@pass_session
def engine_list(session: Session) -> int:
    """A table of all engines with their ids.

    \b
      sagectl engine list
    """
    return print_list(session, ids=True)


@engine_verb.command("unload", short_help="Take out a model that an engine took in while it ran.")
@click.argument("name", shell_complete=engine_names)
@click.argument("model", required=False)
@json_option
@pass_session
def engine_unload(session: Session, name: str, model: str | None) -> int:
    """Take a model out that an engine took in while it ran (`fine-tune --serve-as`); all where none is named.

    \b
      sagectl engine unload chat support
    """
    engines = session.client.unload(name, model=model)
    if session.json:
        session.dump({"engines": engines})
    else:
        for engine in engines:
            session.out(f"{engine['name']}: serves {', '.join(engine['serves']) or 'nothing'}")
    return exits.OK


@engine_verb.command("prune", short_help="Forget transient engines that are down.")
@json_option
@pass_session
def engine_prune(session: Session) -> int:
    """Forget every transient engine that is down; prints their ids.

    \b
      sagectl engine prune
    """
    pruned = []
    for engine in session.client.engines():
        if engine["transient"] and engine["state"] in ("inactive", "failed"):
            try:
                session.client.forget(engine["engine_id"])
            except (errors.Conflict, errors.UnknownEngine):
                continue  # started or forgotten by somebody else in between
            pruned.append(engine)
    if session.json:
        session.dump({"engines": pruned})
    else:
        session.out(engine["engine_id"] for engine in pruned)
    return exits.OK
