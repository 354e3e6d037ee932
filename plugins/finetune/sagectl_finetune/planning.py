"""Plan the trainer: what it needs of the machine, how it is launched, where its files are."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sagectl.plugin import (
    EngineRequest,
    FactQuery,
    Facts,
    FileQuery,
    InterpreterFacts,
    InterpreterQuery,
    LaunchPlan,
    Refusal,
    Successor,
)
from sagectl_finetune.estimates import MODULES
from sagectl_finetune.options import FinetuneOptions
from sagectl_models import allocator, places

TRAINER = str(Path(__file__).with_name("run_trainer.py"))
PROGRESS = "progress.json"
HISTORY = "history.jsonl"
CARD = "sagectl.json"
"""What a result was made from, in its directory."""
OLDEST = (5, 0)
"""transformers, whose names of options the trainer uses."""
OLDEST_PYTHON = (3, 11)

Request = EngineRequest[FinetuneOptions]

SEARCH = places.Search(
    marks=("config.json",),
    example="Qwen/Qwen2.5-0.5B-Instruct",
    saved="a directory with a model's config.json and weights",
)
_OWN = (
    "dataset",
    "output",
    "serve_as",
    "policy",
    "yield_on_queue",
    "quantization",
    "double_quantization",
    "use_8bit",
)
"""Options that the trainer is told in another way, or not at all."""


def facts(request: Request) -> Sequence[FactQuery]:
    """The modules of the interpreter, the base model, the data and what lies where the result goes."""
    asked: list[FactQuery] = [InterpreterQuery(request.python, MODULES), *places.queries(SEARCH, request)]
    dataset, output = request.options.dataset, request.options.output
    if dataset:
        asked.append(FileQuery(resolve(request, dataset)))
    if output:
        where = resolve(request, output)
        asked += [FileQuery(where), FileQuery(posixpath.join(where, CARD))]
    return tuple(asked)


def plan(request: Request, facts: Facts) -> LaunchPlan | Refusal:
    """The launch, or why it cannot work here."""
    found = facts.interpreter(InterpreterQuery(request.python, MODULES))
    model = places.locate(SEARCH, request, facts, None)
    trouble = _interpreter_trouble(request, found) or _files_trouble(request, facts)
    if trouble is not None:
        return trouble
    if isinstance(model, Refusal):
        return model
    told = settings(request, model.source)
    cap = allocator.cap(request.grant) if told["device"] != "cpu" else None
    gpus = told["gpus"]
    return LaunchPlan(
        argv=(request.python, TRAINER, json.dumps(told, ensure_ascii=False)),
        env={**_environment(told), **({} if cap is None else cap.env)},
        progress_file=posixpath.join(request.state_dir, PROGRESS),
        successor=successor(request, told),
        history_file=posixpath.join(request.state_dir, HISTORY),
        notes=(
            f"{request.options.method} on {'the CPU' if told['device'] == 'cpu' else counted(gpus)}",
            model.note,
            f"the data is {told['dataset']}, the result goes to {told['output']}",
            f"checkpoints are in {told['checkpoints']}, each {request.options.save_steps} steps",
            *(() if cap is None else (cap.note,)),
        ),
    )


def successor(request: Request, told: dict[str, Any]) -> Successor | None:
    """What serves the result; on the CPU where it was trained there because it was told to."""
    name = request.options.serve_as
    if name is None:
        return None
    keys: dict[str, Any] = {"served_model_name": name}
    if request.gpus == 0 or request.gpu_ids == ():
        keys["use_gpu"] = False
    return Successor(name, "llm", told["output"], keys)


def counted(gpus: int) -> str:
    """`a GPU`, `2 GPUs`."""
    return "a GPU" if gpus == 1 else f"{gpus} GPUs"


def resolve(request: Request, path: str) -> str:
    """An absolute path; others are below the directory that holds `models`.

    So `output = "models/support"` is what `model = "support"` finds.
    """
    if path.startswith("/"):
        return posixpath.normpath(path)
    return posixpath.normpath(posixpath.join(posixpath.dirname(request.models_dir.rstrip("/")), path))


def settings(request: Request, model: str) -> dict[str, Any]:
    """What the trainer is told: its argument, as JSON's values."""
    options = request.options
    values = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in _OWN}
    return {
        "job": request.name,
        "model": model,
        "dataset": resolve(request, options.dataset or ""),
        "output": resolve(request, options.output or ""),
        "checkpoints": posixpath.join(request.models_dir, "finetuned", request.name),
        "state": request.state_dir,
        "stored": options.stored,
        "device": _device(request),
        "gpus": max(1, len(request.gpu_ids or ())),
        **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
    }


