"""An adapter as the model of an llm engine: served together with its base, by either back end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sagectl.plugin import (
    CheckpointFacts,
    CheckpointQuery,
    EngineRequest,
    Facts,
    FileFacts,
    FileQuery,
    HttpProbe,
    InterpreterFacts,
    InterpreterQuery,
    LaunchPlan,
    MemoryEstimate,
    Refusal,
    further_facts,
)
from sagectl_llm import LlmKind
from sagectl_llm.options import LlmOptions
from tests.models import described

KIND = LlmKind()
PYTHON = "/envs/engine/bin/python"
BASE = "Qwen/Qwen2.5-7B-Instruct"
ADAPTER = "/models/support"
VLLM = LlmOptions(backend="vllm")
TRANSFORMERS = LlmOptions(backend="transformers")


def config(**changes: Any) -> dict[str, Any]:
    """What PEFT 0.21 writes, as far as it matters."""
    found = {"peft_type": "LORA", "base_model_name_or_path": BASE, "r": 12, "rank_pattern": {}}
    found |= {"use_dora": False, "modules_to_save": None, "bias": "none", "lora_bias": False}
    return found | {"revision": None, "init_lora_weights": True} | changes


def request(options: LlmOptions = VLLM, **changes: Any) -> EngineRequest[LlmOptions]:
    values: dict[str, Any] = {
        **{
            "name": "chat",
            "model": ADAPTER,
            "host": "127.0.0.1",
            "port": 8001,
            "gpu_ids": None,
            "gpus": None,
        },
        **{"python": PYTHON, "options": options, "probe": None, "models_dir": "/models"},
        **{"state_dir": "/state/chat"},
    }
    return EngineRequest(**(values | changes))


def files(adapter: dict[str, Any] | str | None = None, *more: str) -> dict[str, FileFacts]:
    """The adapter's directory, and the further files that there are."""
    text = adapter if isinstance(adapter, str) else json.dumps(adapter or config())
    found = {path: FileFacts("file", size=1) for path in more}
    found[ADAPTER] = FileFacts("directory")
    found[f"{ADAPTER}/adapter_config.json"] = FileFacts("file", size=len(text), text=text)
    found[f"{ADAPTER}/adapter_model.safetensors"] = FileFacts("file", size=80 << 20)
    return found


def gathered(
    asked: EngineRequest[LlmOptions], there: dict[str, FileFacts] | None = None, lacks: tuple[str, ...] = ()
) -> Facts:
    """The answers to both rounds of questions."""

    def answer(query: Any) -> Any:
        match query:
            case InterpreterQuery():
                return InterpreterFacts({m: None if m in lacks else "5.23.0" for m in query.modules})
            case FileQuery():
                return (files() if there is None else there).get(query.path, FileFacts("missing"))
            case CheckpointQuery() if query.model == BASE:
                return described("Qwen2.5-7B-Instruct")
        return CheckpointFacts(error=f"{query.model} is not on this machine")

    facts = Facts({query: answer(query) for query in KIND.facts(asked)})
    return facts | Facts({query: answer(query) for query in further_facts(KIND, asked, facts)})


def planned(asked: EngineRequest[LlmOptions], **known: Any) -> LaunchPlan:
    plan = KIND.plan(asked, gathered(asked, **known))
    assert isinstance(plan, LaunchPlan), plan
    return plan


def refused(asked: EngineRequest[LlmOptions], **known: Any) -> Refusal:
    refusal = KIND.plan(asked, gathered(asked, **known))
    assert isinstance(refusal, Refusal), refusal
    return refusal


def value_of(plan: LaunchPlan, flag: str) -> str | None:
    assert plan.argv.count(flag) < 2
    return plan.argv[plan.argv.index(flag) + 1] if flag in plan.argv else None


# --- vLLM ----------------------------------------------------------------------------------------


def test_vllm_serves_the_base_with_the_adapter_under_its_own_name() -> None:
    plan = planned(request())
    assert (value_of(plan, "--model"), value_of(plan, "--served-model-name")) == (BASE, BASE)
    assert "--enable-lora" in plan.argv
    assert value_of(plan, "--max-lora-rank") == "16"
    module = {"name": "support", "path": ADAPTER, "base_model_name": BASE}
    assert json.loads(value_of(plan, "--lora-modules") or "") == module
    assert plan.served_models == ("support",)
    listed, generated = plan.probes.startup[1:]
    assert isinstance(listed, HttpProbe)
    assert isinstance(generated, HttpProbe)
    assert listed.contains == '"id":"support"'
    assert json.loads(generated.body or "")["model"] == "support"


@pytest.mark.parametrize(
    ("rank", "pattern", "rounded"),
    [(1, {}, "1"), (8, {}, "8"), (9, {}, "16"), (8, {"q_proj": 40}, "64"), (300, {}, "320")],
)
def test_the_rank_is_rounded_up_to_one_that_vllm_knows(
    rank: int, pattern: dict[str, int], rounded: str
) -> None:
    plan = planned(request(), there=files(config(r=rank, rank_pattern=pattern)))
    assert value_of(plan, "--max-lora-rank") == rounded


@pytest.mark.parametrize(
    "odd",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"peft_type": "IA3"},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"r": 513},
        {"rank_pattern": {"q_proj": 1024}},
    ],
)
def test_what_vllm_cannot_serve_as_an_adapter_is_to_be_merged(odd: dict[str, Any]) -> None:
    asked = request(gpu_ids=())
    refusal = refused(asked, there=files(config(**odd)))
    assert ADAPTER in refusal.reason
    assert "merge" in refusal.remedy
    assert planned(request(TRANSFORMERS), there=files(config(**odd))).served_models == ("support",)


