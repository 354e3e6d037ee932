"""The options of a fine-tuning job, for `fine-tune` and for `engine start --engine-kind finetune`."""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

METHODS = ("lora", "qlora", "full")
POLICIES = ("queue", "shared", "preempt")
_PATHS = ("dataset", "output")
_COUNT = click.IntRange(1)
_ABOVE_ZERO = click.FloatRange(0, min_open=True)

OPTIONS: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
    "dataset": (("--dataset", "--dataset-path"), click.Path(), "PATH", "The data: a file or a folder."),
    "output": (("--output", "--output-dir"), click.Path(), "DIR", "Where the result is written."),
    "method": (("--method",), click.Choice(METHODS), "", "Default: lora."),
    "lora_rank": (("--lora-rank",), _COUNT, "N", "Rank of the adapter (default: 8)."),
    "lora_alpha": (("--lora-alpha",), _COUNT, "N", "Scale of the adapter (default: 16)."),
    "num_epochs": (("--num-epochs", "--epochs"), _ABOVE_ZERO, "N", "Times through the data (default: 3)."),
    "max_steps": (("--max-steps",), _COUNT, "N", "End after N steps."),
    "batch_size": (("--batch-size",), _COUNT, "N", "Rows at once, on each GPU (default: 4)."),
    "gradient_accumulation_steps": (
        ("--gradient-accumulation-steps",), _COUNT, "N", "Batches of a step (default: 1).",
    ),
    "learning_rate": (("--learning-rate",), _ABOVE_ZERO, "F", "The highest one (default: 1e-4)."),
    "max_length": (("--max-seq-length", "--max-length"), _COUNT, "N", "Tokens of a row (default: 512)."),
    "serve_as": (
        ("--serve-as",), None, "NAME", "Serve the result under this name when it is complete.",
    ),
    "skip_bad_rows": (("--skip-bad-rows",), bool, "", "Go on without rows that cannot be used."),
    "policy": (("--policy",), click.Choice(POLICIES), "", "Where no GPU has room (default: queue)."),
}  # fmt: skip
"""By the configuration's key: names, type, metavar, help."""


def training_options(command: CommandT) -> CommandT:
    """The options of `OPTIONS`, each None where it is not given."""
    for key, (names, kind, metavar, text) in reversed(OPTIONS.items()):
        if kind is bool:
            command = click.option(*names, key, is_flag=True, default=None, help=text)(command)
        else:
            command = click.option(*names, key, type=kind, metavar=metavar or None, help=text)(command)
    return command


def taken(options: MutableMapping[str, Any]) -> dict[str, Any]:
    """Takes what was given of `OPTIONS` out of a verb's options; paths become absolute."""
    given = {key: options.pop(key) for key in OPTIONS}
    found = {key: value for key, value in given.items() if value is not None}
    for key in _PATHS:
        if key in found:
            found[key] = os.path.abspath(os.path.expanduser(found[key]))
    return found
