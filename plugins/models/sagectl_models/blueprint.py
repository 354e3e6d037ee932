"""The tensors that an architecture has, for models whose headers cannot be read.

Names are those of transformers' Llama, experts in one tensor a layer. Small things are as in the common
models: no biases but for the queries, keys and values of Qwen2 and where a model has them everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from sagectl.plugin import Tensor
from sagectl_models.architecture import Architecture

_STORED = {"float64": "F64", "float32": "F32", "float": "F32", "float16": "F16", "half": "F16"}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1}
_BIASED = frozenset({"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"})
_ALL_BIASED = frozenset(
    {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra", "camembert", "gpt2", "opt"}
    | {"bloom", "gpt_neox", "phi", "starcoder2", "gpt_bigcode", "gpt_oss"}
)
_QK_NORM = ("qwen3", "gemma3")
_VISION = 700_000_000
"""Parameters that are assumed for a tower of which nothing is known; most have 0.3 to 0.7 billion."""


def tensors_of(architecture: Architecture) -> dict[str, Tensor]:
    """All tensors, by name."""
    return dict(_all(architecture))


def _all(a: Architecture) -> Iterator[tuple[str, Tensor]]:
    yield "model.embed_tokens.weight", _plain(a, a.vocab, a.hidden)
    if not a.tied and not a.encoder:
        yield "lm_head.weight", _plain(a, a.vocab, a.hidden)
    if a.positions:
        yield "model.position_embeddings.weight", _plain(a, a.positions, a.hidden)
    yield "model.norm.weight", _plain(a, a.hidden * (2 if a.model_type in _ALL_BIASED - {"gpt_oss"} else 1))
    if a.model_type == "bert":
        yield "token_type_embeddings.weight", _plain(a, 2, a.hidden)
        yield "pooler.dense.weight", _plain(a, a.hidden, a.hidden)
        yield "pooler.dense.bias", _plain(a, a.hidden)
    if a.vision:
        yield "visual.weight", _plain(a, _VISION)
    for layer in range(a.layers):
        where = f"model.layers.{layer}"
        yield from _norms(a, where)
        yield from _latent(a, where) if a.latent is not None else _attention(a, where)
        if a.experts is not None and layer in a.experts.layers:
            yield from _experts(a, where)
        else:
            yield from _dense(a, f"{where}.mlp", a.intermediate)


def _norms(a: Architecture, where: str) -> Iterator[tuple[str, Tensor]]:
    width = a.hidden * (2 if a.model_type in _ALL_BIASED - {"gpt_oss"} else 1)  # with a bias
    for name in ("input", "post_attention"):
        yield f"{where}.{name}_layernorm.weight", _plain(a, width)
    if a.model_type.startswith(("gemma2", "gemma3")):
        for name in ("pre_feedforward", "post_feedforward"):
            yield f"{where}.{name}_layernorm.weight", _plain(a, width)
    if a.model_type.startswith(_QK_NORM):
        for name in ("q_norm", "k_norm"):
            yield f"{where}.self_attn.{name}.weight", _plain(a, a.head_dim)
    if a.model_type == "gpt_oss":
        yield f"{where}.self_attn.sinks", _plain(a, a.heads)


def _attention(a: Architecture, where: str) -> Iterator[tuple[str, Tensor]]:
    for name, out, into in (
        ("q_proj", a.query, a.hidden),
        ("k_proj", a.kv, a.hidden),
        ("v_proj", a.kv, a.hidden),
        ("o_proj", a.hidden, a.query),
    ):
        yield from _linear(a, f"{where}.self_attn.{name}", out, into)
        if a.model_type in _ALL_BIASED or (a.model_type in _BIASED and name != "o_proj"):
            yield f"{where}.self_attn.{name}.bias", _plain(a, out)


def _latent(a: Architecture, where: str) -> Iterator[tuple[str, Tensor]]:
    assert a.latent is not None
    latent, at = a.latent, f"{where}.self_attn"
    queries = a.heads * (latent.nope + latent.rope)
    if latent.query_rank is None:
        yield from _linear(a, f"{at}.q_proj", queries, a.hidden)
    else:
        yield from _linear(a, f"{at}.q_a_proj", latent.query_rank, a.hidden)
        yield f"{at}.q_a_layernorm.weight", _plain(a, latent.query_rank)
        yield from _linear(a, f"{at}.q_b_proj", queries, latent.query_rank)
    yield from _linear(a, f"{at}.kv_a_proj_with_mqa", latent.width, a.hidden)
    yield f"{at}.kv_a_layernorm.weight", _plain(a, latent.rank)
    yield from _linear(a, f"{at}.kv_b_proj", a.heads * (latent.nope + latent.value), latent.rank)
    yield from _linear(a, f"{at}.o_proj", a.hidden, a.heads * latent.value)


def _dense(a: Architecture, where: str, width: int) -> Iterator[tuple[str, Tensor]]:
    names = (("gate_proj", width, a.hidden), ("up_proj", width, a.hidden), ("down_proj", a.hidden, width))
    for name, out, into in names if a.gated else names[1:]:
        yield from _linear(a, f"{where}.{name}", out, into)
        if a.model_type in _ALL_BIASED:
            yield f"{where}.{name}.bias", _plain(a, out)


def _experts(a: Architecture, where: str) -> Iterator[tuple[str, Tensor]]:
    assert a.experts is not None
    experts = a.experts
    yield f"{where}.mlp.gate.weight", _plain(a, experts.count, a.hidden)
    if a.latent is not None and a.latent.query_rank is not None:
        yield f"{where}.mlp.gate.e_score_correction_bias", _plain(a, experts.count)
    for name, out, into in (
        ("gate_up_proj", 2 * experts.intermediate, a.hidden),
        ("down_proj", a.hidden, experts.intermediate),
    ):
        yield from _linear(a, f"{where}.mlp.experts.{name}", experts.count * out, into)
        if a.model_type == "gpt_oss":
            yield f"{where}.mlp.experts.{name}_bias", _plain(a, experts.count, out)
    if a.model_type == "gpt_oss":
        yield f"{where}.mlp.router.bias", _plain(a, experts.count)
    if experts.shared_intermediate:
        yield from _dense(a, f"{where}.mlp.shared_experts", experts.shared_intermediate)
        if a.model_type in ("qwen2_moe", "qwen3_next"):
            yield f"{where}.mlp.shared_expert_gate.weight", _plain(a, 1, a.hidden)


def _linear(a: Architecture, name: str, out: int, into: int) -> Iterator[tuple[str, Tensor]]:
    """A matrix as the model's quantisation stores it."""
    q = a.quantisation
    if q is None or (q.method == "mxfp4" and ".experts." not in name):
        yield f"{name}.weight", _plain(a, out, into)
        return
    count = out * into
    group = q.group or max(1, into)
    if q.method == "mxfp4":
        yield f"{name}_blocks", _tensor("U8", count // 2)
        yield f"{name}_scales", _tensor("U8", count // 32)
    elif q.method == "bitsandbytes":
        yield f"{name}.weight", _tensor("U8" if q.bits == 4 else "I8", count * q.bits // 8, 1)
        yield f"{name}.weight.absmax", _tensor("F32", count // 64 if q.bits == 4 else out)
    elif q.bits >= 8:
        yield f"{name}.weight", _tensor("F8_E4M3", out, into)
        # blocks of 128 × 128 (DeepSeek's), or one a row
        blocks = math.ceil(out / 128) * math.ceil(into / 128) if "fp8" in q.method else out
        yield f"{name}.weight_scale_inv", _tensor("F32", blocks)
    else:
        yield f"{name}.qweight", _tensor("I32", math.ceil(into * q.bits / 32), out)
        yield f"{name}.scales", _tensor("F16", math.ceil(into / group), out)
        yield f"{name}.qzeros", _tensor("I32", math.ceil(into / group), math.ceil(out * q.bits / 32))
        if q.method == "gptq":
            yield f"{name}.g_idx", _tensor("I32", into)


def _plain(a: Architecture, *shape: int) -> Tensor:
    stored = "F16" if a.quantisation and a.quantisation.method == "awq" else _STORED.get(a.dtype, "BF16")
    return _tensor(stored, *shape)


def _tensor(dtype: str, *shape: int) -> Tensor:
    return Tensor(dtype, shape, math.prod(shape) * _SIZES[dtype])
