"""What every verb needs: the client, `--json`, and how to say things."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sagectl import errors

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sagectl.client import Client, Engine

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


PATIENCE = 8.0
"""Seconds that the daemon may take for an answer: it answers in milliseconds, unless it hangs."""


@dataclass(slots=True)
class Session:
    """One invocation of the command line."""

    socket: str | None = None
    json: bool = False
    _client: Client | None = field(default=None, repr=False)

    @property
    def client(self) -> Client:
        """The client of the daemon."""
        if self._client is None:
            from sagectl.client import Client

            self._client = Client(self.socket, timeout=PATIENCE)
        return self._client

    def engines(self, refs: Sequence[str]) -> list[Engine]:
        """The engines behind names, ids and groups, each once, in the order asked for.

        Raises:
            UnknownEngine: one of them is unknown; nothing was changed then.
        """
        found: dict[str, Engine] = {}
        for ref in refs:
            for engine in self.client.resolve(ref):
                found.setdefault(engine["engine_id"], engine)
        return list(found.values())

    def out(self, lines: str | Iterable[str]) -> None:
        """Print to standard output."""
        for line in [lines] if isinstance(lines, str) else lines:
            sys.stdout.write(line + "\n")

    def note(self, lines: str | Iterable[str]) -> None:
        """Print to standard error."""
        for line in [lines] if isinstance(lines, str) else lines:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def complain(self, error: errors.SagectlError, about: str = "sagectl") -> None:
        """Print an error to standard error, with every mistake of a definition on a line."""
        sys.stdout.flush()
        if self.json:
            self.note(json.dumps(error_json(error), ensure_ascii=False))
        elif isinstance(error, errors.InvalidConfig):
            self.note(str(problem) for problem in error.problems)
        else:
            self.note(f"{about}: {error}")
            self.note(f"  {line}" for line in error.facts.get("arithmetic", ()))

    def dump(self, value: Any) -> None:
        """Print JSON."""
        self.out(json.dumps(value, indent=2, ensure_ascii=False))

    def dump_line(self, value: Any) -> None:
        """Print JSON on one line, at once: for what goes on."""
        self.out(json.dumps(value, ensure_ascii=False))
        sys.stdout.flush()


def error_json(error: errors.SagectlError) -> dict[str, Any]:
    """An error as `--json` prints it: the API's problem, or the same for errors of our own."""
    problem: dict[str, Any] = {"code": error.code, "detail": error.detail}
    if error.remedy:
        problem["remedy"] = error.remedy
    if isinstance(error, errors.InvalidConfig):
        problem["errors"] = [problem_json(p) for p in error.problems]
    return {**error.facts, **problem}


def problem_json(problem: errors.Problem) -> dict[str, Any]:
    """A mistake in a configuration, as the API shows it."""
    return {
        "key": problem.key,
        "message": problem.message,
        "remedy": problem.remedy,
        "file": problem.file,
        "line": problem.line or None,
        "severity": problem.severity,
    }


pass_session = click.make_pass_decorator(Session)


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and isinstance(context.obj, Session):
        context.obj.json = True


def json_option(command: CommandT) -> CommandT:
    """`--json`, which may stand before or after the verb."""
    return click.option(
        "--json", is_flag=True, expose_value=False, callback=_set_json, help="Print JSON, in the API's words."
    )(command)


def engine_names(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes names of engines and groups; silent where no daemon answers quickly."""
    from click.shell_completion import CompletionItem

    from sagectl.client import Client

    try:
        engines = Client(context.find_root().params.get("socket"), timeout=0.5).engines()
    except (errors.SagectlError, OSError):
        return []
    given = {name for value in context.params.values() if isinstance(value, tuple) for name in value}
    items = [CompletionItem(e["name"], help=f"{e['state']} ({e['substate']})") for e in engines]
    groups = sorted({e["group"] for e in engines if e.get("group")} - {e["name"] for e in engines})
    items += [CompletionItem(group, help="group") for group in groups]
    return [item for item in items if item.value.startswith(incomplete) and item.value not in given]


def refs_argument(*, required: bool = True) -> Callable[[CommandT], CommandT]:
    """`NAME…`: names, ids or groups of engines."""
    metavar = "NAME..." if required else "[NAME...]"
    return click.argument("names", nargs=-1, required=required, metavar=metavar, shell_complete=engine_names)


ref_argument = click.argument("name", metavar="NAME", shell_complete=engine_names)
