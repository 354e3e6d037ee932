"""The numbers of a base model that fine-tuning depends on, from its checkpoint's headers and config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sagectl.plugin import CheckpointFacts, Tensor
from sagectl_models import architecture, weights
from sagectl_models.architecture import Architecture
from sagectl_models.blueprint import tensors_of

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.\d+\.")


@dataclass(frozen=True, slots=True)
class Linear:
    """Matrices of one name in the layers. Example: `Linear("q_proj", 2048, 2048, 22)`.

    expert: of a mixture of experts. transformers 5 keeps those of a layer in one parameter, which
        bitsandbytes does not quantise and PEFT's `target_modules` do not reach.
    """

    name: str
    inputs: int
    outputs: int
    count: int
    expert: bool = False

    @property
    def parameters(self) -> int:
        """Of all of them together."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The numbers of a base model. Widths and counts, no bytes but `stored`.

    query, kv: widths of all queries and of all keys of a token.
    intermediate: width of the feed-forward network that one token passes.
    embedding: parameters of the table of tokens and of the output matrix, one of them where they are tied.
    other: parameters that are in no matrix of a layer and in no embedding.
    stored: bytes of the weights as they are loaded, where they are quantised already.
    """

    layers: int
    hidden: int
    heads: int
    query: int
    kv: int
    intermediate: int
    vocab: int
    linears: tuple[Linear, ...]
    embedding: int
    other: int = 0
    stored: int | None = None

    @property
    def linear(self) -> int:
        """Parameters of the matrices of all layers."""
        return sum(one.parameters for one in self.linears)

    @property
    def dense(self) -> tuple[Linear, ...]:
        """The matrices that can be quantised and adapted."""
        return tuple(one for one in self.linears if not one.expert)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.linear + self.embedding + self.other


def linears_of(tensors: Mapping[str, Tensor]) -> tuple[Linear, ...]:
    """The matrices of the layers, by the last part of their names.

    Empty where the checkpoint is quantised, so that shapes are not those of the matrices.
    """
    found: dict[tuple[str, int, int, bool], int] = {}
    for name, tensor in tensors.items():
        if not name.endswith(".weight") or len(tensor.shape) != 2 or _LAYER.search(name) is None:
            continue
        if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
            return ()
        module = name.removesuffix(".weight").rpartition(".")[2]
        outputs, inputs = tensor.shape
        key = (module, inputs, outputs, ".experts." in name)
        found[key] = found.get(key, 0) + 1
    return tuple(
        Linear(module, inputs, outputs, count, expert)
        for (module, inputs, outputs, expert), count in found.items()
    )


def model_of(facts: CheckpointFacts) -> TrainedModel | None:
    """The model of a checkpoint; None where its config.json does not say what it is."""
    shape = architecture.read(facts)
    held = weights.read(facts, shape)
    if shape is None or held is None:
        return None
    tensors = facts.tensors
    linears = linears_of(tensors)
    if not linears:  # no headers, or those of packed matrices
        tensors = tensors_of(replace(shape, quantisation=None))
        linears = linears_of(tensors)
    words, embedding = _embeddings(tensors, shape)
    linear = sum(one.parameters for one in linears)
    return TrainedModel(
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        query=_query(shape),
        kv=shape.kv,
        intermediate=_intermediate(shape),
        vocab=words,
        linears=linears,
        embedding=embedding,
        other=max(0, held.parameters - linear - embedding),
        stored=held.size if shape.quantisation is not None else None,
    )


def _embeddings(tensors: Mapping[str, Tensor], shape: Architecture) -> tuple[int, int]:
    """Rows of the table of tokens, and the parameters of it and of an output matrix of its own."""
    found = {"embedding": (0, 0), "head": (0, 0)}
    for name, tensor in tensors.items():
        what, _ = weights.role(name, tensor, shape.layers)
        if what in found and len(tensor.shape) == 2:
            found[what] = (tensor.shape[0], math.prod(tensor.shape))
    words = max(found["embedding"][0], found["head"][0]) or shape.vocab
    head = 0 if shape.tied and found["embedding"][1] else found["head"][1]
    return words, found["embedding"][1] + head


def _query(shape: Architecture) -> int:
    if shape.latent is None:
        return shape.query
    return shape.heads * (shape.latent.nope + shape.latent.rope)


def _intermediate(shape: Architecture) -> int:
    experts = shape.experts
    if experts is None:
        return shape.intermediate
    chosen = experts.per_token * experts.intermediate + experts.shared_intermediate
    return max(chosen, shape.intermediate if len(experts.layers) < shape.layers else 0)
