"""Plan a `transformers serve`: what it needs, how it is started, how it is known to work.

Measured with 5.23: it loads the model before it binds its port, so an answer means a loaded model. Its
`/v1/models` lists the hub cache, not what it serves (and is a 500 where there is no cache), so it proves
nothing. A request for any model but its own is refused with 400, so one generated token asked for by name
proves both the model and that it computes.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sagectl.plugin import (
    EngineRequest,
    FactQuery,
    Facts,
    FileQuery,
    HttpProbe,
    InterpreterFacts,
    InterpreterQuery,
    LaunchPlan,
    Probes,
    Refusal,
)
from sagectl_llm.options import LlmOptions
from sagectl_models import adapters, allocator
from sagectl_models.adapters import Adapter

ADAPTED = str(Path(__file__).with_name("run_adapter.py"))
"""`transformers serve` of a base with its adapter, below a limit too."""
NAMED = str(Path(__file__).with_name("run_named.py"))
"""`transformers serve` of a directory under another name, below a limit too."""
CAPPED = str(Path(__file__).with_name("run_capped.py"))
"""`transformers serve` below a limit of its own."""
MODULES = ("torch", "transformers", "accelerate", "fastapi", "uvicorn", "openai", "pydantic")
# The first release with /v1/completions, which needs no chat template and so suits every model.
OLDEST = (5, 6)
# One token takes milliseconds on a GPU, but a first CUDA kernel or torch.compile may take minutes.
FIRST_TOKEN_TIMEOUT = 300.0

HEALTH = HttpProbe("/health")

Request = EngineRequest[LlmOptions]


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """What to call the model, and from which directory: the server answers only to that name.

    program: what runs in the place of `transformers`, with its arguments.
    """

    name: str
    cwd: str | None
    note: str
    program: tuple[str, ...] = ()


def facts(request: Request) -> Sequence[FactQuery]:
    """The modules of the interpreter, and the directories where the model may lie."""
    return (interpreter_query(request), *_model_queries(request))


def based(request: Request, adapter: Adapter) -> Request:
    """The engine with the adapter's base as its model."""
    options = replace(request.options, served_model_name=None)
    return replace(adapters.based(request, adapter), options=options)


def plan(request: Request, facts: Facts, adapter: Adapter | None = None) -> LaunchPlan | Refusal:
    """The launch, or why it cannot work here.

    Args:
        adapter: what `model` names, where that is an adapter: it is served together with its base.
    """
    missing = _check_interpreter(request, facts.interpreter(interpreter_query(request)))
    if missing is not None:
        return missing
    model = _locate_model(request, facts) if adapter is None else _locate_adapter(request, facts, adapter)
    if isinstance(model, Refusal):
        return model
    device = _device(request)
    if isinstance(device, Refusal):
        return device
    if request.port is None:
        return Refusal("the engine has no port", "add `port = 8001`")
    cap = allocator.cap(request.grant) if device != "cpu" else None
    program = ("-m", "transformers.cli.transformers") if cap is None else (CAPPED,)
    return LaunchPlan(
        argv=(
            *(request.python, *(model.program or program), "serve", model.name),
            *("--host", request.host, "--port", str(request.port), "--device", device),
            *_flags(request.options),
        ),
        env={**_environment(request.options), **({} if cap is None else cap.env)},
        cwd=model.cwd,
        probes=_probes(request, model.name),
        served_models=(model.name,),
        notes=(*_notes(request, model, device), *(() if cap is None else (cap.note,))),
    )


# --- the interpreter -------------------------------------------------------------------------


def interpreter_query(request: Request) -> InterpreterQuery:
    """What the interpreter has to have."""
    extra = ("bitsandbytes",) if request.options.quantization is not None else ()
    return InterpreterQuery(request.python, (*MODULES, *extra))


def peft_query(request: Request) -> InterpreterQuery:
    """Whether the interpreter can load adapters."""
    return InterpreterQuery(request.python, ("peft",))


