"""fine-tune: define a job that adapts a model to data, and follow it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import click

from sagectl import errors
from sagectl.cli import exits
from sagectl.cli.definition import body
from sagectl.cli.session import Session, engine_names, json_option
from sagectl.cli.training import taken, training_options
from sagectl.cli.verdict import Goal
from sagectl.cli.wait import follow_up, newest_event

if TYPE_CHECKING:
    from sagectl.client import Engine

KIND = "finetune"


@click.command("fine-tune", short_help="Train a model on your data, as a job.")
@click.option(
    "--base-model", "--model", "model", metavar="MODEL", help="The model: a directory, or on the hub."
)
@training_options
@click.option("--name", metavar="NAME", shell_complete=engine_names, help="The job's name (default: chosen).")
@click.option("--python", metavar="PATH", help="The interpreter that trains.")
@click.option("--use-gpu/--no-gpu", default=None, help="Give it GPUs, or none (default: GPUs, if any).")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")
@click.option(
    "-o",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other key of the configuration, such as packing=true or gpu_memory=12GiB; JSON or plain "
    "text; repeatable.",
)
@click.option(
    "-f", "--follow", is_flag=True, help="Show how far it is until it ends; Ctrl-C leaves it running."
)
@click.option("--dry-run", is_flag=True, help="Look at data, steps and memory, and train nothing.")
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and do not wait until it runs.")
@json_option
@click.pass_context
def fine_tune_verb(
    context: click.Context,
    /,
    model: str | None,
    follow: bool,
    dry_run: bool,
    detach: bool,
    **options: Any,
) -> int:
    """Train a model on your data: a job under the same supervision as the servers. Prints its id.

    `sagectl stop JOB` saves a checkpoint, `sagectl start JOB` goes on from it. Relative paths are taken from
    here. With --follow and --name alone, an earlier job is followed. Exit code then: 0 it completed, 1 it
    failed, 3 it was stopped.

    \b
      sagectl fine-tune --base-model Qwen/Qwen2.5-0.5B-Instruct --dataset d.jsonl --output support -f
      sagectl fine-tune --base-model ./base --dataset data/ --output out --method qlora --dry-run
      sagectl fine-tune --follow --name tune-0a1b2c3d
    """
    session = context.ensure_object(Session)
    if sum((follow, dry_run, detach)) > 1:
        raise click.UsageError("--follow, --dry-run and --detach exclude one another.")
    training = taken(options)
    if follow and model is None and not training and options["name"]:
        return _follow(session, session.client.engine(options["name"]), newest_event(session))
    definition = _definition(model, training, options)
    if dry_run:
        from sagectl.cli.rehearsal import rehearse

        return rehearse(session, definition)
    since = newest_event(session)
    engine = session.client.define(definition)
    if not session.json:
        session.out(engine["engine_id"])
    if follow:
        return _follow(session, engine, since, output=definition["output"])
    if detach:
        if session.json:
            session.dump(engine)
        return exits.OK
    return follow_up(session, Goal.UP, engine, since)


def _definition(model: str | None, training: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The body that defines the job. Raises UsageError."""
    needed = {"--base-model": model, "--dataset": training.get("dataset"), "--output": training.get("output")}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise click.UsageError(f"Missing {', '.join(missing)}.")
    options["name"] = options["name"] or f"tune-{secrets.token_hex(4)}"
    common = body(model, (), engine_kind=KIND, port=None, gpu_util=None, backend=None, **options)
    return {**training, **common}


def _follow(session: Session, engine: Engine, since: int, *, output: str | None = None) -> int:
    from sagectl.cli.job import Follow

    if engine["mode"] != "run":
        raise errors.Conflict(
            f"{engine['name']} is no job", remedy=f"see it with `sagectl status {engine['name']}`"
        )
    return Follow(session, engine, since, output=output).run()
