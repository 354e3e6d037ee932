"""Adapters that a vLLM takes in while it runs, and how a model of it is known to answer.

Read in vLLM 0.32: `/v1/load_lora_adapter` is there with VLLM_ALLOW_RUNTIME_LORA_UPDATING alone; it reads the
weights at once, and with `load_inplace` it takes the place of an adapter of that name.
"""

from __future__ import annotations

import json

from sagectl.plugin import EngineRequest, Facts, HttpProbe, LaunchPlan, Loading, Refusal
from sagectl_llm.options import LlmOptions
from sagectl_models import adapters, places, vllm_server
from sagectl_models.adapters import Adapter
from sagectl_models.flags import given

RUNTIME = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# One token takes milliseconds on a GPU, but a first CUDA kernel or a compilation may take minutes.
FIRST_TOKEN_TIMEOUT = 300.0
LOAD_TIMEOUT = 300.0
USUAL_RANK = 16
"""vLLM's `--max-lora-rank` where nothing is said."""
SEARCH = places.Search(
    marks=("config.json",),
    example="Qwen/Qwen2.5-0.5B-Instruct",
    saved="a directory that `save_pretrained` wrote",
)


def environment(options: LlmOptions, host: str) -> dict[str, str]:
    """Whoever reaches the port may load adapters then, from any path that vLLM can read: on loopback only."""
    room = options.enable_lora or given("--enable-lora", options.extra_args)
    return {RUNTIME: "1"} if room and host in LOOPBACK else {}


def first_token(name: str) -> HttpProbe:
    """The model of this name computes."""
    return HttpProbe(
        "/v1/completions",
        method="POST",
        body=json.dumps({"model": name, "prompt": "Hello", "max_tokens": 1}),
        json_path=("usage", "completion_tokens"),
        timeout=FIRST_TOKEN_TIMEOUT,
        bearer_env=vllm_server.API_KEY,
    )


def loading(
    request: EngineRequest[LlmOptions],
    plan: LaunchPlan,
    facts: Facts,
    adapter: Adapter,
    name: str,
    edition: int,
) -> Loading | Refusal:
    """How the vLLM that runs by `plan` takes in an adapter, or why it cannot."""
    trouble = adapters.vllm_trouble(adapter) or _no_room(plan, adapter)
    if trouble is not None:
        return trouble
    base = places.locate(SEARCH, adapters.based(request, adapter), facts, None)
    if isinstance(base, Refusal):
        return adapters.of_base(adapter, base)
    serves = _value(plan, "--model")
    if base.source != serves:
        return Refusal(f"its model is {serves}, and the adapter's base is {base.source}", "serve that base")
    # vLLM files its prefix cache under name and path: another spelling keeps it from reusing what the weights
    # that were there before computed.
    path = adapter.directory + "/." * edition
    take_in = (_load(name, path), first_token(name))
    if edition == 0:
        return Loading(take_in, undo=(_unload(name),))
    # What answers to the name now goes on until the new one has computed something.
    trial = f"{name}.next"
    return Loading((_load(trial, path), first_token(trial), _unload(trial), *take_in), undo=(_unload(trial),))


def _no_room(plan: LaunchPlan, adapter: Adapter) -> Refusal | None:
    if "--enable-lora" not in plan.argv:
        return Refusal("it was started without room for adapters", "set `enable_lora = true`")
    if RUNTIME not in plan.env:
        return Refusal(
            "adapters can be loaded into engines on loopback only, for whoever reaches the port could do so",
            'set `host = "127.0.0.1"`',
        )
    most = int(_value(plan, "--max-lora-rank") or USUAL_RANK)
    if adapter.rank > most:
        return Refusal(
            f"it has room for adapters of rank {most}, and this one has {adapter.rank}",
            f"set `max_lora_rank = {adapter.vllm_rank}`",
        )
    return None


def _value(plan: LaunchPlan, flag: str) -> str | None:
    """What follows a flag, the last time it is there."""
    at = max((i for i, word in enumerate(plan.argv[:-1]) if word == flag), default=None)
    return None if at is None else plan.argv[at + 1]


def _load(name: str, path: str) -> HttpProbe:
    return _post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, "load_inplace": True})


def _unload(name: str) -> HttpProbe:
    return _post("/v1/unload_lora_adapter", {"lora_name": name})


def _post(path: str, body: dict[str, object]) -> HttpProbe:
    text = json.dumps(body, ensure_ascii=False)
    return HttpProbe(path, method="POST", body=text, timeout=LOAD_TIMEOUT, bearer_env=vllm_server.API_KEY)
