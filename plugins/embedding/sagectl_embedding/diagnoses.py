"""x"""

from __future__ import annotations

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport
from sagectl_embedding.options import EmbeddingOptions


def explain(request: EngineRequest[EmbeddingOptions], failure: FailureReport) -> Diagnosis | None:
    """x"""
    return None
