"""`sagectl`: finds the verb, imports its module alone, and turns errors into words and exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from sagectl import __version__, errors
from sagectl.cli import exits
from sagectl.cli.session import Session

SECTIONS: dict[str, dict[str, str]] = {
    "Engines": {
        "start": "lifecycle",
        "stop": "lifecycle",
        "restart": "lifecycle",
        "run": "run",
        "engine": "engine",
        "fine-tune": "finetune",
        "enable": "lifecycle",
        "disable": "lifecycle",
        "reset-failed": "lifecycle",
    },
    "What is going on": {
        "status": "look",
        "list": "look",
        "gpu": "gpu",
        "logs": "follow",
        "events": "follow",
        "show": "describe",
        "cat": "describe",
        "explain": "describe",
    },
    "Configuration": {
        "check": "configuration",
        "reload": "configuration",
        "kinds": "configuration",
        "estimate": "estimate",
    },
    "Daemon and shell": {
        "daemon-reexec": "reexec",
        "shutdown": "shutdown",
        "completion": "completion",
    },
}
"""Which module of this package holds which verb; as `--help` groups them."""

ALIASES = {"ps": "list", "finetune": "fine-tune"}
_MODULES = {verb: module for section in SECTIONS.values() for verb, module in section.items()}


class Verbs(click.Group):
    """A group that imports a verb's module when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = ALIASES.get(cmd_name, cmd_name)
        module = _MODULES.get(verb)
        if module is None:
            return None
        from importlib import import_module

        command = getattr(import_module(f"sagectl.cli.{module}"), verb.replace("-", "_") + "_verb")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _MODULES | ALIASES and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], [*_MODULES, *ALIASES], n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"There is no command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # `sagectl events | head`: nobody wants more, which is no failure
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return exits.OK
        return code

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            rows = []
            for verb in verbs:
                command = self.get_command(ctx, verb)
                assert command is not None
                rows.append((verb, command.get_short_help_str(limit=72)))
            with formatter.section(title):
                formatter.write_dl(rows, col_spacing=3)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`sagectl COMMAND --help` has the details. Exit codes: 1 failed, 2 usage, 3 not active, "
    "4 unknown engine, 5 no daemon answers.",
)
@click.option(
    "--socket", metavar="PATH", type=click.Path(), help="The daemon's socket, where it is not the usual one."
)
@click.option("--json", is_flag=True, help="Print JSON, in the API's words; errors too, to stderr.")
@click.version_option(__version__, prog_name="sagectl", message="%(prog)s %(version)s")
@click.pass_context
def sagectl(context: click.Context, socket: str | None, json: bool) -> None:
    """systemd for AI engines on one GPU machine."""
    context.obj = Session(socket=socket, json=json)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's arguments) and return its exit code."""
    session = Session(json=_wants_json(sys.argv[1:] if arguments is None else arguments))
    try:
        code: Any = sagectl.main(
            args=None if arguments is None else list(arguments), prog_name="sagectl", standalone_mode=False
        )
    except click.ClickException as error:
        return _usage(session, error)
    except errors.SagectlError as error:
        session.complain(error)
        return exits.of_error(error)
    except (click.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    return code if isinstance(code, int) else exits.OK


def _wants_json(arguments: Sequence[str]) -> bool:
    """Asked for before the words are parsed, so that errors in them are JSON too."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in own


def _usage(session: Session, error: click.ClickException) -> int:
    if session.json:
        import json

        session.note(json.dumps({"code": "usage", "detail": error.format_message()}, ensure_ascii=False))
    else:
        error.show()
    return error.exit_code


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal in latin-1 is no reason for a traceback
    sys.exit(run())


if __name__ == "__main__":
    main()
