"""The engine kind `exec`: any server at all, started from a command list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagectl.plugin import EngineKind, hookimpl
from sagectl_exec.kind import ExecKind

__all__ = ["ExecKind", "sagectl_engine_kinds"]


@hookimpl
def sagectl_engine_kinds() -> Sequence[EngineKind[Any]]:
    """The kind `exec`."""
    return (ExecKind(),)