def test_a_name_that_is_also_the_bases_goes_to_the_adapter() -> None:
    plan = planned(request(LlmOptions(backend="vllm", served_model_name=BASE)))
    assert plan.served_models == (BASE,)
    assert value_of(plan, "--served-model-name") == f"{BASE}-base"
    assert json.loads(value_of(plan, "--lora-modules") or "")["name"] == BASE


def test_the_tokenizer_that_it_was_trained_with_is_used_unless_told_otherwise() -> None:
    there = files(None, f"{ADAPTER}/tokenizer_config.json")
    assert value_of(planned(request(), there=there), "--tokenizer") == ADAPTER
    assert value_of(planned(request()), "--tokenizer") is None
    told = request(LlmOptions(backend="vllm", tokenizer="/tokenizer"))
    assert value_of(planned(told, there=there), "--tokenizer") == "/tokenizer"


def test_options_that_contradict_the_adapter_are_refused() -> None:
    refusal = refused(request(LlmOptions(backend="vllm", max_lora_rank=8)))
    assert "max_lora_rank" in refusal.reason
    assert "16" in refusal.remedy
    refusal = refused(request(LlmOptions(backend="vllm", extra_args=("--lora-modules", "a=/b"))))
    assert "--lora-modules" in refusal.reason


# --- transformers --------------------------------------------------------------------------------


def test_transformers_serves_one_directory_that_is_made_of_both() -> None:
    plan = planned(request(TRANSFORMERS))
    python, program, base, adapter, name, *rest = plan.argv
    assert (python, base, adapter, name) == (PYTHON, BASE, ADAPTER, "support")
    assert program.endswith("run_adapter.py")
    assert rest[:2] == ["serve", "support"]
    assert plan.served_models == ("support",)
    assert plan.cwd is None


def test_transformers_takes_any_name_for_an_adapter_that_can_be_a_directory() -> None:
    named = request(LlmOptions(backend="transformers", served_model_name="team/support"))
    assert planned(named).served_models == ("team/support",)
    for bad in ("/support", "a@b", "../x", "a//b", "."):
        refusal = refused(request(LlmOptions(backend="transformers", served_model_name=bad)))
        assert "served_model_name" in refusal.reason


def test_without_peft_transformers_cannot_and_says_how_to_install_it() -> None:
    refusal = refused(request(TRANSFORMERS), lacks=("peft",))
    assert "peft" in refusal.reason
    assert f"{PYTHON} -m pip install peft" in refusal.remedy
    assert isinstance(KIND.plan(request(), gathered(request(), lacks=("peft",))), LaunchPlan)


# --- the base ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [VLLM, TRANSFORMERS])
def test_the_base_is_looked_for_like_any_model(options: LlmOptions) -> None:
    there = files(None, f"/models/{BASE}/config.json")
    argv = planned(request(options), there=there).argv
    assert f"/models/{BASE}" in argv
    there = files(config(base_model_name_or_path="/x/base"), "/x/base/config.json")
    there["/x/base"] = FileFacts("directory")
    assert "/x/base" in planned(request(options), there=there).argv


@pytest.mark.parametrize("options", [VLLM, TRANSFORMERS])
def test_a_base_that_is_not_there_is_named(options: LlmOptions) -> None:
    refusal = refused(request(options), there=files(config(base_model_name_or_path="/gone/base")))
    assert "/gone/base does not exist" in refusal.reason
    assert ADAPTER in refusal.reason
    assert "adapter_config.json" in refusal.remedy


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "{}", '{"base_model_name_or_path": 3}', "[" * 100_000])
def test_a_broken_adapter_config_is_named(text: str) -> None:
    asked = request()
    refusal = refused(asked, there=files(text))
    assert f"{ADAPTER}/adapter_config.json" in refusal.reason
    assert isinstance(KIND.estimate(asked, gathered(asked, files(text))), Refusal)


def test_a_base_relative_to_the_trainers_directory_is_refused() -> None:
    assert "absolute path" in refused(request(), there=files(config(base_model_name_or_path="./x"))).remedy


def test_a_whole_model_that_brings_an_adapter_config_is_a_model() -> None:
    there = files(None, f"{ADAPTER}/config.json", f"{ADAPTER}/model.safetensors")
    plan = planned(request(), there=there)
    assert (value_of(plan, "--model"), "--enable-lora" in plan.argv) == (ADAPTER, False)


def test_an_adapter_below_the_models_directory_is_called_as_it_is_named() -> None:
    plan = planned(request(model="support"))
    assert plan.served_models == ("support",)
    assert json.loads(value_of(plan, "--lora-modules") or "")["path"] == ADAPTER


def test_the_bases_revision_counts_on_the_hub() -> None:
    there = files(config(revision="v2"))
    assert value_of(planned(request(), there=there), "--revision") == "v2"
    assert f"{BASE}@v2" in planned(request(TRANSFORMERS), there=there).argv


# --- memory --------------------------------------------------------------------------------------


def estimated(asked: EngineRequest[LlmOptions]) -> MemoryEstimate:
    answer = KIND.estimate(asked, gathered(asked))
    assert isinstance(answer, MemoryEstimate), answer
    return answer


@pytest.mark.parametrize("options", [VLLM, TRANSFORMERS])
def test_the_memory_is_that_of_the_base_and_of_the_adapter(options: LlmOptions) -> None:
    found, base = estimated(request(options)), estimated(request(options, model=BASE))
    more = max(found.shapes[0].sizes) - max(base.shapes[0].sizes)
    assert 20 << 20 < more < 1 << 30
    assert found.shapes[0].part("weights") == base.shapes[0].part("weights")
    assert found.filed_under != base.filed_under
    assert any(ADAPTER in note for note in found.notes)
