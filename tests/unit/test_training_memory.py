"""The arithmetic of fine-tuning memory, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sagectl.plugin import CheckpointFacts, MemoryPart, Tensor
from sagectl_models.trained_model import Linear, TrainedModel, linears_of, model_of
from sagectl_models.training_memory import (
    GIB,
    MIB,
    TrainingSetup,
    adapter_parameters,
    estimate,
    margin,
    targets,
    total,
)
from tests.tools.finetune_evidence import model

QWEN25_05B = model(
    "qwen2",
    **{"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
    **{"intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
)
LLAMA2_7B = model(
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
    **{"intermediate_size": 11008, "vocab_size": 32000},
)
MISTRAL_7B = model(
    "mistral",
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"intermediate_size": 14336, "vocab_size": 32000},
)
GPT2 = model("gpt2", n_embd=768, n_layer=12, n_head=12, vocab_size=50257, n_positions=1024)


def parts(trained: TrainedModel, **changes: Any) -> dict[str, MemoryPart]:
    found = estimate(trained, TrainingSetup(**changes))
    assert len({part.name for part in found}) == len(found)
    return {part.name: part for part in found}


def size(trained: TrainedModel, **changes: Any) -> int:
    return total(estimate(trained, TrainingSetup(**changes)))


@pytest.mark.parametrize(
    ("trained", "parameters"),
    [(QWEN25_05B, 494_032_768), (LLAMA2_7B, 6_738_415_616), (MISTRAL_7B, 7_241_732_096)],
)
def test_models_have_their_published_number_of_parameters(trained: TrainedModel, parameters: int) -> None:
    assert trained.parameters == parameters


@pytest.mark.parametrize(
    ("trained", "rank", "modules", "expected"),
    [
        # 24 layers × 8 × (q 896+896, k and v 896+128 each, o 896+896, gate, up and down 896+4864 each)
        (QWEN25_05B, 8, "all-linear", 24 * 8 * (2 * 1792 + 2 * 1024 + 3 * 5760)),
        (LLAMA2_7B, 8, ("q_proj", "v_proj"), 4_194_304),
        (LLAMA2_7B, 16, "all-linear", 39_976_960),
        # 32 layers × 16 × (q and o 4096+4096, k and v 4096+1024, gate, up and down 4096+14336)
        (MISTRAL_7B, 16, "all-linear", 41_943_040),
    ],
)
def test_parameters_of_adapters(
    trained: TrainedModel, rank: int, modules: tuple[str, ...] | str, expected: int
) -> None:
    assert adapter_parameters(trained, TrainingSetup(lora_rank=rank, target_modules=modules)) == expected


def test_a_module_is_named_by_its_last_part_and_must_be_there() -> None:
    chosen = targets(LLAMA2_7B, TrainingSetup(target_modules=("self_attn.q_proj",)))
    assert [one.name for one in chosen] == ["q_proj"]
    with pytest.raises(ValueError, match="no matrix c_attn; it has down_proj, gate_proj"):
        targets(LLAMA2_7B, TrainingSetup(target_modules=("q_proj", "c_attn")))


def test_weights_in_each_form() -> None:
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 6_738_415_616 - linear
    assert parts(LLAMA2_7B)["weights"].size == 2 * 6_738_415_616
    assert parts(LLAMA2_7B, dtype="float32")["weights"].size == 4 * 6_738_415_616
    qlora: dict[str, Any] = {"method": "qlora"}
    assert parts(LLAMA2_7B, **qlora, quantisation="nf4")["weights"].size == round(linear * 0.5625) + 2 * rest
    double = parts(LLAMA2_7B, **qlora, quantisation="nf4-double")["weights"]
    assert double.size == pytest.approx(linear * 0.516 + 2 * rest, rel=1e-3)
    assert "nf4-double" in double.how
    assert parts(LLAMA2_7B, **qlora, quantisation="int8")["weights"].size == linear + 2 * rest
    upcast = parts(LLAMA2_7B, **qlora, quantisation="nf4", upcast=True)["weights"]
    assert upcast.size == round(linear * 0.5625) + 4 * rest


def test_a_base_that_is_stored_quantised_is_taken_as_it_is() -> None:
    stored = replace(LLAMA2_7B, stored=4 * GIB)
    assert parts(stored, method="qlora")["weights"].size == 4 * GIB
    embeddings = 2 * 32000 * 4096 + LLAMA2_7B.other
    assert parts(stored, method="qlora", upcast=True)["weights"].size == 4 * GIB + 2 * embeddings


def test_an_adapter_takes_16_bytes_a_parameter() -> None:
    found = parts(LLAMA2_7B, lora_rank=16, accumulation=4)
    count = 39_976_960
    assert found["adapter"].size == 4 * count
    assert found["gradients"].size == 4 * count
    assert found["optimizer"].size == 8 * count
    assert f"{count:,}" in found["adapter"].how


def test_full_training_takes_16_to_18_bytes_a_parameter_and_8_in_pure_16_bits() -> None:
    count = MISTRAL_7B.parameters
    whole = parts(MISTRAL_7B, method="full", batch_size=1)
    kept = sum(whole[name].size for name in ("weights", "gradients", "optimizer"))
    assert 16 * count < kept < 18 * count
    pure = parts(MISTRAL_7B, method="full", batch_size=1, pure=True)
    assert sum(pure[name].size for name in ("weights", "gradients", "optimizer")) == 8 * count
    assert "adapter" not in pure
    small = parts(MISTRAL_7B, method="full", batch_size=1, pure=True, adam_8bit=True)
    assert small["optimizer"].size == pytest.approx(2 * count, rel=0.02)


def test_gradients_are_exchanged_between_processes() -> None:
    one = parts(LLAMA2_7B, accumulation=2)["gradients"].size
    assert parts(LLAMA2_7B, accumulation=2, gpus=4)["gradients"].size == 2 * one


def test_checkpoints_and_logits_grow_with_the_tokens() -> None:
    found = parts(QWEN25_05B, batch_size=2, sequence_length=1024)
    assert found["activations"].size == 2 * 2048 * 896 * 25
    assert found["logits"].size == round(3.54 * 4 * 2048 * 151936)
    wide = parts(QWEN25_05B, batch_size=2, sequence_length=1024, dtype="float32")
    assert wide["activations"].size == 2 * found["activations"].size


def test_without_checkpointing_every_layer_is_kept() -> None:
    kept = parts(LLAMA2_7B, batch_size=1, sequence_length=512, checkpointing=False)["activations"]
    widths = 12 * 4096 + 3 * 4096 + 4096 + 3 * 11008
    assert kept.size == 32 * 2 * 512 * widths
    dropped = parts(LLAMA2_7B, batch_size=1, sequence_length=512, checkpointing=False, lora_dropout=True)
    assert dropped["activations"].size > kept.size


def test_the_fused_loss_does_not_grow_with_the_tokens() -> None:
    found = parts(QWEN25_05B, batch_size=8, sequence_length=2048, fused_loss=True, eager_attention=False)
    assert found.get("logits", MemoryPart("", 0)).size <= 256 * MIB
    assert size(QWEN25_05B, batch_size=8, fused_loss=True) < size(QWEN25_05B, batch_size=8)
    # Where the plain one takes less, nothing is made chunk by chunk.
    assert parts(GPT2, batch_size=1, sequence_length=64, fused_loss=True)["logits"].size < 256 * MIB


def test_eager_attention_is_the_peak_where_rows_are_long() -> None:
    found = parts(LLAMA2_7B, batch_size=1, sequence_length=4096, eager_attention=True)
    assert found["attention"].size == round(7.1 * 2 * 32 * 4096**2)
    assert "logits" not in found
    assert "4096²" in found["attention"].how


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch_size": 1}, {"batch_size": 2}),
        ({"sequence_length": 512}, {"sequence_length": 1024}),
        ({"lora_rank": 8}, {"lora_rank": 64}),
        ({"accumulation": 1}, {"accumulation": 2}),
        ({"checkpointing": True}, {"checkpointing": False}),
        ({"eager_attention": False}, {"eager_attention": True}),
        ({"quantisation": "nf4-double", "method": "qlora"}, {"quantisation": "nf4", "method": "qlora"}),
        ({"quantisation": "nf4", "method": "qlora"}, {"quantisation": "int8", "method": "qlora"}),
        ({"adam_8bit": True}, {"adam_8bit": False}),
        ({"method": "lora"}, {"method": "full"}),
    ],
)
def test_more_of_anything_never_takes_less(less: dict[str, Any], more: dict[str, Any]) -> None:
    for trained in (QWEN25_05B, LLAMA2_7B, GPT2):
        assert size(trained, **less) <= size(trained, **more)


def test_parts_say_how_they_come_about_and_the_margin_is_15_percent() -> None:
    found = estimate(LLAMA2_7B, TrainingSetup())
    assert all(part.how and part.size > 0 for part in found)
    assert margin(found).size == round(0.15 * total(found))


# --- models from checkpoints ---------------------------------------------------------------------


def test_matrices_are_found_in_headers() -> None:
    tensors = {
        "transformer.wte.weight": Tensor("F32", (50257, 768), 1),
        "transformer.h.0.attn.c_attn.weight": Tensor("F32", (768, 2304), 1),
        "transformer.h.1.attn.c_attn.weight": Tensor("F32", (768, 2304), 1),
        "transformer.h.0.ln_1.weight": Tensor("F32", (768,), 1),
        "lm_head.weight": Tensor("F32", (50257, 768), 1),
    }
    assert linears_of(tensors) == (Linear("c_attn", 2304, 768, 2),)


def test_packed_matrices_have_the_shapes_that_the_configuration_gives() -> None:
    tensors = {"model.layers.0.self_attn.q_proj.weight": Tensor("U8", (8388608, 1), 8388608)}
    config = {
        **{"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 32},
        **{"intermediate_size": 11008, "vocab_size": 32000, "tie_word_embeddings": False},
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    found = model_of(CheckpointFacts(path="/m", tensors=tensors, documents={"config.json": config}))
    assert found is not None
    assert {one.name: (one.inputs, one.outputs) for one in found.linears}["down_proj"] == (11008, 4096)
    assert found.stored is not None


def test_experts_pass_a_token_through_a_few_of_them() -> None:
    found = model(
        "mixtral",
        **{"hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8},
        **{"intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2},
    )
    assert found.intermediate == 2 * 14336
    assert found.parameters > 2 * 8 * 3 * 4096 * 14336


def test_experts_are_neither_adapted_nor_quantised() -> None:
    expert = {
        f"model.layers.0.mlp.experts.{i}.down_proj.weight": Tensor("BF16", (64, 32), 4096) for i in (0, 1)
    }
    dense = {"model.layers.0.self_attn.q_proj.weight": Tensor("BF16", (64, 64), 8192)}
    linears = linears_of(expert | dense)
    assert linears == (Linear("down_proj", 32, 64, 2, expert=True), Linear("q_proj", 64, 64, 1))
    trained = TrainedModel(1, 64, 2, 64, 64, 32, 100, linears, embedding=6400)
    assert adapter_parameters(trained, TrainingSetup(lora_rank=1)) == 128
    found = parts(trained, method="qlora", quantisation="int8", lora_rank=1)["weights"]
    assert found.size == 64 * 64 + 2 * (2 * 64 * 32 + 6400)
    with pytest.raises(ValueError, match="no matrix down_proj"):
        targets(trained, TrainingSetup(target_modules=("down_proj",)))


def test_nothing_is_made_of_a_checkpoint_without_a_configuration() -> None:
    assert model_of(CheckpointFacts(path="/m", weight_files=10)) is None
