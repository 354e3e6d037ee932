"""Placeholder until the back ends arrive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sagectl.config.settings import GpuSettings
from sagectl.core.gpu import GpuReading


class Gpus:
    """Chooses the back end."""

    def __init__(self, settings: GpuSettings, directory: Path) -> None:
        self.settings = settings

    def read(self) -> GpuReading:
        """Measure."""
        return GpuReading("none")

    def environment(self) -> Mapping[str, str]:
        """Variables for engines."""
        return {}

    def close(self) -> None:
        """Let go."""
