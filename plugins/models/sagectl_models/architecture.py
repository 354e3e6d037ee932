"""What a model's config.json says of its shape: layers, heads, experts, windows, numbers and their type.

Pure. Keys are those that transformers writes; a key that it leaves out because it has the default of its
model type is looked up in `DEFAULTS`. The bytes are told by `sagectl_models.weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagectl.plugin import CheckpointFacts

ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float": 4,
    "float16": 2,
    "half": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
}
"""Bytes of one number, by torch's names."""

# What transformers' classes assume where config.json is silent, for types whose files are often sparse.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
        **{"intermediate_size": 11008, "max_position_embeddings": 2048},
    },
    "mistral": {
        **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
        **{"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    },
    "gemma2": {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096},
    "gemma3_text": {
        **{"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208},
        **{"sliding_window": 4096, "sliding_window_pattern": 6, "max_position_embeddings": 131072},
    },
    "gpt2": {"n_positions": 1024},
}
# Types whose input and output embeddings are one matrix unless config.json says otherwise.
TIED = frozenset(
    {"gemma", "gemma2", "gemma3_text", "gemma3n_text", "gpt2", "opt", "bloom", "cohere", "cohere2"}
    | {"starcoder2", "mpt", "falcon"}
)
# Types whose feed-forward network has two matrices; that of all others has a gate too.
PLAIN = frozenset(
    {"gpt2", "opt", "bloom", "falcon", "mpt", "gpt_neox", "gptj", "phi", "starcoder2", "gpt_bigcode"}
    | {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra", "albert", "camembert"}
)
# Types that read a text at once and keep no cache of it.
ENCODERS = frozenset(
    {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra", "albert", "camembert"}
    | {"nomic_bert", "new", "modernbert", "deberta-v2"}
)
MOST_LAYERS = 1000
"""A config.json that says more means something else."""
_NESTED = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class Experts:
    """Mixture of experts.

    intermediate: width of one expert; shared_intermediate: of all that every token passes, 0 for none.
    layers: the layers that have experts; the others have a dense network.
    """

    count: int
    per_token: int
    intermediate: int
    shared_intermediate: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: one compressed vector a token in place of keys and values.

    query_rank: None where queries are not compressed.
    """

    rank: int
    rope: int
    nope: int
    value: int
    query_rank: int | None

    @property
    def width(self) -> int:
        """Numbers that the cache holds for a token and layer, whatever the number of heads."""
        return self.rank + self.rope


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the linear layers are stored.

    method: `gptq`, `awq`, `bitsandbytes`, `fp8`, `compressed-tensors`, `mxfp4`, or another name as written.
    bits: of one weight. group: weights that share a scale, 0 where that is not said.
    """

    method: str
    bits: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """A language or embedding model. Widths are numbers, not bytes.

    windows: for each layer how many tokens its attention looks back: None for all of them, 0 for layers
        that keep no cache for each token (linear attention, shared caches).
    intermediate: width of the dense feed-forward network; gated: it has three matrices, not two.
    dtype: torch's name of the type that config.json gives.
    max_positions: longest input in tokens as vLLM derives it; None where nothing is said.
    encoder: it keeps no cache, as BERT. vision: the checkpoint has a tower for images or sound too.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    dtype: str
    windows: tuple[int | None, ...]
    gated: bool = True
    max_positions: int | None = None
    experts: Experts | None = None
    latent: Latent | None = None
    quantisation: Quantisation | None = None
    encoder: bool = False
    vision: bool = False
    positions: int = 0
    """Rows of a learned table of positions, 0 for rotary and other kinds."""
    state: int = 0
    """Numbers that a layer of linear attention keeps for a sequence, whatever its length."""

    @property
    def query(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all keys of a token; values have the same."""
        return self.kv_heads * self.head_dim


def read(facts: CheckpointFacts) -> Architecture | None:
    """The architecture; None where there is no config.json that says at least layers, width and heads."""
    return from_config(facts.documents.get("config.json"), facts.documents)


def from_config(config: Any, documents: Mapping[str, Any] | None = None) -> Architecture | None:
    """As `read`, from the parsed config.json and the other documents beside it."""
    if not isinstance(config, Mapping):
        return None
    text = _text(config)
    kind = str(text.get("model_type", ""))
    layers = _number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = _number(text, "hidden_size", "n_embd", "d_model", "dim")
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    if not layers or not hidden or not heads or layers > MOST_LAYERS:
        return None
    encoder = kind in ENCODERS
    quantisation = _quantisation(config, text, documents or {})
    return Architecture(
        model_type=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, kind, heads),
        head_dim=_number(text, "head_dim") or hidden // heads,
        intermediate=_number(text, "intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "hidden_dim")
        or 4 * hidden,
        vocab=_number(text, "vocab_size", "padded_vocab_size") or 32000,
        tied=_tied(config, text, kind, encoder),
        dtype=_dtype(config, text) or ("bfloat16" if quantisation else "float32"),
        windows=_windows(text, kind, layers),
        gated=kind not in PLAIN,
        max_positions=max_positions(text),
        experts=_experts(text, layers),
        latent=_latent(text),
        quantisation=quantisation,
        encoder=encoder,
        vision=any(key in config for key in ("vision_config", "audio_config", "vision_tower", "visual")),
        positions=_positions(text, kind, encoder),
        state=_state(text, hidden),
    )


def max_positions(text: Mapping[str, Any]) -> int | None:
    """The longest input in tokens, as vLLM 0.32 derives it (config/model.py, _get_and_verify_max_len)."""
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
    found = [value for key in keys if (value := _number(text, key))]
    if not found:
        return None
    rope = _rope(text)
    original = _number(text, "original_max_position_embeddings")
    kinds = [str(one.get("rope_type", one.get("type", ""))) for one in rope]
    if "longrope" in kinds or "su" in kinds:
        return original or min(found)
    if "gemma3" in str(text.get("model_type")):
        return min(found)
    scaled = {"longrope", "su", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
    factors = [
        float(factor)
        for one, kind in zip(rope, kinds, strict=True)
        if kind not in scaled and isinstance(factor := one.get("factor"), int | float) and 0 < factor < 2**20
    ]
    return int(min(found) * max(factors, default=1.0))


def _rope(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    value = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(value, Mapping):
        return []
    nested = [one for one in value.values() if isinstance(one, Mapping)]
    return nested or [value]


# --- the parts of a config.json -----------------------------------------------------------------


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the language model, those of its type's defaults below them."""
    own: Mapping[str, Any] = config
    thinker = config.get("thinker_config")
    if isinstance(thinker, Mapping):
        own = thinker
    nested = next((own[key] for key in _NESTED if isinstance(own.get(key), Mapping)), None)
    merged = {**own, **nested} if nested is not None else dict(own)
    return {**DEFAULTS.get(str(merged.get("model_type")), {}), **merged}


def _number(values: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these keys that holds a positive whole number."""
    for key in keys:
        value = values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < 2**40:
            return int(value)
    return None


def _kv_heads(text: Mapping[str, Any], kind: str, heads: int) -> int:
    if kind == "falcon" and not text.get("new_decoder_architecture") and text.get("multi_query", True):
        return 1
    if kind == "gpt_bigcode" and text.get("multi_query", True):
        return 1
    return _number(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads


def _tied(config: Mapping[str, Any], text: Mapping[str, Any], kind: str, encoder: bool) -> bool:
    for values in (text, config):
        if isinstance(values.get("tie_word_embeddings"), bool):
            return bool(values["tie_word_embeddings"])
    return encoder or kind in TIED


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    for values in (text, config):
        for key in ("dtype", "torch_dtype"):
            name = values.get(key)
            if isinstance(name, str) and name.removeprefix("torch.") in ITEM_SIZES:
                return name.removeprefix("torch.")
    return None


def _positions(text: Mapping[str, Any], kind: str, encoder: bool) -> int:
    learned = kind in ("gpt2", "opt") or (
        encoder
        and kind not in ("nomic_bert", "new", "modernbert")
        and text.get("position_embedding_type", "absolute") == "absolute"
    )
    rows = _number(text, "n_positions", "max_position_embeddings") or 0
    return rows + (2 if kind == "opt" else 0) if learned else 0


def _state(text: Mapping[str, Any], hidden: int) -> int:
    """Of gated delta nets (Qwen3-Next) and of Mamba."""
    values = _number(text, "linear_num_value_heads")
    if values is not None:
        keys = _number(text, "linear_num_key_heads") or values
        key = _number(text, "linear_key_head_dim") or 128
        value = _number(text, "linear_value_head_dim") or 128
        convolved = 2 * keys * key + values * value
        return values * key * value + convolved * (_number(text, "linear_conv_kernel_dim") or 4)
    inner = _number(text, "mamba_d_ssm", "mamba_intermediate_size") or hidden * (
        _number(text, "mamba_expand", "expand") or 2
    )
    states = _number(text, "mamba_d_state", "ssm_state_size", "state_size")
    return inner * (states + 4) if states else 0


def _windows(text: Mapping[str, Any], kind: str, layers: int) -> tuple[int | None, ...]:
    window = _number(text, "sliding_window")
    shared = _number(text, "num_kv_shared_layers") or 0
    found = [_window(text, kind, layer, window) for layer in range(layers)]
    return tuple(0 if layer >= layers - shared else one for layer, one in enumerate(found))


def _window(text: Mapping[str, Any], kind: str, layer: int, window: int | None) -> int | None:
    """How far this layer looks back."""
    types = text.get("layer_types")
    if isinstance(types, Sequence) and not isinstance(types, str) and layer < len(types):
        name = str(types[layer])
        if "linear" in name or "mamba" in name or "recurrent" in name or "conv" in name:
            return 0
        if "chunked" in name:
            return _number(text, "attention_chunk_size") or window
        return window if "sliding" in name else None
    interval = _number(text, "full_attention_interval")
    if interval is not None and "linear_num_key_heads" in text:
        return None if (layer + 1) % interval == 0 else 0
    if window is None:
        return None
    pattern = _number(text, "sliding_window_pattern", "_sliding_window_pattern")
    if pattern is not None and pattern > 1:
        return None if (layer + 1) % pattern == 0 else window
    if kind in ("gemma2", "gpt_oss"):
        return window if layer % 2 == 0 else None
    if "use_sliding_window" in text or kind.startswith(("qwen2", "qwen3")):
        first = text.get("max_window_layers", 0)
        slides = text.get("use_sliding_window") and layer >= (first if isinstance(first, int) else 0)
        return window if slides else None
    return window


def _experts(text: Mapping[str, Any], layers: int) -> Experts | None:
    count = _number(text, "num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
    if count is None or count < 2:
        return None
    width = _number(text, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size") or 0
    shared = _number(text, "shared_expert_intermediate_size")
    if shared is None:
        shared = (_number(text, "n_shared_experts", "num_shared_experts") or 0) * width
    dense = text.get("mlp_only_layers")
    first = _number(text, "first_k_dense_replace") or 0
    step = _number(text, "decoder_sparse_step", "interleave_moe_layer_step") or 1
    frequency = _number(text, "moe_layer_freq") or 1
    chosen = tuple(
        layer
        for layer in range(layers)
        if layer >= first
        and not (isinstance(dense, list) and layer in dense)
        and (layer + 1) % step == 0
        and layer % frequency == 0
    )
    per_token = _number(
        text, "num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_top_k"
    )
    return Experts(count, per_token or 2, width, shared, chosen)


def _latent(text: Mapping[str, Any]) -> Latent | None:
    rank, rope = _number(text, "kv_lora_rank"), _number(text, "qk_rope_head_dim")
    if rank is None or rope is None:
        return None
    nope = _number(text, "qk_nope_head_dim") or 128
    return Latent(rank, rope, nope, _number(text, "v_head_dim") or nope, _number(text, "q_lora_rank"))


def _quantisation(
    config: Mapping[str, Any], text: Mapping[str, Any], documents: Mapping[str, Any]
) -> Quantisation | None:
    for place in (config.get("quantization_config"), text.get("quantization_config")):
        if isinstance(place, Mapping):
            return _method(place, "")
    for file, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if isinstance(documents.get(file), Mapping):
            return _method(documents[file], method)
    return None


def _method(values: Mapping[str, Any], default: str) -> Quantisation:
    method = str(values.get("quant_method") or default or "unknown").lower().replace("_", "-")
    if "bitsandbytes" in method or "load_in_4bit" in values or "load_in_8bit" in values:
        return Quantisation("bitsandbytes", 8 if values.get("load_in_8bit") else 4, 64)
    if method == "mxfp4":
        return Quantisation(method, 4, 32)
    bits = _number(values, "bits", "w_bit", "num_bits")
    group = _number(values, "group_size", "q_group_size")
    if method == "compressed-tensors":
        groups = values.get("config_groups")
        for one in groups.values() if isinstance(groups, Mapping) else ():
            scheme = one.get("weights") if isinstance(one, Mapping) else None
            if isinstance(scheme, Mapping):
                return Quantisation(
                    method, _number(scheme, "num_bits") or 8, _number(scheme, "group_size") or 0
                )
    return Quantisation(method, bits or (8 if "fp8" in method else 4), group or 0)
