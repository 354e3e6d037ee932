"""The engine kind `finetune`: LoRA, QLoRA and full fine-tuning of language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagectl.plugin import EngineKind, hookimpl
from sagectl_finetune.kind import FinetuneKind

__all__ = ["FinetuneKind", "sagectl_engine_kinds"]


@hookimpl
def sagectl_engine_kinds() -> Sequence[EngineKind[Any]]:
    """The kind `finetune`."""
    return (FinetuneKind(),)
