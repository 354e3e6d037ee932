"""Where an engine's `model` lies and what clients call it."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sagectl.plugin import EngineRequest, Facts, FileQuery, Refusal


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """What a server loads (a directory or a name on the hub), what clients call it, and a note for
    `sagectl explain`.
    """

    source: str
    name: str
    note: str


@dataclass(frozen=True, slots=True)
class Search:
    """How one kind knows its models.

    marks: a directory with any of these files holds a model.
    example: a model of the hub, for remedies.
    saved: what a directory of a model is called there.
    """

    marks: tuple[str, ...]
    example: str
    saved: str


def queries(search: Search, request: EngineRequest[Any]) -> tuple[FileQuery, ...]:
    """The directory that `model` means, and the files by which one knows a model."""
    model = request.model or ""
    if not model or model.startswith((".", "~")):
        return ()
    directory = _directory(request, model)
    return (FileQuery(directory), *(FileQuery(posixpath.join(directory, mark)) for mark in search.marks))


def locate(
    search: Search, request: EngineRequest[Any], facts: Facts, served_name: str | None
) -> ModelPlace | Refusal:
    """An absolute directory, a directory below `models_dir`, or a name on the hub, in this order."""
    model = request.model
    if not model:
        return Refusal("no model is named", f'add `model = "{search.example}"` or a directory')
    if model.startswith((".", "~")):
        return Refusal(
            f"model: {model!r} is relative, and an engine has no directory that it could be relative to",
            f"write its absolute path, or put it below {request.models_dir} and write its name there",
        )
    place, *marks = (facts.file(query) for query in queries(search, request))
    directory = _directory(request, model)
    if any(mark.type == "file" for mark in marks) or (place.type == "file" and model.endswith(".gguf")):
        name = directory if model.startswith("/") else model
        return ModelPlace(directory, served_name or name, f"the model is the directory {directory}")
    if not model.startswith("/"):
        note = f"no {model} in {request.models_dir}: it comes from the model hub"
        return ModelPlace(model, served_name or model, note)
    lack = {"missing": "does not exist", "directory": f"holds no {_or(search.marks)}"}.get(
        place.type, "is not a directory"
    )
    return Refusal(
        f"model: {model} {lack}" + (f" ({place.error})" if place.error else ""),
        f"name {search.saved}, or a model of the hub such as {search.example}",
    )


def _directory(request: EngineRequest[Any], model: str) -> str:
    return model.rstrip("/") or "/" if model.startswith("/") else posixpath.join(request.models_dir, model)


def _or(marks: Sequence[str]) -> str:
    return " and no ".join(marks)
