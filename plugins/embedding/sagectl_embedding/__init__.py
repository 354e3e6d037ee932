"""The engine kind `embedding`: texts into vectors behind OpenAI's /v1/embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagectl.plugin import EngineKind, hookimpl
from sagectl_embedding.kind import EmbeddingKind

__all__ = ["EmbeddingKind", "sagectl_engine_kinds"]


@hookimpl
def sagectl_engine_kinds() -> Sequence[EngineKind[Any]]:
    """The kind `embedding`."""
    return (EmbeddingKind(),)
