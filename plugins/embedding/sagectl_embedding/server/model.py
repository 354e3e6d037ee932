"""Load a sentence-transformers model and run batches of token ids through it."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers import __version__ as version
from sentence_transformers.models import StaticEmbedding, Transformer
from transformers import PreTrainedTokenizerBase

from .scheduler import LoadError

log = logging.getLogger("sagectl.embedding")

CHECKED = ("A fox.", "  The self-check of Ångström's 2nd TEXT, longer than the first:\n42 ")
TOLERANCE = {torch.float32: 1e-4}
COARSE = 3e-2
UNLIMITED = 1 << 20
"""Tokens; for models without a limit of their own (averages of static word vectors)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to load and how.

    max_tokens: for one input; None for the model's own limit.
    """

    model: str
    device: str
    dtype: str
    max_tokens: int | None
    normalize: bool
    matryoshka: bool
    trust_remote_code: bool


class Embedder:
    """A loaded model. `tokenize` and `embed` may each be used by one thread at a time."""

    def __init__(self, choice: Choice) -> None:
        model_id, revision = _split(choice.model)
        self._model = SentenceTransformer(
            model_id,
            device=choice.device,
            revision=revision or None,
            trust_remote_code=choice.trust_remote_code,
        )
        if choice.dtype != "auto":
            self._model = self._model.to(getattr(torch, choice.dtype))
        self._model.eval()
        self._normalize = choice.normalize
        self._unit = choice.normalize or type(self._model[-1]).__name__ == "Normalize"
        self._prompt = _default_prompt(self._model)
        self._features = _features(self._model, self._prompt)
        self.device = str(self._model.device)
        self.dtype = _dtype(self._model)
        self.max_tokens = _max_tokens(self._model, choice.max_tokens)
        self.vocabulary = self._features.vocabulary
        self._check_words()
        self.width = self._check()
        self.dimensions = _dimensions(self._model, choice.matryoshka)

    def tokenize(self, texts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        """Token ids with the model's own special tokens."""
        return self._features.tokenize(
            [self._prompt + text for text in texts], self.max_tokens if truncate else None
        )

    def embed(self, inputs: Sequence[Sequence[int]], dimensions: Sequence[int | None]) -> list[bytes]:
        """One embedding for each input, as little-endian float32.

        Raises:
            ArithmeticError: one is not finite.
        """
        vectors = self._vectors(inputs)
        if not bool(torch.isfinite(vectors).all()):
            raise ArithmeticError("the model computed a value that is not a finite number")
        rows = []
        for vector, width in zip(vectors, dimensions, strict=True):
            if width is not None:
                vector = vector[:width]
                if self._unit:
                    vector = torch.nn.functional.normalize(vector, dim=0)
            rows.append(vector.numpy().astype("<f4").tobytes())
        return rows

    def _vectors(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        features = self._features.collate(inputs)
        moved = {
            name: value.to(self._model.device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        with torch.inference_mode():
            vectors = self._model(moved)["sentence_embedding"][:, : self._model.truncate_dim]
            if self._normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            return vectors.to("cpu", torch.float32)

    def _check_words(self) -> None:
        """Without its files transformers makes a tokenizer that knows no words, and says nothing."""
        special = set(getattr(self._model.tokenizer, "all_special_ids", ()))
        if all(set(ids) <= special for ids in self.tokenize(CHECKED, truncate=False)):
            raise LoadError("the tokenizer knows no words: its files are missing or empty")

    def _check(self) -> int:
        """Compare with sentence-transformers' own `encode`, which also warms up; the embeddings' width."""
        expected = self._model.encode(
            list(CHECKED), normalize_embeddings=self._normalize, show_progress_bar=False
        )
        found = self._vectors(self.tokenize(CHECKED, truncate=True)).numpy()
        expected = numpy.asarray(expected, dtype=numpy.float32)
        scale = max(1e-9, float(numpy.abs(expected).max()))
        difference = float(numpy.abs(found - expected).max()) / scale
        if not math.isfinite(difference) or difference > TOLERANCE.get(self.dtype, COARSE):
            raise LoadError(
                f"this server prepares texts differently from sentence-transformers {version} for this model"
                f" (embeddings differ by {difference:.2g}), so it cannot serve it"
            )
        return int(found.shape[1])


# --- From texts to what the model takes ----------------------------------------------------------


class _Encoder:
    """Features of a transformer with a tokenizer of the transformers package."""

    def __init__(self, model: Any, prompt: str) -> None:
        self._tokenizer = model.tokenizer
        self._pad = self._tokenizer.pad_token_id or 0
        self._types = "token_type_ids" in self._tokenizer.model_input_names
        self._left = self._tokenizer.padding_side == "left"
        self._prompt_length = None
        if prompt:
            # As sentence-transformers counts it: without what the tokenizer puts at the end.
            ids = self.tokenize([prompt], None)[0]
            ends = ids[-1] in self._tokenizer.all_special_ids
            self._prompt_length = len(ids) - int(ends)
        self.vocabulary = len(self._tokenizer)

    def tokenize(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        """Token ids with special tokens; cut to `limit` where it is given."""
        cut = {} if limit is None else {"max_length": limit}
        made = self._tokenizer(
            list(texts),
            add_special_tokens=True,
            padding=False,
            truncation=limit is not None,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **cut,
        )
        ids: list[list[int]] = made["input_ids"]
        return ids

    def collate(self, inputs: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Tensors, padded to the longest input."""
        longest = max(map(len, inputs))
        ids = numpy.full((len(inputs), longest), self._pad, dtype=numpy.int64)
        mask = numpy.zeros_like(ids)
        for row, tokens in enumerate(inputs):
            place = slice(longest - len(tokens), None) if self._left else slice(len(tokens))
            ids[row, place] = tokens
            mask[row, place] = 1
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "modality": "text",
        }
        if self._types:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        if self._prompt_length is not None:
            features["prompt_length"] = self._prompt_length
        return features


class _Static:
    """Features of an average of static word vectors (StaticEmbedding, model2vec)."""

    def __init__(self, model: Any) -> None:
        self._tokenizer = model[0].tokenizer
        self._tokenizer.no_padding()
        self.vocabulary = int(model[0].num_embeddings)

    def tokenize(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        """Token ids; cut to `limit` where it is given."""
        made = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [list(encoding.ids[:limit]) for encoding in made]

    def collate(self, inputs: Sequence[Sequence[int]]) -> dict[str, Any]:
        """All tokens one after the other, and where each input begins."""
        starts = numpy.cumsum([0, *map(len, inputs)])[:-1]
        tokens = [token for one in inputs for token in one]
        return {"input_ids": torch.tensor(tokens, dtype=torch.long), "offsets": torch.from_numpy(starts)}


def _features(model: Any, prompt: str) -> _Encoder | _Static:
    if isinstance(model[0], Transformer) and isinstance(model.tokenizer, PreTrainedTokenizerBase):
        return _Encoder(model, prompt)
    if isinstance(model[0], StaticEmbedding):
        return _Static(model)
    raise LoadError(
        f"the model begins with the module {type(model[0]).__name__}; this server takes text through a"
        " Transformer or a StaticEmbedding"
    )


# --- What a model says of itself -----------------------------------------------------------------


def _split(model: str) -> tuple[str, str]:
    """NAME[@REVISION] of the hub; a directory has no revision."""
    if model.startswith("/"):
        return model, ""
    name, _, revision = model.partition("@")
    return name, revision


def _default_prompt(model: Any) -> str:
    prompts: dict[str, str] = getattr(model, "prompts", None) or {}
    name = getattr(model, "default_prompt_name", None)
    return (prompts.get(name) or "") if name else ""


def _dtype(model: Any) -> torch.dtype:
    found: torch.dtype = next(model.parameters()).dtype
    return found


def _config(model: Any) -> Any:
    return getattr(getattr(model[0], "auto_model", None), "config", None)


def _max_tokens(model: Any, wanted: int | None) -> int:
    config = _config(model)
    positions = getattr(config, "max_position_embeddings", None)
    own = model.max_seq_length
    limit = own if own is not None and own < sys.maxsize >> 8 else positions or UNLIMITED
    if wanted is None:
        return int(limit)
    most = max(positions or limit, limit)
    if wanted > most:
        raise LoadError(f"max_input_tokens = {wanted} is more than the model's {most} positions")
    if limit != UNLIMITED:
        model.max_seq_length = wanted
    return wanted


def _dimensions(model: Any, allowed: bool) -> tuple[int, ...] | None:
    """None where embeddings may not be cut, () for any width, else the widths."""
    config = _config(model)
    widths = getattr(config, "matryoshka_dimensions", None)
    if isinstance(widths, list | tuple) and widths:
        return tuple(int(width) for width in widths)
    return () if allowed or getattr(config, "is_matryoshka", False) else None
