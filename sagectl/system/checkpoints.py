"""What a model's files say about its size: safetensors headers and small JSON files, never weights.

Formats: https://huggingface.co/docs/safetensors/index (8 bytes of length, little endian, then JSON), and the
layout of the hub's cache, `models--ORGANISATION--NAME/{refs,snapshots}`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sagectl.plugin import CheckpointFacts, CheckpointQuery, Tensor

LARGEST_HEADER = 100 << 20
"""What safetensors itself accepts."""
LARGEST_DOCUMENT = 16 << 20
INDEX = "model.safetensors.index.json"
DOCUMENTS = (
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "modules.json",
    "adapter_config.json",
)
OTHER_WEIGHTS = ("pytorch_model*.bin", "*.gguf", "*.pt", "*.pth")

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


class _Unreadable(Exception):
    """A file is not what it should be; the text says which and why."""


def read(query: CheckpointQuery, environ: Mapping[str, str]) -> CheckpointFacts:
    """The facts of a model that lies here. What is wrong is part of the answer.

    Args:
        environ: of the engine, which says where its cache of the hub is.
    """
    try:
        found = find(query, environ)
        if found is None:
            return CheckpointFacts(error=f"{query.model} is not on this machine")
        if found.is_file():
            return CheckpointFacts(str(found), weight_files=found.stat().st_size)
        return _read_directory(found)
    except _Unreadable as error:
        return CheckpointFacts(error=str(error))
    except OSError as error:
        return CheckpointFacts(error=f"{error.filename or query.model}: {error.strerror or error}")


def find(query: CheckpointQuery, environ: Mapping[str, str]) -> Path | None:
    """The directory (or the single file) that a model's name means here."""
    if query.model.startswith("/"):
        return path if (path := Path(query.model)).exists() else None
    match = _HUB_NAME.fullmatch(query.model)
    if match is None or ".." in query.model.split("/"):
        return None
    local = Path(query.models_dir, query.model)
    if local.exists():
        return local
    repository = hub_cache(environ) / ("models--" + match["name"].replace("/", "--"))
    revision = match["revision"] or "main"
    reference = repository / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads, for a process with these variables."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"])
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"], "hub")
    home = environ.get("HOME") or "/"
    return Path(environ.get("XDG_CACHE_HOME") or f"{home}/.cache", "huggingface", "hub")


def _read_directory(directory: Path) -> CheckpointFacts:
    documents = dict(_documents(directory))
    folders = [directory, *_module_folders(directory, documents)]
    for folder in folders[1:]:
        where = f"{folder.relative_to(directory)}/"
        documents.update((where + name, document) for name, document in _documents(folder))
    tensors: dict[str, Tensor] = {}
    size = 0
    for folder in folders:
        for file in _weight_files(folder):
            size += file.stat().st_size
            tensors.update(_header(file))
    if not size:
        size = sum(file.stat().st_size for pattern in OTHER_WEIGHTS for file in directory.glob(pattern))
    return CheckpointFacts(str(directory), tensors, documents, size)


def _documents(folder: Path) -> Iterator[tuple[str, Any]]:
    for name in DOCUMENTS:
        file = folder / name
        if file.is_file():
            yield name, _json(file)


def _module_folders(directory: Path, documents: Mapping[str, Any]) -> list[Path]:
    """Where sentence-transformers keeps the parts of a model that are not at its top."""
    modules = documents.get("modules.json")
    found = []
    for module in modules if isinstance(modules, list) else []:
        name = module.get("path") if isinstance(module, dict) else None
        if isinstance(name, str) and name and re.fullmatch(r"[\w.-]+", name) and (directory / name).is_dir():
            found.append(directory / name)
    return found


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded: what the index names, or all but copies in another layout."""
    index = folder / INDEX
    if index.is_file():
        document = _json(index)
        named = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(named, dict) or not all(_is_name(file) for file in named.values()):
            raise _Unreadable(f"{index} has no weight_map of files beside it")
        files = [folder / name for name in sorted(set(named.values()))]
        lacking = [file.name for file in files if not file.is_file()]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise _Unreadable(f"{folder} is not complete: {lacking[0]}{more} is missing")
        return files
    found = sorted(f for f in folder.glob("*.safetensors") if not f.name.startswith("adapter_"))
    models = [file for file in found if file.name.startswith("model")]
    return models or found


def _is_name(value: object) -> bool:
    return isinstance(value, str) and "/" not in value and value not in ("", ".", "..")


def _header(file: Path) -> Iterator[tuple[str, Tensor]]:
    if not file.is_file():  # a pipe, say, which would have us wait for a writer
        raise _Unreadable(f"{file} is no safetensors file")
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= LARGEST_HEADER:
            raise _Unreadable(f"{file} is no safetensors file")
        text = stream.read(length)
    try:
        header = json.loads(text)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end:
                raise ValueError(f"{name} ends before it begins")
            yield name, Tensor(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), int(end - begin))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _Unreadable(f"{file} is no safetensors file, or it is cut off") from error
    end_of_data = max(
        (int(entry["data_offsets"][1]) for n, entry in header.items() if n != "__metadata__"), default=0
    )
    if os.stat(file).st_size < 8 + length + end_of_data:
        raise _Unreadable(f"{file} is cut off: it has fewer bytes than its header says")


def _json(file: Path) -> Any:
    if file.stat().st_size > LARGEST_DOCUMENT:
        raise _Unreadable(f"{file} is larger than {LARGEST_DOCUMENT >> 20} MiB")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"{file} is not valid JSON: {error}") from error