def _check_interpreter(request: Request, found: InterpreterFacts) -> Refusal | None:
    python = request.python
    where = 'set `[defaults.llm] python = "…"` (or this engine\'s `python`) to an interpreter that has them'
    if found.error is not None:
        return Refusal(
            f"the engine's interpreter {python} cannot be run: {found.error}",
            'set `[defaults.llm] python = "…"` to the Python of an environment with torch and transformers',
        )
    missing = [module for module, version in found.modules.items() if version is None]
    if missing:
        verb = "lacks" if len(missing) == 1 else "lacks the modules"
        packages = ["'transformers[serving]>=5.6'", "torch", "accelerate"]
        packages += ["bitsandbytes"] if "bitsandbytes" in missing else []
        return Refusal(
            f"{python} {verb} {', '.join(missing)}",
            f"{where}, or install them: {python} -m pip install {' '.join(packages)}",
        )
    version = found.modules["transformers"] or ""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST:
        return Refusal(
            f"{python} has transformers {version}, whose server lacks /v1/completions",
            f"upgrade it: {python} -m pip install --upgrade 'transformers[serving]>=5.6'",
        )
    return None


# --- the model -------------------------------------------------------------------------------


def _model_queries(request: Request) -> tuple[FileQuery, ...]:
    model = request.model or ""
    if model.startswith("/"):
        return (FileQuery(model), FileQuery(posixpath.join(model, "config.json")))
    if not model or model.startswith((".", "~")):
        return ()
    return (FileQuery(posixpath.join(request.models_dir, model, "config.json")),)


def _locate_model(request: Request, facts: Facts) -> ModelPlace | Refusal:
    model = request.model
    if not model:
        return Refusal("no model is named", 'add `model = "Qwen/Qwen2.5-0.5B-Instruct"` or a directory')
    if model.startswith((".", "~")):
        return Refusal(
            f"model: {model!r} is relative, and an engine has no directory that it could be relative to",
            f"write its absolute path, or put it below {request.models_dir} and write its name there",
        )
    if model.startswith("/"):
        return _locate_directory(request, facts, model.rstrip("/"))
    wanted = request.options.served_model_name
    is_there = facts.file(_model_queries(request)[0]).type == "file"
    if is_there and wanted not in (None, model):
        return _named(wanted, posixpath.join(request.models_dir, model))
    if wanted not in (None, model):
        return Refusal(
            f"served_model_name: `transformers serve` answers to {model!r} only, not to {wanted!r}",
            "take `served_model_name` out, or keep the model in a directory",
        )
    if is_there:
        where = request.models_dir
        return ModelPlace(model, where, f"the model is the directory {posixpath.join(where, model)}")
    return ModelPlace(model, None, f"no {model} in {request.models_dir}: it comes from the model hub")


def _locate_directory(request: Request, facts: Facts, model: str) -> ModelPlace | Refusal:
    directory, config = (facts.file(query) for query in _model_queries(request))
    if directory.type != "directory" or config.type != "file":
        lack = {"missing": "does not exist", "directory": "holds no config.json"}.get(
            directory.type, "is not a directory"
        )
        return Refusal(
            f"model: {model} {lack}" + (f" ({directory.error})" if directory.error else ""),
            "name a directory that `save_pretrained` wrote, or a model of the hub such as "
            "Qwen/Qwen2.5-0.5B-Instruct",
        )
    parent, last = posixpath.split(model)
    wanted = request.options.served_model_name
    if wanted is None:
        if "@" in model:
            return _at_sign(model)
        return ModelPlace(model, None, f"the model is the directory {model}")
    if wanted != last:
        return _named(wanted, model)
    if "@" in last:
        return _at_sign(model)
    return ModelPlace(last, parent, f"the model is the directory {model}, called {last}")


def _named(name: str, directory: str) -> ModelPlace | Refusal:
    """A link of that name is made, because the server answers to its directory's name."""
    trouble = _no_name(name)
    if trouble is not None:
        return trouble
    return ModelPlace(
        name, None, f"the model is the directory {directory}, called {name}", (NAMED, directory, name)
    )


