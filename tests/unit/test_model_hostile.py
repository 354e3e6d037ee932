"""Files of a checkpoint come from anybody: nothing in them may raise, or take more than a moment."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sagectl.plugin import CheckpointFacts, MemoryEstimate, Refusal, Tensor
from sagectl_llm.options import LlmOptions
from sagectl_models import architecture, weights
from tests.models import CONFIGS, config
from tests.unit.test_kind_embedding_memory import KIND as EMBEDDING
from tests.unit.test_kind_embedding_memory import gathered as embedding_facts
from tests.unit.test_kind_embedding_memory import request as embedding
from tests.unit.test_kind_llm_memory import KIND, gathered, request

NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
JUNK = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
        st.sampled_from([0, 1, -1, 2, 10**9, 10**18, "sliding_attention", "yarn", "gptq", "fp8"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
MORE_KEYS = (
    *("kv_lora_rank", "qk_rope_head_dim", "num_experts", "layer_types", "rope_scaling", "text_config"),
    *(
        "sliding_window_pattern",
        "quantization_config",
        "num_kv_shared_layers",
        "mamba_d_state",
        "tie_word_embeddings",
    ),
    *("mlp_only_layers", "n_shared_experts", "linear_num_value_heads", "full_attention_interval", "head_dim"),
)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    found = config(draw(st.sampled_from(NAMES)))
    for key in draw(st.lists(st.sampled_from([*found, *MORE_KEYS]), min_size=1, max_size=4)):
        found[key] = draw(JUNK)
    return found


@settings(max_examples=100, deadline=None)
@given(configurations(), st.sampled_from([None, 1, 2, 3, "auto"]), st.sampled_from(["vllm", "transformers"]))
def test_no_configuration_breaks_an_estimate(found: dict[str, Any], tensor: Any, backend: Any) -> None:
    facts = CheckpointFacts("/m", documents={"config.json": found})
    options = LlmOptions(backend=backend, tensor_parallel_size=tensor if backend == "vllm" else None)
    asked = request(options)
    answer = KIND.estimate(asked, gathered(asked, facts))
    assert isinstance(answer, MemoryEstimate | Refusal)
    if isinstance(answer, MemoryEstimate):
        assert all(size > 0 for shape in answer.shapes for size in shape.sizes)
    other = embedding()
    assert isinstance(EMBEDDING.estimate(other, embedding_facts(other, facts)), MemoryEstimate | Refusal)


def test_experts_without_a_width_break_no_estimate() -> None:
    found = config("Mixtral-8x7B-v0.1") | {"intermediate_size": 0, "quantization_config": {}}
    asked = request(LlmOptions(backend="vllm"))
    answer = KIND.estimate(asked, gathered(asked, CheckpointFacts("/m", documents={"config.json": found})))
    assert isinstance(answer, MemoryEstimate | Refusal)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.one_of(
            st.text(max_size=20),
            st.from_regex(
                r"(model\.)?layers\.[0-9]{1,12}\.(mlp|self_attn)\.[a-z_]{1,9}\.(weight|qweight)",
                fullmatch=True,
            ),
        ),
        st.builds(
            Tensor,
            st.sampled_from(["F32", "BF16", "U8", "I32", "F8_E4M3", "nonsense"]),
            st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
            st.integers(0, 2**50),
        ),
        max_size=6,
    ),
    st.one_of(st.none(), st.sampled_from(NAMES)),
)
def test_no_header_breaks_the_weights(tensors: dict[str, Tensor], name: str | None) -> None:
    documents = {} if name is None else {"config.json": config(name)}
    facts = CheckpointFacts("/m", tensors, documents, 1)
    found = weights.read(facts, architecture.read(facts))
    assert found is not None
    assert found.size + found.skipped <= sum(one.size for one in tensors.values()) + (0 if tensors else 2**60)
