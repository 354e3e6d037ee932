"""GPUs for development and tests: what they are is configured, what is held on them is real.

Each is a sparse file, `gpu0`, `gpu1`, …, as large as its memory; processes hold memory by mapping it (see
`sagectl.simulated_device`). A file that is removed is a GPU that fell off the bus, a directory that is
removed a driver that was unloaded; put back, they are there again. What was held of a file that was
deleted is not held of another one in its place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sagectl.core.gpu import Gpu, GpuProcess, GpuReading
from sagectl.simulated_device import held

MADE = ".made"  # how many devices were made here: one that is missing fell off and is not made again


@dataclass(frozen=True, slots=True)
class SimulatedOptions:
    """What the GPUs are. memory: bytes each. nvlink: groups of connected ones.

    process_ids: whether the driver shows who holds memory. numa: the node of each, or nothing.
    """

    count: int = 1
    memory: int = 24 << 30
    nvlink: tuple[tuple[int, ...], ...] = ()
    process_ids: bool = True
    numa: tuple[int, ...] = ()


class SimulatedGpus:
    """Reads them. directory: where they are, made by the first reading if nothing ever was there.

    Only root sees the mappings of other users' processes; a daemon that is not root overlooks theirs.
    """

    backend = "simulated"

    def __init__(
        self, options: SimulatedOptions, directory: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.directory = Path(os.path.realpath(directory))
        self._options = options
        self._clock = clock
        self._gpus: tuple[Gpu, ...] = ()
        self._opened = False

    def read(self) -> GpuReading:
        """All of them now. Raises nothing: what is wrong is `trouble`, or a GPU's `lost`."""
        try:
            if not self._opened:
                make(self.directory, self._options)
                self._gpus = tuple(self._static(index) for index in range(self._options.count))
                self._opened = True
            self._gpus = self._measured()
        except OSError as error:
            what = f"The simulated driver is not there: {error.strerror or error} ({self.directory})."
            return GpuReading(self.backend, self._gpus, self._clock(), what, "simulated")
        return GpuReading(self.backend, self._gpus, self._clock(), driver="simulated")

    def close(self) -> None:
        """Nothing is held; the devices stay for those who use them."""

    def _measured(self) -> tuple[Gpu, ...]:
        present = set(os.listdir(self.directory))
        holders = held(str(self.directory))
        found = tuple(self._device(gpu, f"gpu{gpu.index}" in present, holders) for gpu in self._gpus)
        os.stat(self.directory)  # where the whole directory went meanwhile, no single GPU is lost
        return found

    def _device(self, gpu: Gpu, present: bool, holders: dict[int, dict[int, int]]) -> Gpu:
        try:
            total = os.stat(self.directory / f"gpu{gpu.index}").st_size if present else 0
        except FileNotFoundError:
            present = False
        if not present:
            return replace(gpu, lost=f"GPU {gpu.index} has fallen off the bus: its file was removed.")
        mine = holders.get(gpu.index, {})
        shown = tuple(GpuProcess(pid, size) for pid, size in sorted(mine.items()))
        used = min(sum(mine.values()), total)  # who maps without asking gets no more than there is
        processes = shown if self._options.process_ids else None
        return replace(gpu, total=total, used=used, processes=processes, lost=None)

    def _static(self, index: int) -> Gpu:
        options = self._options
        groups = (set(group) for group in options.nvlink if index in group)
        peers = {peer for group in groups for peer in group if peer < options.count} - {index}
        node = options.numa[index] if index < len(options.numa) else None
        return Gpu(
            index=index,
            uuid=f"GPU-simulated-{index}",
            name="Simulated GPU",
            total=options.memory,
            used=0,
            visible=str(index),
            processes=() if options.process_ids else None,
            peers=frozenset(peers),
            numa_node=node,
            cpus=() if node is None else _cpus(node, max(options.numa) + 1),
        )


def _cpus(node: int, nodes: int) -> tuple[int, ...]:
    """The CPUs that we may use, dealt to the nodes as evenly as can be; each node gets at least one."""
    allowed = sorted(os.sched_getaffinity(0))
    start, end = node * len(allowed) // nodes, (node + 1) * len(allowed) // nodes
    return tuple(allowed[start:end]) or (allowed[node % len(allowed)],)


def make(directory: Path, options: SimulatedOptions) -> None:
    """Make the devices that were never there, and give all their size. Raises OSError.

    One that was made once and is missing is left so: it has fallen off.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    marker = directory / MADE
    text = marker.read_bytes() if marker.exists() else b""
    made = int(text) if text.isdigit() else 0
    for index in range(options.count):
        path = directory / f"gpu{index}"
        if index < made and not path.exists():
            continue
        with open(path, "ab") as file:
            if file.tell() != options.memory:
                os.truncate(file.fileno(), options.memory)
            os.fchmod(file.fileno(), 0o644)  # engines may be another user's; reading is all they need
    if options.count > made:
        marker.write_text(str(options.count))
