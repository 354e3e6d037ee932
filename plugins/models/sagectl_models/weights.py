"""The bytes of a model's weights, and which part of the model each belongs to.

Exact where safetensors headers tell the tensors. Where there is none, the tensors are those that the
architecture has (`sagectl_models.blueprint`), scaled to the size of the files if there are any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sagectl.plugin import CheckpointFacts, Tensor
from sagectl_models.architecture import ITEM_SIZES, Architecture
from sagectl_models.blueprint import tensors_of

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types that a `dtype` converts; the others are quantised and stay as they are."""

Role = Literal["split", "kv", "copied", "embedding", "head", "vision", "skipped"]

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_VISION = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|vit\w*|img_processor|image_newline|audio\w*|mm_projector"
    r"|multi_modal_projector|multimodal_projector|embed_vision|embed_audio|talker|token2wav|code2wav)\."
    r"|^mlp1\."
)
_UNUSED = re.compile(r"^(?:model\.)?(?:mtp|cls)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)(?:\.|$)")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.")
_KV = re.compile(r"\.(?:k_proj|v_proj|key|value|wk|wv)\.")
_FUSED = re.compile(r"\.(?:qkv_proj|query_key_value|c_attn|Wqkv|qkv)\.")
_COPIED = re.compile(
    r"norm|\.(?:q_a_proj|kv_a_proj_with_mqa|indexer|router|gate|wg|shared_expert_gate|correction_bias)\."
    r"|e_score_correction_bias"
)
_SCALES = re.compile(
    r"scales?$|scale_inv$|zeros?$|zero_point$|g_idx$|absmax|quant_map|quant_state|SCB$|weight_shape$"
)
_PACKED = re.compile(r"qweight$|weight_packed$|_blocks$|packed$")


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Bytes of one layer.

    split: shared out among the ranks of tensor parallelism. kv: keys and values, shared out among as many
    ranks as there are heads of them. copied: on every rank.
    """

    split: int = 0
    kv: int = 0
    copied: int = 0
    linear: int = 0
    """Parameters of matrices in it, counted unpacked: what quantisation and LoRA apply to."""

    @property
    def size(self) -> int:
        """All of it."""
        return self.split + self.kv + self.copied


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes as they are loaded.

    embedding: the table of tokens; head: the output's own matrix, 0 where it is tied to the table.
    vision: towers for images and sound, with their projectors. other: final norms, tables of positions.
    skipped: bytes of the files that are not loaded, such as layers for multi-token prediction.
    parameters: numbers that were trained, counted unpacked, without those skipped.
    by_dtype: bytes by safetensors' name of the type, as stored.
    exact: from headers.
    """

    layers: tuple[LayerWeights, ...]
    embedding: int
    head: int
    vision: int
    other: int
    skipped: int
    parameters: int
    by_dtype: Mapping[str, int] = field(default_factory=dict)
    method: str | None = None
    exact: bool = True
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of everything that is loaded."""
        return (
            sum(layer.size for layer in self.layers) + self.embedding + self.head + self.vision + self.other
        )


def read(facts: CheckpointFacts, architecture: Architecture | None, *, dtype: str = "auto") -> Weights | None:
    """The weights; None where neither headers, nor files, nor an architecture tell anything.

    Args:
        dtype: what unquantised numbers become when they are loaded, such as `bfloat16`; `auto`: as stored.
    """
    method = architecture.quantisation.method if architecture and architecture.quantisation else None
    if facts.tensors:
        return _count(facts.tensors, architecture, dtype, method)
    if architecture is None:
        return _unknown(facts.weight_files) if facts.weight_files else None
    found = _count(tensors_of(architecture), architecture, dtype, method)
    if not facts.weight_files:
        note = "no weights lie here: their size is computed from config.json"
        return _replaced(found, notes=(note,))
    note = "the weights are no safetensors: their size is that of the files, their parts by config.json"
    stored = _count(tensors_of(architecture), architecture, "auto", method)
    return _scaled(found, facts.weight_files / max(1, stored.size), note)


def role(name: str, tensor: Tensor, layers: int | None) -> tuple[Role, int | None]:
    """What a tensor is, and its layer. `layers`: how many the model has; further ones are not loaded."""
    if _UNUSED.search(name):
        return "skipped", None
    if _VISION.search(name):
        return "vision", None
    match = _LAYER.search(name)
    if match is None:
        if _EMBEDDING.search(name):
            return "embedding", None
        return ("head", None) if _HEAD.search(name) else ("copied", None)
    number = int(match[1])
    if layers is not None and number >= layers:
        return "skipped", number
    plain = len(tensor.shape) < 2 and name.endswith((".weight", ".bias"))
    if plain or _COPIED.search(name):
        return "copied", number
    return ("kv" if _KV.search(name) else "split"), number


def parameters(name: str, tensor: Tensor, architecture: Architecture | None) -> int:
    """How many trained numbers a tensor holds; 0 for scales and what else quantisation adds."""
    if _SCALES.search(name):
        return 0
    count = math.prod(tensor.shape)
    bits = architecture.quantisation.bits if architecture and architecture.quantisation else 8
    if _PACKED.search(name):
        return count * {"I32": 32, "U8": 8, "I64": 64}.get(tensor.dtype, bits) // bits
    if tensor.dtype == "U8" and bits == 4:
        return count * 2  # bitsandbytes: two weights a byte, in a column
    return count


# --- counting ----------------------------------------------------------------------------------


class _Layer:
    """One layer while it is counted."""

    def __init__(self) -> None:
        self.split = self.kv = self.copied = self.linear = 0


def _count(
    tensors: Mapping[str, Tensor], architecture: Architecture | None, dtype: str, method: str | None
) -> Weights:
    item = ITEM_SIZES.get(dtype)
    layers: dict[int, _Layer] = {}
    sizes = dict.fromkeys(("embedding", "head", "vision", "copied", "skipped"), 0)
    by_dtype: dict[str, int] = {}
    total = 0
    tied = architecture is not None and architecture.tied
    has_table = any(role(n, t, None)[0] == "embedding" for n, t in tensors.items()) if tied else False
    for name, tensor in tensors.items():
        what, number = role(name, tensor, architecture.layers if architecture else None)
        if what == "head" and tied and has_table:
            what = "skipped"  # a copy of the table
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.size
        size = tensor.size
        if item is not None and tensor.dtype in FLOATS and not _SCALES.search(name):
            size = size * item // FLOATS[tensor.dtype]
        count = parameters(name, tensor, architecture) if what != "skipped" else 0
        total += count
        if number is None or what == "skipped":
            sizes[what] += size
            continue
        layer = layers.setdefault(number, _Layer())
        layer.linear += count if len(tensor.shape) > 1 and what != "copied" else 0
        _add(layer, what, size, _kv_share(name, architecture))
    numbers = range(architecture.layers) if architecture else sorted(layers)
    skipped = sizes["skipped"]
    return Weights(
        layers=tuple(_frozen(layers.get(number)) for number in numbers),
        embedding=sizes["embedding"],
        head=sizes["head"],
        vision=sizes["vision"],
        other=sizes["copied"],
        skipped=skipped,
        parameters=total,
        by_dtype=by_dtype,
        method=method,
    )


def _add(layer: _Layer, what: Role, size: int, kv_share: float) -> None:
    if what == "split" and kv_share:
        layer.kv += (keys := round(size * kv_share))
        layer.split += size - keys
    elif what == "split":
        layer.split += size
    elif what == "kv":
        layer.kv += size
    else:
        layer.copied += size


def _kv_share(name: str, architecture: Architecture | None) -> float:
    """Which share of this tensor belongs to keys and values, for those that hold queries too."""
    if architecture is None or not _FUSED.search(name):
        return 0.0
    return 2 * architecture.kv_heads / (architecture.heads + 2 * architecture.kv_heads)


def _frozen(layer: _Layer | None) -> LayerWeights:
    return (
        LayerWeights() if layer is None else LayerWeights(layer.split, layer.kv, layer.copied, layer.linear)
    )


def _unknown(size: int) -> Weights:
    """All in one layer that no rank can share: nothing is known but the size of the files."""
    notes = ("neither config.json nor safetensors: only the size of the files is known",)
    return Weights((LayerWeights(split=size),), 0, 0, 0, 0, 0, size // 2, exact=False, notes=notes)


def _scaled(found: Weights, factor: float, note: str) -> Weights:
    def times(size: int) -> int:
        return math.ceil(size * factor)

    layers = tuple(
        LayerWeights(times(one.split), times(one.kv), times(one.copied), one.linear) for one in found.layers
    )
    rest = (times(found.embedding), times(found.head), times(found.vision), times(found.other))
    notes = (*found.notes, note)
    return Weights(layers, *rest, found.skipped, found.parameters, {}, found.method, False, notes)


def _replaced(found: Weights, *, notes: Iterable[str]) -> Weights:
    rest = (found.embedding, found.head, found.vision, found.other, found.skipped, found.parameters)
    return Weights(found.layers, *rest, found.by_dtype, found.method, False, (*found.notes, *notes))
