"""From the options of `run` and `engine start` to the body that defines an engine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

MODEL_MARKS = ("config.json", "adapter_config.json", "modules.json")
"""A directory with any of these holds a model, or an adapter for one."""


class WordsAfterDashes(click.Command):
    """Keeps what follows `--` apart, in `context.meta["words"]`; click would mix it with arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["words"] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)


def definition_options(command: CommandT) -> CommandT:
    """The options that say what an engine is."""
    options = (
        click.option("--engine-kind", default="llm", show_default=True, metavar="KIND", help="Its kind."),
        click.option("--name", metavar="NAME", help="Its name (default: chosen by the daemon)."),
        click.option("--port", type=click.IntRange(1, 65535), metavar="P", help="Its port."),
        click.option(
            "--gpu-util",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="F",
            help="Share of each GPU's memory to use, such as 0.7 (gpu_memory in the configuration).",
        ),
        click.option(
            "--use-gpu/--no-gpu", default=None, help="Give it GPUs, or none (default: as its kind does)."
        ),
        click.option("--python", metavar="PATH", help="The interpreter that runs it."),
        click.option("--backend", metavar="NAME", help="The server that runs the model."),
        click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; repeatable."),
        click.option(
            "-o",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any other key of the configuration, such as max_model_len=4096 or env.HF_HOME=/models; "
            "JSON or plain text; repeatable.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def body(
    model: str | None,
    words: Sequence[str],
    *,
    engine_kind: str,
    name: str | None,
    port: int | None,
    gpu_util: float | None,
    use_gpu: bool | None,
    python: str | None,
    backend: str | None,
    labels: Sequence[str],
    settings: Sequence[str],
) -> dict[str, Any]:
    """The body of a definition, in the configuration's keys.

    words: what followed `--`: the command of kind exec, further flags of the server of others.

    Raises:
        UsageError: it cannot be meant so.
    """
    if model is None and not words:
        raise click.UsageError("Which MODEL? (Or with --engine-kind exec: -- COMMAND ARGUMENTS…)")
    given = {
        "kind": engine_kind,
        "name": name,
        "model": None if model is None else model_here(model),
        "port": port,
        "gpu_memory": None if gpu_util is None else f"{round(gpu_util * 100, 4):g}%",
        "use_gpu": use_gpu,
        "python": None if python is None else local(os.path.expanduser(python)),
        "backend": backend,
        "labels": dict(_pair(label, "--label") for label in labels) or None,
    }
    result: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if words:
        result |= (
            {"command": [local(words[0]), *words[1:]]} if engine_kind == "exec" else {"extra_args": [*words]}
        )
    for setting in settings:
        key, text = _pair(setting, "-o")
        _put(result, key, value_of(text))
    return result


def local(path: str) -> str:
    """An absolute path where `path` names a file here: the daemon has another working directory.

    `./x` means nothing else, be it there or not.
    """
    here = path.startswith(("./", "../")) or ("/" in path and os.path.exists(path))
    return os.path.abspath(path) if here else path


def model_here(model: str) -> str:
    """An absolute path where `model` is a directory of a model here, as the engines' libraries see it too."""
    if "/" not in model and any(os.path.isfile(os.path.join(model, mark)) for mark in MODEL_MARKS):
        return os.path.abspath(model)
    return local(model)


def value_of(text: str) -> Any:
    """JSON where it is JSON (numbers, true, lists, quoted text), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def setting(text: str) -> tuple[str, Any]:
    """`-o KEY=VALUE`. Raises UsageError."""
    key, value = _pair(text, "-o")
    return key, value_of(value)


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{option} {text}: write {option} KEY=VALUE.")
    return key, value


def _put(table: dict[str, Any], dotted: str, value: Any) -> None:
    *outer, last = dotted.split(".")
    for key in outer:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise click.UsageError(f"-o {dotted}: {key} has a value already, and is no table.")
        table = inner
    table[last] = value
