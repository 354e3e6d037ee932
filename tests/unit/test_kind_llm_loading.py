"""Adapters that a running vLLM takes in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sagectl.plugin import LaunchPlan, Loading, Refusal, loading
from sagectl_llm.options import LlmOptions
from tests.unit.test_kind_llm_adapters import ADAPTER, BASE, KIND, config, files, gathered, planned, request

OPEN = LlmOptions(backend="vllm", enable_lora=True)
RUNTIME = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


def running(options: LlmOptions = OPEN, **changes: Any) -> LaunchPlan:
    return planned(request(options, model=BASE, **changes))


def asked(plan: LaunchPlan, adapter: dict[str, Any] | None = None, edition: int = 0, **more: Any) -> Any:
    wanted = request(OPEN)
    facts = gathered(wanted, more.get("there") or files(adapter))
    return loading(KIND, wanted, plan, facts, name="help", edition=edition)


def steps(found: Any) -> list[tuple[str, dict[str, Any]]]:
    assert isinstance(found, Loading), found
    return [(step.path, json.loads(step.body or "")) for step in found.steps]


def test_an_adapter_of_the_same_base_is_loaded_and_has_to_generate() -> None:
    found = asked(running())
    assert steps(found) == [
        ("/v1/load_lora_adapter", {"lora_name": "help", "lora_path": ADAPTER, "load_inplace": True}),
        ("/v1/completions", {"model": "help", "prompt": "Hello", "max_tokens": 1}),
    ]
    assert found.steps[1].json_path == ("usage", "completion_tokens")
    assert [(step.path, json.loads(step.body)) for step in found.undo] == [
        ("/v1/unload_lora_adapter", {"lora_name": "help"})
    ]
    assert {step.bearer_env for step in (*found.steps, *found.undo)} == {"VLLM_API_KEY"}


def test_a_newer_edition_is_tried_under_another_name_and_has_another_path() -> None:
    """vLLM's prefix cache goes by name and path, and would answer with what the older weights computed."""
    found = asked(running(), edition=2)
    assert [(path, body.get("lora_name", body.get("model"))) for path, body in steps(found)] == [
        ("/v1/load_lora_adapter", "help.next"),
        ("/v1/completions", "help.next"),
        ("/v1/unload_lora_adapter", "help.next"),
        ("/v1/load_lora_adapter", "help"),
        ("/v1/completions", "help"),
    ]
    assert steps(found)[3][1]["lora_path"] == f"{ADAPTER}/./."
    assert [json.loads(step.body) for step in found.undo] == [{"lora_name": "help.next"}]


@pytest.mark.parametrize(
    ("plan", "adapter", "why"),
    [
        (running(LlmOptions(backend="vllm")), None, "without room for adapters"),
        (running(host="0.0.0.0"), None, "on loopback only"),
        (running(), config(r=17), "room for adapters of rank 16, and this one has 17"),
        (running(replace(OPEN, max_lora_rank=8)), None, "room for adapters of rank 8, and this one has 12"),
        (running(), config(use_dora=True), "DoRA"),
        (
            running(),
            config(base_model_name_or_path="Qwen/Qwen3-8B"),
            f"its model is {BASE}, and the adapter's",
        ),
        (LaunchPlan(("python", "-m", "transformers.cli.transformers", "serve")), None, "takes in nothing"),
    ],
)
def test_what_cannot_be_loaded_is_refused(plan: LaunchPlan, adapter: dict[str, Any] | None, why: str) -> None:
    found = asked(plan, adapter)
    assert isinstance(found, Refusal)
    assert why in found.reason


def test_a_whole_model_is_not_loaded() -> None:
    there = files(None, f"{ADAPTER}/model.safetensors", f"{ADAPTER}/config.json")
    found = asked(running(), there=there)
    assert isinstance(found, Refusal)
    assert found.reason == f"no adapter is in {ADAPTER}; a whole model needs an engine of its own"


def test_a_larger_rank_fits_where_there_is_room_for_it() -> None:
    assert isinstance(asked(running(replace(OPEN, max_lora_rank=64)), config(r=64)), Loading)


def test_an_engine_that_serves_an_adapter_takes_in_others_of_its_base() -> None:
    assert isinstance(asked(planned(request())), Loading)


@pytest.mark.parametrize(
    ("options", "host", "there"),
    [
        (OPEN, "127.0.0.1", True),
        (OPEN, "::1", True),
        (LlmOptions(backend="vllm", extra_args=("--enable-lora",)), "127.0.0.1", True),
        (OPEN, "0.0.0.0", False),
        (LlmOptions(backend="vllm"), "127.0.0.1", False),
    ],
)
def test_adapters_can_be_loaded_at_run_time_on_loopback_only(
    options: LlmOptions, host: str, there: bool
) -> None:
    assert (RUNTIME in running(options, host=host).env) is there