def _no_name(name: str) -> Refusal | None:
    if "@" not in name and not name.startswith("/") and posixpath.normpath(f"/{name}") == f"/{name}":
        return None
    return Refusal(
        f"served_model_name: `transformers serve` cannot call a model {name!r}",
        "write a served_model_name that is no path of its own and has no @ in it",
    )


def _locate_adapter(request: Request, facts: Facts, adapter: Adapter) -> ModelPlace | Refusal:
    """`transformers serve` needs a config.json beside the adapter, so one directory is made of both."""
    found = facts.interpreter(peft_query(request))
    if found.modules["peft"] is None:
        return Refusal(
            f"{request.python} lacks peft, which loads the adapter {adapter.directory}",
            f"install it: {request.python} -m pip install peft",
        )
    base = _locate_model(based(request, adapter), facts)
    if isinstance(base, Refusal):
        return adapters.of_base(adapter, base)
    name = request.options.served_model_name or adapter.name
    trouble = _no_name(name)
    if trouble is not None:
        return trouble
    source = base.name if base.cwd is None else posixpath.join(base.cwd, base.name)
    if not source.startswith("/") and adapter.revision is not None:
        source = f"{source}@{adapter.revision}"
    note = f"the model is the adapter {adapter.directory} on its base {source}"
    return ModelPlace(name, None, note, (ADAPTED, source, adapter.directory, name))


def _at_sign(model: str) -> Refusal:
    return Refusal(
        f"model: `transformers serve` takes what follows the @ in {model} for a revision",
        "rename the directory, or link to it under a name without @",
    )


# --- the flags -------------------------------------------------------------------------------


def _device(request: Request) -> str | Refusal:
    asked = request.options.device
    gpus = request.gpu_ids
    if gpus == ():
        if asked in (None, "auto", "cpu"):
            return "cpu"
        return Refusal(
            f"device = {json.dumps(asked)}, but the engine is given no GPU",
            "take `use_gpu = false` out, or set `device` to cpu",
        )
    if asked == "cpu" and gpus is not None:
        return Refusal(
            f'device = "cpu", but the engine is given the GPUs {list(gpus)}',
            "take `gpu_ids` out and set `use_gpu = false`, or take `device` out",
        )
    return asked or "auto"


def _flags(options: LlmOptions) -> tuple[str, ...]:
    flags = ["--dtype", options.dtype]
    if options.trust_remote_code:
        flags += ["--trust-remote-code"]
    if options.continuous_batching:
        flags += ["--continuous-batching"]
    if options.quantization is not None:
        flags += ["--quantization", options.quantization]
    if options.attn_implementation is not None:
        flags += ["--attn-implementation", options.attn_implementation]
    return (*flags, *options.extra_args)


def _environment(options: LlmOptions) -> dict[str, str]:
    env = {
        "PYTHONUNBUFFERED": "1",
        # At each start the command line would ask PyPI for a newer release and write below HF_HOME.
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        # Plain tracebacks: boxes drawn for a terminal are unreadable in a log, and wrap the message.
        "TYPER_USE_RICH": "0",
        "NO_COLOR": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if options.threads is not None:
        env["OMP_NUM_THREADS"] = str(options.threads)
    return env


def _probes(request: Request, name: str) -> Probes:
    health = request.probe or HEALTH
    body = json.dumps({"model": name, "prompt": "Hello", "max_tokens": 1})
    token = HttpProbe(
        "/v1/completions",
        method="POST",
        body=body,
        json_path=("usage", "completion_tokens"),
        timeout=FIRST_TOKEN_TIMEOUT,
    )
    return Probes(startup=(health, token), readiness=health, liveness=health)


def _notes(request: Request, model: ModelPlace, device: str) -> tuple[str, ...]:
    options = request.options
    notes = [f"backend transformers, device {device}", model.note]
    if options.max_model_len is not None:
        notes.append(
            f"max_model_len = {options.max_model_len} is not enforced: `transformers serve` has no limit but"
            " the model's own"
        )
    return tuple(notes)
