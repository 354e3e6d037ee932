"""What is known of a machine's GPUs at one moment, however it was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU. used: bytes; None where the driver does not tell."""

    pid: int
    used: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one instance of a GPU in MIG mode.

    index: how users and `gpu_ids` call it, counted from 0 in the order of PCI addresses.
    visible: how CUDA_VISIBLE_DEVICES calls it, with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    total, used: bytes; used as the driver says, its own share included.
    processes: those that hold memory on it; None where the driver shows none (containers, sandboxes).
    peers: indices of the GPUs that NVLink connects it with.
    cpus: those that are local to it; empty where that is not known, as `numa_node` None is.
    parent: the UUID of the GPU that this is an instance of.
    lost: why it cannot be used any more; its figures are then the last ones known.
    """

    index: int
    uuid: str
    name: str
    total: int
    used: int
    visible: str = ""
    processes: tuple[GpuProcess, ...] | None = ()
    utilization: float | None = None
    """Share of time in which it was busy, 0 to 1."""
    temperature: int | None = None
    """°C."""
    power: float | None = None
    """W."""
    power_limit: float | None = None
    """W."""
    peers: frozenset[int] = frozenset()
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    parent: str | None = None
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """All GPUs at one moment.

    backend: `nvml`, `simulated`, or `none`, which means that sagectl does not manage GPUs here.
    at: CLOCK_MONOTONIC seconds.
    trouble: why nothing can be measured now (the driver was unloaded, say); GPUs are then the last known.
    """

    backend: str
    gpus: tuple[Gpu, ...] = ()
    at: float = 0.0
    trouble: str | None = None
    driver: str = ""

    @property
    def managed(self) -> bool:
        """There is something to account for."""
        return self.backend != "none"

    def gpu(self, index: int) -> Gpu | None:
        """The GPU of this index."""
        return next((gpu for gpu in self.gpus if gpu.index == index), None)