def _device(request: Request) -> str:
    if request.gpu_ids == () or (request.gpu_ids is None and request.gpus == 0):
        return "cpu"
    # Where GPUs are not managed there may be none, and small models are trained on the CPU too.
    return "cuda" if request.gpu_ids else "auto"


def _environment(told: dict[str, Any]) -> dict[str, str]:
    env = {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if told["device"] == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    else:
        # Rows differ in length: without it the allocator is left with holes that no batch fits into.
        env["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if told["threads"] is not None:
        env["OMP_NUM_THREADS"] = str(told["threads"])
    return env


# --- what is missing ---------------------------------------------------------------------------


def needed(options: FinetuneOptions) -> tuple[str, ...]:
    """The modules that these options need."""
    names = ["torch", "transformers"]
    names += ["peft"] if options.method != "full" else []
    names += ["bitsandbytes"] if options.stored != "none" or options.optimizer != "adamw" else []
    names += ["accelerate"]
    # A directory may hold Parquet too; that is found when the data is read.
    names += ["pyarrow"] if (options.dataset or "").lower().endswith(".parquet") else []
    return (*names, *options.report_to)


def _interpreter_trouble(request: Request, found: InterpreterFacts) -> Refusal | None:
    python = request.python
    setting = 'set `[defaults.finetune] python = "…"` (or this engine\'s `python`)'
    if found.error is not None:
        return Refusal(
            f"the engine's interpreter {python} cannot be run: {found.error}",
            f"{setting} to the Python of an environment with torch, transformers and peft",
        )
    missing = [name for name in needed(request.options) if found.modules.get(name) is None]
    if missing:
        return Refusal(
            f"{python} lacks {', '.join(missing)}, which this training needs",
            f"install what is missing: {python} -m pip install {' '.join(missing)}; or {setting} to an "
            "interpreter that has it",
        )
    version = found.modules.get("transformers") or ""
    if _older(version, OLDEST):
        return Refusal(
            f"{python} has transformers {version}, which is older than 5.0",
            f"upgrade it: {python} -m pip install --upgrade transformers peft accelerate",
        )
    if _older(found.version, OLDEST_PYTHON):
        return Refusal(
            f"{python} is Python {found.version}, and the trainer needs 3.11 or newer",
            f"{setting} to a newer one with torch, transformers and peft",
        )
    return None


def _older(version: str, than: tuple[int, int]) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < than


def _files_trouble(request: Request, facts: Facts) -> Refusal | None:
    dataset, output = request.options.dataset, request.options.output
    if not dataset:
        return Refusal("no data is named", 'add `dataset = "/data/train.jsonl"`, a file or a directory')
    if not output:
        return Refusal("no place for the result is named", 'add `output = "models/NAME"`')
    if request.options.serve_as == request.name:
        return Refusal(f"serve_as: {request.name} is the job itself", "serve the result under another name")
    for key, path in (("dataset", dataset), ("output", output)):
        if path.startswith("~"):
            return Refusal(f"{key}: {path!r} names a home directory", "write its absolute path")
    where = resolve(request, dataset)
    data = facts.file(FileQuery(where))
    if data.type not in ("file", "directory"):
        why = f" ({data.error})" if data.error else ""
        relative = "" if dataset.startswith("/") else "; a relative path is taken from the parent of models"
        return Refusal(
            f"dataset: {where} does not exist{why}{relative}", "name a file or a directory of data"
        )
    return _output_trouble(request, facts, resolve(request, output))


def _output_trouble(request: Request, facts: Facts, where: str) -> Refusal | None:
    if where == request.model or where == resolve(request, request.options.dataset or ""):
        return Refusal(f"output: {where} is what the job reads", "name another directory")
    if where == request.models_dir.rstrip("/") or request.models_dir.startswith(where + "/"):
        return Refusal(f"output: {where} holds all models", "name a directory of its own below it")
    if facts.file(FileQuery(where)).type == "file":
        return Refusal(f"output: {where} is a file", "name a directory, which the job makes")
    return None
