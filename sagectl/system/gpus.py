"""The machine's GPUs, by whichever back end there is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sagectl.config.settings import GpuSettings
from sagectl.core.gpu import GpuReading
from sagectl.core.sizes import GIB
from sagectl.simulated_device import DIRECTORY
from sagectl.system.nvml import NvmlGpus
from sagectl.system.nvml_library import Nvml, load
from sagectl.system.simulated_gpus import SimulatedGpus, SimulatedOptions

MOCK_COUNT = "SAGE_GPU_MOCK_COUNT"
MOCK_MEMORY = "SAGE_GPU_MOCK_MEMORY_GB"
MOST = 64
LOOK_AGAIN = 30.0  # seconds between looks for a driver that is installed and was not running


class Backend(Protocol):
    """One way to read GPUs."""

    backend: str

    def read(self) -> GpuReading:
        """All GPUs now; raises nothing."""

    def close(self) -> None:
        """Let go of the driver; a later reading opens it again."""


class Gpus:
    """Chooses the back end at the first reading, and reads.

    directory: where simulated GPUs are or shall be. environ: where SAGE_GPU_MOCK_* may choose them.
    Under `auto`: these variables, else NVML where it shows a GPU, else `none`; then NVML is asked again
    every 30 seconds, for a driver that loads late, and `none` may become `nvml`.
    """

    def __init__(
        self,
        settings: GpuSettings,
        directory: Path,
        environ: Mapping[str, str] = os.environ,
        *,
        library: Callable[[], Nvml] = load,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._environ = environ
        self._library = library
        self._clock = clock
        self._backend: Backend | None = None
        self._look_again = 0.0
        self._busy = threading.Lock()
        self._since = 0.0
        self._last = GpuReading("none")

    def read(self, patience: float | None = None) -> GpuReading:
        """All GPUs now; raises nothing. To be called in a thread: it blocks while the driver does.

        A driver in trouble may hang for good, in a call that no signal ends. patience: seconds after which
        the last known GPUs are answered, with that as `trouble`; the call goes on in a thread of its own,
        and readings meanwhile answer so at once, without another thread. None waits.
        """
        if not self._busy.acquire(blocking=False):
            return self._unanswered()
        self._since = self._clock()
        if patience is None:
            return self._read()
        # Not of an executor: the interpreter would wait for its thread at exit.
        thread = threading.Thread(target=self._read, name="gpus", daemon=True)
        thread.start()
        thread.join(patience)
        return self._unanswered() if self._busy.locked() else self._last

    def environment(self) -> dict[str, str]:
        """What engines need beside CUDA_VISIBLE_DEVICES: for simulated GPUs, where these are.

        Known from the first reading on.
        """
        simulated = isinstance(self._backend, SimulatedGpus)
        return {DIRECTORY: os.path.realpath(self._directory)} if simulated else {}

    def describe(self) -> str:
        """The back end and the number of GPUs, for the log, as of the last reading."""
        reading = self._last
        if reading.backend == "none":
            return "no GPUs are managed here"
        count = f"{len(reading.gpus)} GPU{'' if len(reading.gpus) == 1 else 's'}"
        how = f"NVML, driver {reading.driver}" if reading.backend == "nvml" else "simulated"
        return f"{count} ({how})" + (f": {reading.trouble}" if reading.trouble else "")

    def close(self) -> None:
        """Let go of the driver; call it before another program takes this process's place.

        Where a reading hangs, nothing is let go: it would hang too.
        """
        if self._busy.acquire(blocking=False):
            try:
                if self._backend is not None:
                    self._backend.close()
            finally:
                self._busy.release()

    def _read(self) -> GpuReading:
        try:
            backend = self._backend or self._choose()
            self._last = backend.read() if backend else GpuReading("none", at=self._clock())
        except ValueError as error:  # of a variable in the environment
            self._last = GpuReading("simulated", at=self._clock(), trouble=str(error))
        finally:
            last = self._last
            self._busy.release()
        return last

    def _unanswered(self) -> GpuReading:
        waited = self._clock() - self._since
        trouble = f"The GPU driver has not answered for {waited:.0f} s: see `dmesg`."
        return replace(self._last, at=self._clock(), trouble=trouble)

    # --- The choice ---

    def _choose(self) -> Backend | None:
        match self._settings.backend:
            case "nvml":
                self._backend = NvmlGpus(self._library, self._clock)
            case "simulated":
                self._backend = self._simulated(self._settings)
            case "auto" if MOCK_COUNT in self._environ or MOCK_MEMORY in self._environ:
                self._backend = self._simulated(mocked(self._settings, self._environ))
            case "auto" if self._clock() >= self._look_again:
                self._backend = self._nvml_if_any()
        return self._backend

    def _nvml_if_any(self) -> Backend | None:
        self._look_again = self._clock() + LOOK_AGAIN
        backend = NvmlGpus(self._library, self._clock)
        reading = backend.read()
        if reading.trouble or not reading.gpus:
            backend.close()
            return None
        return backend

    def _simulated(self, settings: GpuSettings) -> SimulatedGpus:
        options = SimulatedOptions(
            settings.simulated_count,
            settings.simulated_memory,
            settings.nvlink,
            settings.simulated_process_ids,
            settings.simulated_numa,
        )
        return SimulatedGpus(options, self._directory, self._clock)


def mocked(settings: GpuSettings, environ: Mapping[str, str]) -> GpuSettings:
    """The settings with what SAGE_GPU_MOCK_* say. Raises ValueError, with a sentence for people."""
    count, memory = settings.simulated_count, settings.simulated_memory
    if text := environ.get(MOCK_COUNT):
        if not (text.isascii() and text.isdigit() and len(text) < 4) or int(text) > MOST:
            raise ValueError(f"{MOCK_COUNT}={text} is no number of GPUs: write 0 to {MOST}.")
        count = int(text)
    if text := environ.get(MOCK_MEMORY):
        try:
            memory = int(float(text) * GIB)
        except (ValueError, OverflowError):
            memory = 0
        if not GIB // 1024 <= memory <= 2**44:
            raise ValueError(f"{MOCK_MEMORY}={text} is no size of a GPU: write GiB, such as 24 or 0.5.")
    return replace(settings, simulated_count=count, simulated_memory=memory)
