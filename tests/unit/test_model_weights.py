"""Architectures and weights of real models, from their config.json and from headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagectl.plugin import CheckpointFacts, CheckpointQuery, Tensor
from sagectl.system import checkpoints
from sagectl_models import architecture, weights
from sagectl_models.architecture import Architecture
from sagectl_models.blueprint import tensors_of
from sagectl_models.checkpoint import guessed
from sagectl_models.weights import Weights
from tests.models import config, described, tensor, write_model

GIB = 1 << 30
TOWER = 700_000_000
"""Parameters that are assumed for a vision tower whose tensors are not here."""


def both(facts: CheckpointFacts, **how: Any) -> tuple[Architecture, Weights]:
    found = architecture.read(facts)
    assert found is not None
    size = weights.read(facts, found, **how)
    assert size is not None
    return found, size


def on_disk(directory: Path, configuration: dict[str, Any], tensors: dict[str, Tensor]) -> CheckpointFacts:
    write_model(directory, configuration, tensors)
    facts = checkpoints.read(CheckpointQuery(str(directory), "/models"), {})
    assert facts.error is None
    return facts


# As published by their authors, or counted by the hub from the headers, without the tower.
PARAMETERS = {
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.2-3B": 3_212_749_824,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-72B-Instruct-AWQ": 72_957_861_888,  # 72,706,203,648 and 128 columns of zeros in each layer
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mixtral-8x7B-v0.1": 46_702_792_704,
    "DeepSeek-V3": 671_026_419_200,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-4b-it": 3_880_263_168 + TOWER,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen3-30B-A3B": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
    "bge-small-en-v1.5": 33_360_000,
    "Qwen2-VL-7B-Instruct": 7_615_616_512 + TOWER,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_published(name: str) -> None:
    _, found = both(described(name))
    assert found.parameters == PARAMETERS[name]
    assert not found.exact


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"gpt-oss-20b", "DeepSeek-V3"}))
def test_numbers_that_are_not_quantised_take_the_bytes_of_their_type(name: str) -> None:
    _, found = both(described(name, quantization_config=None))
    bytes_each = 4 if config(name)["torch_dtype"] == "float32" else 2
    assert found.size == bytes_each * PARAMETERS[name]


def test_72b_in_four_bits_is_not_184_gb() -> None:
    _, found = both(described("Qwen2.5-72B-Instruct-AWQ"))
    layer = 2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 8192 * 29696  # weights of its seven matrices
    quantised = 80 * layer * (4 + 16 / 128 + 4 / 128) / 8  # 4 bits, and a scale and a zero for 128
    plain = 2 * (2 * 152064 * 8192 + 80 * (8192 + 2048) + 161 * 8192)
    assert found.size == quantised + plain == 41_595_518_976  # the hub says 41.6 GB
    assert found.method == "awq"


def test_bge_small_is_not_20_gb() -> None:
    found, size = both(described("bge-small-en-v1.5"))
    assert size.size == 133_440_000  # the hub says 133 MB
    assert found.encoder
    assert found.positions == 512


def test_quantised_mixtures_of_experts() -> None:
    _, deepseek = both(described("DeepSeek-V3"))
    assert 626 * GIB < deepseek.size < 630 * GIB  # 671 billion at 8 bits, embeddings at 16
    _, gpt_oss = both(described("gpt-oss-20b"))
    assert gpt_oss.size == pytest.approx(13.76e9, rel=0.002)  # the hub says 13.8 GB


def test_shapes_of_attention() -> None:
    def read(name: str) -> Architecture:
        return both(described(name))[0]

    llama = read("Llama-3.1-8B")
    assert (llama.layers, llama.heads, llama.kv_heads, llama.head_dim) == (32, 32, 8, 128)
    assert (llama.query, llama.kv, llama.vocab, llama.tied) == (4096, 1024, 128256, False)
    deepseek = read("DeepSeek-V3")
    assert deepseek.latent is not None
    assert (deepseek.latent.width, deepseek.latent.query_rank) == (576, 1536)
    assert deepseek.experts is not None
    assert (deepseek.experts.count, deepseek.experts.per_token) == (256, 8)
    assert deepseek.experts.layers == tuple(range(3, 61))
    assert deepseek.experts.shared_intermediate == 2048
    gemma = read("gemma-3-4b-it")  # its config.json says nothing of these: they are the type's defaults
    assert (gemma.heads, gemma.kv_heads, gemma.head_dim, gemma.vocab) == (8, 4, 256, 262208)
    assert gemma.tied
    assert gemma.vision
    assert read("Qwen2-VL-7B-Instruct").vision


@pytest.mark.parametrize(
    ("name", "window", "sliding"),
    [
        ("Llama-3.1-8B", None, 0),
        ("Qwen2.5-7B-Instruct", None, 0),  # it has a window that it does not use
        ("Mistral-7B-v0.1", 4096, 32),
        ("Mixtral-8x7B-v0.1", None, 0),
        ("gemma-2-9b", 4096, 21),  # every second layer
        ("gemma-3-4b-it", 1024, 29),  # five of six
        ("gpt-oss-20b", 128, 12),
    ],
)
def test_sliding_windows(name: str, window: int | None, sliding: int) -> None:
    found, _ = both(described(name))
    assert found.windows.count(window) == (sliding if window else found.layers)
    assert found.windows.count(None) == found.layers - sliding


def test_windows_of_some_layers_and_layers_without_a_cache() -> None:
    half = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    found, _ = both(described("Qwen2.5-7B-Instruct", **half))
    assert found.windows == (None,) * 20 + (4096,) * 8
    linear = {"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 12}
    found, _ = both(described("Qwen3-30B-A3B", **linear))
    assert found.windows == (0, 0, 0, None) * 12
    found, _ = both(described("Qwen2.5-7B-Instruct", num_kv_shared_layers=8))
    assert found.windows == (None,) * 20 + (0,) * 8


@pytest.mark.parametrize(
    ("name", "changes", "tokens"),
    [
        ("Llama-3.1-8B", {}, 131072),
        ("DeepSeek-V3", {}, 163840),
        ("gemma-3-4b-it", {}, 131072),  # its factor is in the number already
        ("Phi-3-mini-4k-instruct", {}, 4096),
        ("Qwen2.5-7B-Instruct", {}, 32768),
        ("Qwen2.5-7B-Instruct", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 131072),
        (
            "Phi-3-mini-4k-instruct",
            {"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope"}},
            4096,
        ),
        ("Qwen2.5-7B-Instruct", {"max_position_embeddings": None}, None),
    ],
)
def test_the_longest_input_is_what_vllm_derives(
    name: str, changes: dict[str, Any], tokens: int | None
) -> None:
    assert both(described(name, **changes))[0].max_positions == tokens


def test_a_config_that_says_nothing_is_no_architecture() -> None:
    for document in (None, [], {}, {"hidden_size": 8}, {"hidden_size": "x", "num_hidden_layers": True}):
        assert architecture.from_config(document) is None


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama-3.1-70B", "gpt-oss-20b", "Qwen2.5-72B-Instruct-AWQ", "DeepSeek-V3"])
def test_headers_say_the_same_as_the_architecture(name: str, tmp_path: Path) -> None:
    found, computed = both(described(name))
    facts = on_disk(tmp_path, config(name), tensors_of(found))
    _, exact = both(facts)
    assert exact.exact
    assert exact.notes == ()
    assert (exact.size, exact.layers, exact.parameters) == (
        computed.size,
        computed.layers,
        computed.parameters,
    )
    assert sum(exact.by_dtype.values()) == exact.size


LAYER = "model.layers.0.mlp.down_proj"
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {
            f"{LAYER}.qweight": tensor("I32", 64, 1024),
            f"{LAYER}.qzeros": tensor("I32", 4, 128),
            f"{LAYER}.scales": tensor("F16", 4, 1024),
            f"{LAYER}.g_idx": tensor("I32", 512),
        },
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {
            f"{LAYER}.qweight": tensor("I32", 512, 128),
            f"{LAYER}.qzeros": tensor("I32", 4, 128),
            f"{LAYER}.scales": tensor("F16", 4, 1024),
        },
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
        {
            f"{LAYER}.weight": tensor("U8", 262144, 1),
            f"{LAYER}.weight.absmax": tensor("U8", 8192),
            f"{LAYER}.weight.nested_absmax": tensor("F32", 32),
            f"{LAYER}.weight.nested_quant_map": tensor("F32", 256),
            f"{LAYER}.weight.quant_map": tensor("F32", 16),
            f"{LAYER}.weight.quant_state.bitsandbytes__nf4": tensor("U8", 80),
        },
    ),
    "bitsandbytes, 8 bits": (
        {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True},
        {f"{LAYER}.weight": tensor("I8", 1024, 512), f"{LAYER}.SCB": tensor("F32", 1024)},
    ),
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {
            f"{LAYER}.weight": tensor("F8_E4M3", 1024, 512),
            f"{LAYER}.weight_scale_inv": tensor("F32", 8, 4),
        },
    ),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
        },
        {
            f"{LAYER}.weight_packed": tensor("I32", 1024, 64),
            f"{LAYER}.weight_scale": tensor("BF16", 1024, 4),
            f"{LAYER}.weight_shape": tensor("I64", 2),
        },
    ),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        {
            "model.layers.0.mlp.experts.down_proj_blocks": tensor("U8", 8, 128, 16, 16),
            "model.layers.0.mlp.experts.down_proj_scales": tensor("U8", 8, 128, 16),
        },
    ),
}


@pytest.mark.parametrize("method", LAYOUTS)
def test_quantised_layouts(method: str, tmp_path: Path) -> None:
    quantisation, tensors = LAYOUTS[method]
    small = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4}
    found, size = both(on_disk(tmp_path, small | {"quantization_config": quantisation}, tensors))
    assert found.quantisation is not None
    assert found.quantisation.bits == (8 if method in ("fp8", "bitsandbytes, 8 bits") else 4)
    assert size.parameters == 1024 * 512 if method != "mxfp4" else 8 * 128 * 512
    assert size.layers[0].split == size.size == sum(one.size for one in tensors.values())
    for dtype in ("float32", "bfloat16"):  # converts neither scales nor packed numbers
        again = on_disk(tmp_path, small | {"quantization_config": quantisation}, tensors)
        assert both(again, dtype=dtype)[1].size == size.size


def test_parts_of_a_checkpoint(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": tensor("F32", 100, 64),
        "model.norm.weight": tensor("F32", 64),
        "lm_head.weight": tensor("F32", 100, 64),
        "model.layers.0.self_attn.q_proj.weight": tensor("F32", 64, 64),
        "model.layers.0.self_attn.k_proj.weight": tensor("F32", 16, 64),
        "model.layers.0.input_layernorm.weight": tensor("F32", 64),
        "model.layers.0.mlp.gate.weight": tensor("F32", 8, 64),
        "model.layers.1.mlp.down_proj.weight": tensor("F32", 64, 64),  # for several tokens at once
        "mtp.layers.0.mlp.down_proj.weight": tensor("F32", 64, 64),
        "visual.blocks.0.attn.qkv.weight": tensor("F32", 32, 32),
        "multi_modal_projector.linear_1.weight": tensor("F32", 8, 8),
    }
    small = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 1, "vocab_size": 100}
    _, found = both(on_disk(tmp_path, small, tensors))
    assert (found.embedding, found.head, found.other) == (25600, 25600, 256)
    assert found.vision == 4 * (32 * 32 + 8 * 8)
    assert found.skipped == 2 * 4 * 64 * 64
    (layer,) = found.layers
    assert (layer.split, layer.kv, layer.copied) == (16384, 4096, 256 + 2048)
    _, half = both(on_disk(tmp_path, small, tensors), dtype="bfloat16")
    assert half.size * 2 == found.size
    _, tied = both(on_disk(tmp_path, small | {"tie_word_embeddings": True}, tensors))
    assert tied.head == 0
    assert tied.size == found.size - 25600


def test_fused_queries_keys_and_values(tmp_path: Path) -> None:
    fused = {"model.layers.0.self_attn.qkv_proj.weight": tensor("BF16", 96, 64)}
    small = {"model_type": "phi3", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    _, found = both(on_disk(tmp_path, small | {"num_key_value_heads": 1}, fused))
    assert (found.layers[0].split, found.layers[0].kv) == (2 * 64 * 64, 2 * 32 * 64)


def test_other_files_have_their_own_size(tmp_path: Path) -> None:
    facts = CheckpointFacts(
        "/m",
        documents={"config.json": config("Llama-3.1-8B")},
        weight_files=2 * PARAMETERS["Llama-3.1-8B"] + 9,
    )
    _, found = both(facts)
    assert not found.exact
    assert found.size >= facts.weight_files
    assert found.size == pytest.approx(facts.weight_files, rel=1e-6)
    unknown = weights.read(CheckpointFacts("/m.gguf", weight_files=4 * GIB), None)
    assert unknown is not None
    assert unknown.size == 4 * GIB
    assert not unknown.exact
    assert weights.read(CheckpointFacts(), None) is None


def test_sizes_are_guessed_from_names() -> None:
    assert guessed("Qwen/Qwen2.5-7B-Instruct") == int(7e9 * 2.1)
    assert guessed("Qwen/Qwen2.5-72B-Instruct-AWQ") == int(72e9 * 0.75)
    assert guessed("mistralai/Mixtral-8x7B-v0.1") == int(56e9 * 2.1)
    assert guessed("/srv/models/llama-3.2-1b@main") == int(1e9 * 2.1)
    assert guessed("HuggingFaceTB/SmolLM2-135M") == int(135e6 * 2.1)
    assert guessed("openai-community/gpt2") is None
