"""The engine kind `llm`: a language model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagectl.plugin import EngineKind, hookimpl
from sagectl_llm.kind import LlmKind

__all__ = ["LlmKind", "sagectl_engine_kinds"]


@hookimpl
def sagectl_engine_kinds() -> Sequence[EngineKind[Any]]:
    """The kind `llm`."""
    return (LlmKind(),)
