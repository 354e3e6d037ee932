"""Plan sagectl's own embedding server: what it needs, how it is started, how it is known to work.

It binds its port before it loads the model: /health is 503 until the model is loaded and has embedded two
texts as sentence-transformers itself does, so an engine that is ready computes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from sagectl.plugin import (
    EngineRequest,
    FactQuery,
    Facts,
    HttpProbe,
    InterpreterFacts,
    InterpreterQuery,
    LaunchPlan,
    Probes,
    Refusal,
)
from sagectl_embedding.options import EmbeddingOptions
from sagectl_models import allocator, places

SERVER = str(Path(__file__).with_name("run_server.py"))
MODULES = ("sentence_transformers", "torch", "aiohttp")
# The oldest releases that the server is tested with.
OLDEST = (5, 0)
OLDEST_PYTHON = (3, 11)
PACKAGES = "'sentence-transformers>=5.0' aiohttp"
# One embedding takes milliseconds on a GPU, but the first CUDA kernel may take minutes.
FIRST_EMBEDDING_TIMEOUT = 300.0

HEALTH = HttpProbe("/health")
Request = EngineRequest[EmbeddingOptions]


SEARCH = places.Search(
    marks=("modules.json", "config.json"),
    example="sentence-transformers/all-MiniLM-L6-v2",
    saved="a directory with a sentence-transformers model",
)


def facts(request: Request) -> Sequence[FactQuery]:
    """The modules of the interpreter, and the directories where the model may lie."""
    return (InterpreterQuery(request.python, MODULES), *places.queries(SEARCH, request))


def plan(request: Request, facts: Facts) -> LaunchPlan | Refusal:
    """The launch, or why it cannot work here."""
    missing = _check_interpreter(request.python, facts.interpreter(InterpreterQuery(request.python, MODULES)))
    if missing is not None:
        return missing
    model = places.locate(SEARCH, request, facts, request.options.served_model_name)
    if isinstance(model, Refusal):
        return model
    device = _device(request)
    if isinstance(device, Refusal):
        return device
    if request.port is None:
        return Refusal("the engine has no port", "add `port = 8090`")
    cap = allocator.cap(request.grant) if device != "cpu" else None
    return LaunchPlan(
        argv=(
            *(request.python, SERVER, "--model", model.source, "--name", model.name),
            *("--host", request.host, "--port", str(request.port), "--device", device),
            *_flags(request.options),
        ),
        env={**_environment(request, device), **({} if cap is None else cap.env)},
        probes=_probes(request, model.name),
        served_models=(model.name,),
        notes=(
            *(f"backend sentence-transformers, device {device}", model.note),
            *(() if cap is None else (cap.note,)),
        ),
    )


# --- the interpreter -------------------------------------------------------------------------


def _check_interpreter(python: str, found: InterpreterFacts) -> Refusal | None:
    setting = 'set `[defaults.embedding] python = "…"` (or this engine\'s `python`)'
    if found.error is not None:
        return Refusal(
            f"the engine's interpreter {python} cannot be run: {found.error}",
            f"{setting} to the Python of an environment with sentence-transformers and aiohttp",
        )
    missing = [module for module, version in found.modules.items() if version is None]
    if missing:
        verb = "lacks" if len(missing) == 1 else "lacks the modules"
        return Refusal(
            f"{python} {verb} {', '.join(missing)}",
            f"{setting} to an interpreter that has them, or install them: {python} -m pip install {PACKAGES}",
        )
    version = found.modules["sentence_transformers"] or ""
    if _older(version, OLDEST):
        return Refusal(
            f"{python} has sentence-transformers {version}, which is older than 5.0",
            f"upgrade it: {python} -m pip install --upgrade {PACKAGES}",
        )
    if _older(found.version, OLDEST_PYTHON):
        return Refusal(
            f"{python} is Python {found.version}, and the embedding server needs 3.11 or newer",
            f"{setting} to a newer one with sentence-transformers and aiohttp",
        )
    return None


def _older(version: str, than: tuple[int, int]) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < than


# --- the flags -------------------------------------------------------------------------------


def _device(request: Request) -> str | Refusal:
    """The CPU, unless GPUs are given or named: embedding models are small, and GPUs have other work."""
    asked = request.options.device
    gpus = request.gpu_ids
    if gpus is not None and len(gpus) > 1:
        return Refusal(
            f"gpu_ids = {list(gpus)}: the embedding server uses one GPU",
            "name one of them, or set `replicas` and give each its own",
        )
    if gpus:
        if asked == "cpu":
            return Refusal(
                f'device = "cpu", but the engine is given the GPU {gpus[0]}',
                "take `gpu_ids` or `device` out",
            )
        return asked or "cuda"
    if asked in (None, "cpu"):
        return "cpu"
    if gpus == ():
        return Refusal(
            f"device = {json.dumps(asked)}, but the engine is given no GPU",
            "take `use_gpu = false` out, or set `device` to cpu",
        )
    return asked


def _flags(options: EmbeddingOptions) -> tuple[str, ...]:
    valued = {
        "--dtype": options.dtype,
        "--max-batch-size": options.max_batch_size,
        "--max-batch-tokens": options.max_batch_tokens,
        "--max-wait": f"{options.max_wait:g}" if options.max_wait else None,
        "--max-queue": options.max_queue,
        "--max-input-tokens": options.max_input_tokens,
        "--threads": options.threads,
    }
    switches = {
        "--truncate": options.truncate,
        "--normalize": options.normalize,
        "--matryoshka": options.matryoshka,
        "--trust-remote-code": options.trust_remote_code,
    }
    flags = [word for flag, value in valued.items() if value is not None for word in (flag, str(value))]
    return (*flags, *(flag for flag, on in switches.items() if on), *options.extra_args)


def _environment(request: Request, device: str) -> dict[str, str]:
    env = {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        # One text at a time is tokenized, so its own threads would only get in the model's way.
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cpu":
        # Where GPUs are not managed the daemon hides none; on the CPU none must be touched.
        env["CUDA_VISIBLE_DEVICES"] = ""
    if request.options.threads is not None:
        env["OMP_NUM_THREADS"] = str(request.options.threads)
    return env


def _probes(request: Request, name: str) -> Probes:
    health = request.probe or HEALTH
    return Probes(startup=(health, first_embedding(name)), readiness=health, liveness=health)


def first_embedding(name: str, *, bearer_env: str | None = None) -> HttpProbe:
    """Asks for one embedding of this model, with either back end."""
    return HttpProbe(
        "/v1/embeddings",
        method="POST",
        body=json.dumps({"model": name, "input": "Hello"}),
        json_path=("data", 0, "embedding"),
        timeout=FIRST_EMBEDDING_TIMEOUT,
        bearer_env=bearer_env,
    )
