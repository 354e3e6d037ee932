"""The kind `finetune`: its options, SAGE's names for them, and what it says of memory."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from sagectl.config.load import engine_from_body
from sagectl.errors import InvalidConfig
from sagectl.plugin import (
    CheckpointFacts,
    CheckpointQuery,
    EngineKind,
    EngineRequest,
    Facts,
    InterpreterFacts,
    InterpreterQuery,
    MemoryEstimate,
    Mode,
    Refusal,
)
from sagectl_finetune import FinetuneKind, sagectl_engine_kinds
from sagectl_finetune.options import FinetuneOptions

KIND = FinetuneKind()
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
INSTALLED = dict.fromkeys(("torch", "transformers", "peft", "trl", "bitsandbytes"), "1.0")
QWEN = {
    **{"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14},
    **{"num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "torch_dtype": "bfloat16"},
    "tie_word_embeddings": True,
}
PARAMETERS = 494_032_768


def request(options: FinetuneOptions | None = None, **changes: Any) -> EngineRequest[FinetuneOptions]:
    values: dict[str, Any] = {
        **{"name": "tune", "model": MODEL, "host": "127.0.0.1", "port": None, "gpu_ids": None},
        **{"python": "/envs/train/bin/python", "options": options or FinetuneOptions(), "probe": None},
        **{"models_dir": "/models", "state_dir": "/state/tune"},
    }
    return EngineRequest(**(values | changes))


def estimated(
    asked: EngineRequest[FinetuneOptions],
    config: dict[str, Any] | None = QWEN,
    modules: dict[str, str | None] | None = None,
) -> MemoryEstimate | Refusal:
    documents = {} if config is None else {"config.json": config}
    checkpoint = CheckpointFacts(
        documents=documents, error="it is not in the cache" if config is None else None
    )
    interpreter = InterpreterFacts(INSTALLED if modules is None else modules)
    answers: dict[Any, Any] = {
        query: interpreter if isinstance(query, InterpreterQuery) else checkpoint
        for query in KIND.facts(asked)
    }
    return KIND.estimate(asked, Facts(answers))


def parts(options: FinetuneOptions, **changes: Any) -> dict[str, int]:
    found = estimated(request(options, **changes))
    assert isinstance(found, MemoryEstimate), found
    (shape,) = found.shapes
    return {part.name: part.size for part in shape.ranks[0]}


def made(**keys: Any) -> Any:
    return engine_from_body("tune", {"kind": "finetune", **keys}, {"finetune": KIND})


def test_it_is_a_kind_that_runs_to_completion() -> None:
    assert isinstance(KIND, EngineKind)
    assert [kind.name for kind in sagectl_engine_kinds()] == ["finetune"]
    assert KIND.mode is Mode.RUN
    assert not KIND.listens(FinetuneOptions())
    assert all(field.metadata["help"] for field in fields(FinetuneOptions))


# --- options ---------------------------------------------------------------------------------------


def test_the_table_of_the_documentation_is_valid() -> None:
    spec = made(
        model=MODEL,
        dataset="data/train.jsonl",
        output="models/support",
        method="lora",
        lora_rank=8,
        num_epochs=3,
        policy="queue",
        yield_on_queue=20,
        stop={"timeout": "10min"},
    )
    assert spec.options == FinetuneOptions("data/train.jsonl", "models/support", yield_on_queue=20)


def test_sages_names_are_accepted() -> None:
    spec = made(
        base_model=MODEL,
        dataset_path="d.jsonl",
        output_dir="out",
        lora_rank=16,
        lora_alpha=32,
        learning_rate=2e-4,
        epochs=1,
        batch_size=2,
        gradient_accumulation_steps=8,
        max_seq_length=1024,
        quantization_bits=4,
    )
    assert spec.model == MODEL
    options = spec.options
    assert (options.dataset, options.output, options.num_epochs) == ("d.jsonl", "out", 1)
    assert (options.max_length, options.stored) == (1024, "nf4-double")


@pytest.mark.parametrize(
    ("keys", "stored"),
    [
        ({}, "none"),
        ({"method": "qlora"}, "nf4-double"),
        ({"method": "qlora", "double_quantization": False}, "nf4"),
        ({"method": "qlora", "quantization": "int8"}, "int8"),
        ({"quantization": 8}, "int8"),
        ({"use_8bit": True}, "int8"),
        ({"quantization": "nf4"}, "nf4-double"),
    ],
)
def test_how_the_base_is_stored(keys: dict[str, Any], stored: str) -> None:
    assert FinetuneOptions(**keys).stored == stored


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"method": "full", "quantization": 4}, "quantised weights cannot be trained"),
        ({"method": "full", "use_8bit": True}, "quantised weights cannot be trained"),
        ({"method": "full", "target_modules": ["q_proj"]}, 'method = "full" has no adapter'),
        ({"method": "full", "lora_dropout": 0.1}, 'method = "full" has no adapter'),
        ({"method": "full", "dtype": "float16"}, "float16 cannot train all parameters"),
        ({"quantization": 4, "use_8bit": True}, "contradicts quantization"),
        ({"quantization": 5}, "5"),
        ({"target_modules": "q_proj"}, '"q_proj" is no list'),
        ({"target_modules": []}, "names nothing"),
        ({"target_modules": [""]}, "names nothing"),
        ({"lora_rank": 0}, "0 is not between 1"),
        ({"batch_size": 2**40}, "is not between 1"),
        ({"max_steps": 0}, "0 is not between 1"),
        ({"num_epochs": 0}, "0 is not above 0"),
        ({"learning_rate": 0}, "0 is not above 0"),
        ({"lora_dropout": 1}, "1 is no share"),
        ({"dataset": ""}, "is empty"),
        ({"method": "dora"}, "dora"),
        ({"lora_rnk": 8}, "unknown key"),
    ],
)
def test_what_cannot_be_is_refused_at_its_key(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        made(model=MODEL, **keys)
    (problem,) = raised.value.problems
    assert said in problem.message
    key = next(key for key in reversed(keys) if key in str(problem))
    assert key in keys


# --- memory ----------------------------------------------------------------------------------------


def test_it_asks_for_the_checkpoint_and_the_interpreter() -> None:
    modules, *_, checkpoint = KIND.facts(request())
    assert checkpoint == CheckpointQuery(MODEL, "/models")
    assert isinstance(modules, InterpreterQuery)
    assert "bitsandbytes" in modules.modules
    assert KIND.facts(request(model=None)) == (modules,)


def test_the_parts_of_lora() -> None:
    found = parts(FinetuneOptions())
    adapter = 24 * 8 * (2 * 1792 + 2 * 1024 + 3 * 5760)
    assert found["weights"] == 2 * PARAMETERS
    assert found["adapter"] == 4 * adapter
    assert found["optimizer"] == 8 * adapter
    assert {"activations", "logits", "overhead", "margin"} <= found.keys()
    assert found["margin"] == pytest.approx(0.15 * (sum(found.values()) - found["margin"]), abs=1)


def test_qlora_takes_less_for_weights_and_full_more() -> None:
    lora, qlora, full = (sum(parts(FinetuneOptions(method=m)).values()) for m in ("lora", "qlora", "full"))
    assert parts(FinetuneOptions(method="qlora"))["weights"] < 2 * PARAMETERS
    assert full > 16 * PARAMETERS > lora
    assert qlora != lora


def test_every_gpu_holds_all_of_it() -> None:
    found = estimated(request(gpu_ids=(0, 2)))
    assert isinstance(found, MemoryEstimate)
    (shape,) = found.shapes
    assert len(shape.ranks) == 2
    assert shape.ranks[0] == shape.ranks[1]
    assert (shape.tensor_parallel, shape.pipeline_parallel) == (1, 1)


def test_footprints_are_filed_by_what_changes_them() -> None:
    seen = set()
    for keys in (
        {},
        {"method": "qlora"},
        {"method": "full"},
        {"batch_size": 1},
        {"max_length": 64},
        {"lora_rank": 64},
        {"target_modules": ("q_proj",)},
        {"attention": "eager"},
        {"gradient_checkpointing": False},
        {"optimizer": "adamw_8bit"},
        {"packing": True},
        {"gradient_accumulation_steps": 2},
    ):
        found = estimated(request(FinetuneOptions(**keys)))
        assert isinstance(found, MemoryEstimate)
        seen.add(found.filed_under)
    assert len(seen) == 12
    same = estimated(request(FinetuneOptions(num_epochs=1, learning_rate=1e-5, dataset="x")))
    assert isinstance(same, MemoryEstimate)
    assert same.filed_under in seen


def test_a_module_that_the_model_has_not_is_refused() -> None:
    found = estimated(request(FinetuneOptions(target_modules=("c_attn",))))
    assert isinstance(found, Refusal)
    assert "no matrix c_attn" in found.reason


def test_a_quantised_checkpoint_is_taken_as_it_is_and_not_trained_in_full() -> None:
    config = QWEN | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    found = estimated(request(FinetuneOptions(method="qlora")), config)
    assert isinstance(found, MemoryEstimate)
    assert "taken as it is" in found.notes[0]
    refused = estimated(request(FinetuneOptions(method="full")), config)
    assert isinstance(refused, Refusal)
    assert "quantised" in refused.reason


def test_an_unknown_model_needs_a_size() -> None:
    found = estimated(request(), None)
    assert isinstance(found, Refusal)
    assert "not in the cache" in found.reason
    assert "gpu_memory" in found.remedy
    told = estimated(request(gpu_memory=2**34), None)
    assert isinstance(told, MemoryEstimate)
    assert told.shapes == ()


def test_no_model_and_no_gpu() -> None:
    assert isinstance(estimated(request(model=None)), Refusal)
    none = estimated(request(gpu_ids=()))
    assert isinstance(none, MemoryEstimate)
    assert none.shapes[0].ranks == ()


def test_what_was_not_measured_and_what_is_missing_is_noted() -> None:
    def notes(keys: dict[str, Any], modules: dict[str, str | None] | None = None) -> str:
        found = estimated(request(FinetuneOptions(**keys)), modules=modules)
        assert isinstance(found, MemoryEstimate)
        return "\n".join(found.notes)

    assert notes({}) == ""
    assert "full fine-tuning is reckoned" in notes({"method": "full"})
    assert "without checkpointing is reckoned" in notes({"gradient_checkpointing": False})
    assert "as if it stayed on the GPU" in notes({"optimizer": "paged_adamw_8bit"})
    without = INSTALLED | {"bitsandbytes": None}
    assert "lacks bitsandbytes" in notes({"method": "qlora"}, without)
    assert notes({}, without) == ""


def test_experts_are_noted() -> None:
    config = QWEN | {"model_type": "qwen3_moe", "num_experts": 8, "moe_intermediate_size": 512}
    found = estimated(request(FinetuneOptions(method="qlora")), config)
    assert isinstance(found, MemoryEstimate)
    assert found.notes == ("the experts get no adapter, and stay in 16 or 32 bits",)
