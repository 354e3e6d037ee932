"""The hooks that a plugin package may implement, found through the entry point group `sagectl`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy

from sagectl.plugin.kind import EngineKind

PROJECT = "sagectl"
"""Name of the pluggy project and of the entry point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def sagectl_engine_kinds() -> Sequence[EngineKind[Any]]:
    """Return the engine kinds that this package brings.

    Called once when sagectl starts. It must not do I/O: a kind is pure. An exception here, or a
    value that is not an `EngineKind`, disables this package alone and is shown by `sagectl kinds`.
    """
    raise AssertionError("a hook specification is never called")
