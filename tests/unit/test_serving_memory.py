"""What vLLM holds on each GPU: hand-computed caches, shares under parallelism, and what adds up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl.plugin import KV_CACHE, OVERHEAD, WEIGHTS, GpuGrant
from sagectl_models import allocator, architecture, flags, kv_cache, parallel, vllm_grant, weights
from sagectl_models.architecture import Architecture
from sagectl_models.serving_memory import ACTIVATIONS, GRAPHS, Serving, shape, token_bytes
from sagectl_models.weights import Weights
from tests.models import described

GIB = 1 << 30


def model(name: str, **changes: Any) -> tuple[Architecture, Weights]:
    facts = described(name, **changes)
    found = architecture.read(facts)
    assert found is not None
    size = weights.read(facts, found, dtype="bfloat16")
    assert size is not None
    return found, size


# layers × 2 × heads of keys and values × head size × bytes, by hand
PER_TOKEN = {
    "Llama-3.1-8B": 32 * 2 * 8 * 128 * 2,
    "Llama-3.1-70B": 80 * 2 * 8 * 128 * 2,
    "Llama-3.2-3B": 28 * 2 * 8 * 128 * 2,
    "Qwen2.5-0.5B-Instruct": 24 * 2 * 2 * 64 * 2,
    "Qwen2.5-7B-Instruct": 28 * 2 * 4 * 128 * 2,
    "Qwen2.5-72B-Instruct-AWQ": 80 * 2 * 8 * 128 * 2,
    "Mistral-7B-v0.1": 32 * 2 * 8 * 128 * 2,
    "Mixtral-8x7B-v0.1": 32 * 2 * 8 * 128 * 2,
    "DeepSeek-V3": 61 * (512 + 64) * 2,
    "gemma-2-9b": 42 * 2 * 8 * 256 * 2,
    "gemma-3-4b-it": 34 * 2 * 4 * 256 * 2,
    "Phi-3-mini-4k-instruct": 32 * 2 * 32 * 96 * 2,
    "Qwen3-30B-A3B": 48 * 2 * 4 * 128 * 2,
    "gpt-oss-20b": 24 * 2 * 8 * 64 * 2,
    "bge-small-en-v1.5": 0,
    "Qwen2-VL-7B-Instruct": 28 * 2 * 4 * 128 * 2,
}


@pytest.mark.parametrize("name", PER_TOKEN)
def test_cache_of_a_token(name: str) -> None:
    a, _ = model(name)
    assert token_bytes(a, Serving(8192)) == PER_TOKEN[name]


def test_cache_in_eight_bits_is_half() -> None:
    a, _ = model("Llama-3.1-8B")
    assert token_bytes(a, Serving(8192, cache_dtype="fp8")) == PER_TOKEN["Llama-3.1-8B"] // 2
    latent, _ = model("DeepSeek-V3")  # 656 bytes in place of 1152
    assert token_bytes(latent, Serving(8192, cache_dtype="fp8")) == 61 * 656


def test_cache_under_tensor_parallelism() -> None:
    a, _ = model("Llama-3.1-70B")  # 8 heads of keys and values
    one = PER_TOKEN["Llama-3.1-70B"]
    assert [token_bytes(a, Serving(1), tp) for tp in (1, 2, 4, 8, 16)] == [
        *(one, one // 2, one // 4, one // 8, one // 8)
    ]
    latent, _ = model("DeepSeek-V3")  # one vector for all heads: each rank has all of it
    assert token_bytes(latent, Serving(1), 8) == PER_TOKEN["DeepSeek-V3"]
    assert token_bytes(a, Serving(1), 2, 2) == one // 4


def sequence(name: str, context: int, **how: Any) -> int:
    a, _ = model(name)
    return shape(a, model(name)[1], Serving(context, **how), 1).part(KV_CACHE)


def test_cache_of_a_sequence() -> None:
    # whole blocks of 64 tokens, and one to spare
    assert sequence("Llama-3.1-8B", 8192) == (8192 + 64) * 131072
    assert sequence("Llama-3.1-8B", 8193) == (8192 + 128) * 131072
    assert sequence("DeepSeek-V3", 32768) == (32768 + 64) * 70272
    assert sequence("bge-small-en-v1.5", 512) == 0
    assert sequence("Llama-3.1-8B", 8192, cache=3 * GIB) == 3 * GIB


def test_windows_bound_the_cache() -> None:
    # Behind a window what is in flight stays too: two steps of 2048 tokens.
    blocks = -(-(4095 + 4096) // 64) + 2
    assert sequence("Mistral-7B-v0.1", 32768) == 32 * blocks * 64 * 4096
    full, window = 131072 // 64 + 1, -(-(127 + 4096) // 64) + 2
    assert sequence("gpt-oss-20b", 131072) == 12 * (full + window) * 64 * 2048
    # 5 layers of 34 look at everything; vLLM makes groups of 5 of the other 29, the last one of 4.
    full, window = 131072 // 64 + 1, -(-(1023 + 2 * 2048) // 64) + 2
    assert sequence("gemma-3-4b-it", 131072) == 5 * (full + 6 * window) * 64 * 4096
    assert sequence("Mistral-7B-v0.1", 2048) == (2048 + 64) * 131072


def test_linear_attention_keeps_a_state() -> None:
    linear: dict[str, Any] = {"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 12}
    linear |= {"linear_num_value_heads": 32, "linear_num_key_heads": 16, "linear_value_head_dim": 128}
    a, _ = model("Qwen3-30B-A3B", **linear)
    assert a.state == 32 * 128 * 128 + (2 * 16 * 128 + 32 * 128) * 4
    cache = kv_cache.Cache(2, 4096)
    assert kv_cache.per_token(a, range(48), 1, cache) == 12 * 2 * 4 * 128 * 2
    long, short = (kv_cache.sequence(a, range(48), 1, cache, tokens) for tokens in (65536, 1024))
    assert long - short == (65536 - 1024) * 12 * 2 * 4 * 128 * 2
    assert short > 36 * a.state * 4


# --- layouts -------------------------------------------------------------------------------------


def test_stages_are_vllms() -> None:
    assert [len(one) for one in parallel.stages(32, 2)] == [16, 16]
    assert [len(one) for one in parallel.stages(61, 4)] == [15, 15, 16, 15]
    assert [len(one) for one in parallel.stages(62, 4)] == [15, 16, 16, 15]
    assert [len(one) for one in parallel.stages(5, 2)] == [3, 2]
    assert parallel.stages(5, 2) == (range(3), range(3, 5))


@given(st.integers(1, 100), st.integers(1, 16))
def test_stages_cover_each_layer_once(layers: int, count: int) -> None:
    if count > layers:
        return
    assert [layer for one in parallel.stages(layers, count) for layer in one] == list(range(layers))


def test_weights_of_each_rank_by_hand() -> None:
    a, w = model("Llama-3.1-8B")
    layer = 2 * (2 * 4096 * 4096 + 3 * 4096 * 14336)  # queries, output and the three of the network
    keys, norms, table = 2 * 2 * 1024 * 4096, 2 * 2 * 4096, 2 * 128256 * 4096
    two = shape(a, w, Serving(8192), 2)
    assert two.tensor_parallel == 2
    assert [part.size for part in two.ranks[0] if part.name == WEIGHTS] == [
        32 * (layer // 2 + keys // 2 + norms) + 2 * table // 2 + 2 * 4096
    ]
    sixteen = shape(a, w, Serving(8192), 16)  # 8 heads of keys: two ranks share each
    assert sixteen.part(WEIGHTS) == 32 * (layer // 16 + keys // 8 + norms) + 2 * table // 16 + 2 * 4096
    first, last = (rank[0].size for rank in shape(a, w, Serving(8192), 1, 2).ranks)
    assert first == 16 * (layer + keys + norms) + table
    assert last == 16 * (layer + keys + norms) + table + 2 * 4096


def test_a_tied_table_is_on_the_first_and_the_last_stage() -> None:
    a, w = model("Qwen2.5-0.5B-Instruct")
    whole = shape(a, w, Serving(1024), 1).part(WEIGHTS)
    first, last = (rank[0].size for rank in shape(a, w, Serving(1024), 1, 2).ranks)
    assert whole == w.size == 2 * 494_032_768
    assert first + last == whole + w.embedding


@pytest.mark.parametrize("name", PER_TOKEN)
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (2, 2), (1, 3)])
def test_all_ranks_together_hold_all_weights(name: str, tensor: int, pipeline: int) -> None:
    a, w = model(name)
    found = shape(a, w, Serving(2048), tensor, pipeline)
    assert len(found.ranks) == tensor * pipeline
    held = sum(part.size for rank in found.ranks for part in rank if part.name == WEIGHTS)
    assert held >= w.size
    assert all(part.size > 0 and part.how for rank in found.ranks for part in rank)
    if (tensor, pipeline) == (1, 1):
        assert held == w.size


def test_parts_follow_the_options() -> None:
    a, w = model("Llama-3.1-8B")
    plain = shape(a, w, Serving(8192), 1)
    assert {part.name for part in plain.ranks[0]} == {WEIGHTS, KV_CACHE, ACTIVATIONS, GRAPHS, OVERHEAD}
    assert shape(a, w, Serving(8192, eager=True), 1).part(GRAPHS) == 0
    assert shape(a, w, Serving(8192, sequences=1024), 1).part(ACTIVATIONS) > plain.part(ACTIVATIONS)
    assert shape(a, w, Serving(8192, step_tokens=16384), 1).part(ACTIVATIONS) > plain.part(ACTIVATIONS)
    assert shape(a, w, Serving(8192), 2).part(OVERHEAD) > plain.part(OVERHEAD)
    lora = shape(a, w, Serving(8192, lora=16), 1).part("adapters")
    into, out = 3 * 4096 + 4096 + 2 * 4096 + 14336, 4096 + 2048 + 4096 + 2 * 14336 + 4096
    assert 0 <= lora - 32 * 16 * (into + out) * 2 < 16 << 20
    nf4 = shape(a, w, Serving(8192, quantise=0.5625), 1).part(WEIGHTS)
    linear = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    assert nf4 == pytest.approx(0.5625 * linear + 2 * (w.parameters - linear), rel=1e-6)


def test_a_model_of_8_billion_fits_where_it_is_known_to() -> None:
    """24 GiB serve it with 8192 tokens, 16 GiB do not; the rest beside the weights is 2 to 4 GiB."""
    a, w = model("Llama-3.1-8B")
    (size,) = shape(a, w, Serving(8192), 1).sizes
    assert 17 * GIB < size < 20 * GIB


# --- parallelism chosen --------------------------------------------------------------------------


def chosen(name: str, gpus: int | None = None, **changes: Any) -> list[tuple[int, int]]:
    return [(tensor, pipeline) for tensor, pipeline, _ in parallel.choices(model(name, **changes)[0], gpus)]


def first_of(name: str) -> list[tuple[int, int]]:
    """The first way for each number of GPUs."""
    found: dict[int, tuple[int, int]] = {}
    for tensor, pipeline in chosen(name):
        found.setdefault(tensor * pipeline, (tensor, pipeline))
    return list(found.values())


def test_tensor_parallelism_comes_first_and_few_gpus() -> None:
    assert first_of("Llama-3.1-70B")[:4] == [(1, 1), (2, 1), (4, 1), (8, 1)]
    assert chosen("Llama-3.1-70B", 16)[0] == (8, 2)
    assert first_of("Qwen2.5-0.5B-Instruct")[:4] == [(1, 1), (2, 1), (2, 2), (2, 4)]  # 14 heads
    assert first_of("Qwen2.5-7B-Instruct")[:4] == [(1, 1), (2, 1), (4, 1), (4, 2)]  # 28 heads
    assert chosen("Llama-3.2-3B", 3) == [(1, 3)]  # 24 heads can be divided by 3, 8 of keys cannot
    assert chosen("Llama-3.1-8B", 6) == [(2, 3), (1, 6)]


def test_every_other_way_to_use_as_many_gpus_comes_after_the_widest() -> None:
    """Placement takes one of these where the GPUs are not linked."""
    assert chosen("Llama-3.1-70B", 4) == [(4, 1), (2, 2), (1, 4)]
    ways = list(parallel.choices(model("Llama-3.1-70B")[0], 4))
    assert [why for *_, why in ways] == ["tensor 4", "", ""]


def test_groups_of_quantised_weights_are_not_torn_apart() -> None:
    # https://github.com/QwenLM/Qwen3-VL/issues/231: 29568 / 128 is odd, which is why it was padded.
    assert first_of("Qwen2.5-72B-Instruct-AWQ")[:4] == [(1, 1), (2, 1), (4, 1), (8, 1)]
    assert chosen("Qwen2.5-72B-Instruct-AWQ", intermediate_size=29568)[:2] == [(1, 1), (1, 2)]
    (*_, why) = next(parallel.choices(model("Qwen2.5-72B-Instruct-AWQ", intermediate_size=29568)[0], 2))
    assert "29568" in why


def test_what_cannot_be_divided_says_why() -> None:
    a, _ = model("Qwen2.5-0.5B-Instruct")
    assert parallel.trouble(a, 2) is None
    assert "14 attention heads" in (parallel.trouble(a, 4) or "")
    assert "24 layers" in (parallel.trouble(a, 1, 25) or "")
    assert "heads of keys" in (parallel.trouble(model("Llama-3.2-3B")[0], 3) or "")
    assert parallel.trouble(model("DeepSeek-V3")[0], 16) is None


@given(
    heads=st.integers(1, 64),
    group=st.integers(1, 8),
    layers=st.integers(1, 80),
    gpus=st.one_of(st.none(), st.integers(1, 16)),
)
def test_choices_can_be_divided(heads: int, group: int, layers: int, gpus: int | None) -> None:
    a, _ = model(
        "Llama-3.1-8B",
        num_attention_heads=heads * group,
        num_key_value_heads=heads,
        num_hidden_layers=layers,
        head_dim=64,
    )
    found = list(parallel.choices(a, gpus))
    for tensor, pipeline, _ in found:
        assert parallel.trouble(a, tensor, pipeline) is None
        assert tensor <= 8
        assert gpus in (None, tensor * pipeline)
    if gpus is not None and gpus <= layers:
        assert (1, gpus) in [(tensor, pipeline) for tensor, pipeline, _ in found]  # always works
        assert [tensor for tensor, *_ in found] == sorted({t for t, *_ in found}, reverse=True)


# --- what a grant becomes ------------------------------------------------------------------------

GRANT = GpuGrant((1,), (20 * GIB,), (80 * GIB,), kv_cache=2 * GIB)


def test_a_grant_binds_vllm() -> None:
    nothing = vllm_grant.told(None, None, ())
    found, notes = vllm_grant.memory(GRANT, nothing)
    assert found == ("--gpu-memory-utilization", "0.25", "--kv-cache-memory-bytes", str(2 * GIB))
    assert "20.0 GiB" in notes[0]
    uneven = GpuGrant((0,), (20 * GIB + 12345,), (23 * GIB,))
    assert vllm_grant.memory(uneven, nothing)[0] == ("--gpu-memory-utilization", "0.8695")
    assert not vllm_grant.sized(uneven, nothing)


@pytest.mark.parametrize(
    "arguments", [("--gpu-memory-utilization", "0.5"), ("--gpu_memory_utilization=0.5",)]
)
def test_the_users_own_share_comes_first(arguments: tuple[str, ...]) -> None:
    told = vllm_grant.told(None, None, arguments)
    assert told.share
    assert vllm_grant.share_told(None, arguments) == 0.5
    assert vllm_grant.memory(GRANT, told)[0] == ()
    cache = vllm_grant.told(None, "4GiB", ())
    assert vllm_grant.memory(GRANT, cache)[0] == ("--gpu-memory-utilization", "0.25")


def test_flags_of_the_user_are_read_as_vllm_reads_them() -> None:
    assert flags.number("--max-model-len", ("--max-model-len", "8k")) == 8000
    assert flags.number("--max-model-len", ("--max_model_len=8K",)) == 8192
    assert flags.number("--max-model-len", ("--max-model-len", "auto")) is None
    assert flags.number("--max-model-len", ("--max-model-len",)) is None
    assert flags.value("--x", ("--x=1", "--x", "2")) == "2"


def test_a_grant_caps_torch() -> None:
    cap = allocator.cap(GRANT)
    assert cap is not None
    share = float(cap.env["SAGECTL_GPU_MEMORY_FRACTION"])
    held = share * 80 * GIB + 640 * (1 << 20)  # CUDA's own comes on top
    assert 20 * GIB - 80 * GIB / 10_000 < held <= 20 * GIB
    assert allocator.cap(None) is None
    assert allocator.cap(GpuGrant((), (), ())) is None
    small = allocator.cap(GpuGrant((0,), (GIB // 2,), (80 * GIB,)))
    assert small is not None
    assert float(small.env["SAGECTL_GPU_MEMORY_FRACTION"]) > 0
