"""NVIDIA's GPUs as the driver's own library shows them.

What does not change is read when NVML is initialised, the rest each time. A GPU that does not answer is
`lost` and keeps its last figures; while one is, NVML is initialised anew every 10 seconds, which also
closes the device files, as a reset needs. A driver that goes away is `trouble`, and each reading tries again.

NVML is kept open in between: opening it costs up to seconds a GPU where the driver does not persist.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sagectl.core.gpu import Gpu, GpuReading
from sagectl.system.nvml_facts import Facts, facts, peers
from sagectl.system.nvml_library import (
    DEVICE_GONE,
    DRIVER_GONE,
    GPU_NOT_FOUND,
    NO_PERMISSION,
    NOT_FOUND,
    NOT_SUPPORTED,
    Nvml,
    NvmlFailure,
    ask,
    load,
    tell,
)
from sagectl.system.nvml_processes import Listing

T = TypeVar("T")

REOPEN = 10.0  # seconds between attempts to find lost GPUs again
SHOWN = 64 << 20  # bytes in use, the driver's own excluded, that some process must hold
SHOWN_ROUGHLY = 1 << 30  # the same where the driver does not tell its own share apart


class NvmlGpus:
    """Reads them. Not for two threads at once; a call may take as long as the driver likes.

    index: NVML's when a GPU was first seen, and kept from then on, while `visible` is as CUDA counts now.
    A GPU in MIG mode is represented by its instances, numbered after the whole GPUs.
    """

    backend = "nvml"

    def __init__(
        self,
        library: Callable[[], Nvml] = load,
        clock: Callable[[], float] = time.monotonic,
        proc: Path = Path("/proc"),
        sysfs: Path = Path("/sys"),
    ) -> None:
        self._library = library
        self._clock = clock
        self._sysfs = sysfs
        self._api: Nvml | None = None
        self._driver = ""
        self._physical: list[Facts | tuple[int, NvmlFailure]] = []
        self._numbers: dict[str, int] = {}
        self._positions: dict[int, str] = {}
        self._instances: dict[str, Gpu] = {}
        self._gpus: tuple[Gpu, ...] = ()
        self._ailing = False
        self._reopen_at = 0.0
        self._listing = Listing(proc)

    def read(self) -> GpuReading:
        """All of them now. Raises nothing: what is wrong is `trouble`, or a GPU's `lost`."""
        now = self._clock()
        try:
            if self._api is not None and self._ailing and now >= self._reopen_at:
                self.close()
            api = self._api or self._open()
            self._ailing = False
            self._gpus = self._measured(api)
        except NvmlFailure as failure:
            self.close()
            return GpuReading(self.backend, self._gpus, self._clock(), failure.trouble(), self._driver)
        if self._ailing and now >= self._reopen_at:
            self._reopen_at = now + REOPEN
        return GpuReading(self.backend, self._gpus, self._clock(), driver=self._driver)

    def close(self) -> None:
        """Let go of the driver, whatever it says to that. A later reading opens it again."""
        api, self._api = self._api, None
        if api is not None:
            try:
                ask(api, api.nvmlShutdown)
            except NvmlFailure:
                return  # it is gone already

    # --- What is there ---

    def _open(self) -> Nvml:
        api = self._library()
        ask(api, api.nvmlInit)
        self._api = api  # from here on a failure must shut it down again
        self._driver = tell(api, api.nvmlSystemGetDriverVersion) or ""
        self._physical, self._instances = [], {}
        for position in range(ask(api, api.nvmlDeviceGetCount)):
            try:
                self._physical.append(facts(api, position, self._sysfs))
            except NvmlFailure as failure:
                if failure.code in DRIVER_GONE:
                    raise
                self._physical.append((position, failure))
        found = self._found()
        for one in found:
            number = self._numbers.get(one.gpu.uuid)
            if number is None:
                number = self._free_number(one.gpu.index)
                self._numbers[one.gpu.uuid] = number
            self._positions[one.gpu.index] = one.gpu.uuid
            one.gpu = replace(one.gpu, index=number)
        for one, linked in zip(found, peers(found), strict=True):
            one.gpu = replace(one.gpu, peers=linked)
        return api

    def _found(self) -> list[Facts]:
        return [one for one in self._physical if isinstance(one, Facts)]

    def _free_number(self, wanted: int) -> int:
        """The wanted one if nobody ever had it, else the first after all."""
        taken = set(self._numbers.values())
        return wanted if wanted not in taken else max(taken) + 1

    def _handles(self, api: Nvml, one: Facts) -> list[Any] | None:
        """Of its instances; None where MIG mode is off."""
        if not one.divisible:
            return None
        if ask(api, api.nvmlDeviceGetMigMode, one.handle)[0] != api.NVML_DEVICE_MIG_ENABLE:
            return None
        handles = []
        for number in range(ask(api, api.nvmlDeviceGetMaxMigDeviceCount, one.handle)):
            try:
                handles.append(ask(api, api.nvmlDeviceGetMigDeviceHandleByIndex, one.handle, number))
            except NvmlFailure as failure:
                if failure.code != NOT_FOUND:  # instances may have gaps between them
                    raise
        return handles

    def _instance(self, api: Nvml, whole: Gpu, handle: Any) -> Gpu:
        uuid = ask(api, api.nvmlDeviceGetUUID, handle)
        if uuid not in self._instances:
            number = self._numbers.setdefault(uuid, self._free_number(len(self._physical)))
            name = tell(api, api.nvmlDeviceGetName, handle) or f"{whole.name} MIG"
            self._instances[uuid] = replace(
                whole, index=number, uuid=uuid, name=name, visible=uuid, peers=frozenset(), parent=whole.uuid
            )
        return self._instances[uuid]

    # --- What is measured ---

    def _measured(self, api: Nvml) -> tuple[Gpu, ...]:
        gpus: dict[int, Gpu] = {}
        for one in self._physical:
            read = self._whole(api, one) if isinstance(one, Facts) else [self._unknown(*one)]
            gpus.update((gpu.index, gpu) for gpu in read)
        there = {one.gpu.uuid for one in self._found()}
        for gpu in self._gpus:
            # One whose place instances have taken is no loss; one that was never reached is listed above.
            if gpu.index not in gpus and gpu.uuid and gpu.uuid not in there:
                gpus[gpu.index] = self._vanished(gpu)
        if any(gpu.parent for gpu in gpus.values()):
            # Beside instances CUDA does not count as we do.
            gpus = {index: replace(gpu, visible=gpu.uuid or gpu.visible) for index, gpu in gpus.items()}
        return tuple(gpus[index] for index in sorted(gpus))

    def _whole(self, api: Nvml, one: Facts) -> list[Gpu]:
        """The GPU, or its instances. Raises NvmlFailure where the driver is gone."""
        try:
            handles = _twice(lambda: self._handles(api, one))
            if handles is None:
                return [self._device(api, one.gpu, one.handle, one.handle)]
            instances = [(self._instance(api, one.gpu, handle), handle) for handle in handles]
        except NvmlFailure as failure:
            known = [gpu for gpu in self._gpus if one.gpu.uuid in (gpu.uuid, gpu.parent)]
            return [self._lost(gpu, failure) for gpu in known or [one.gpu]]
        if not instances:
            why = f"GPU {one.gpu.index} is in MIG mode and has no instances: make some with `nvidia-smi mig`."
            return [replace(self._last(one.gpu), lost=why)]
        return [self._device(api, gpu, handle, one.handle) for gpu, handle in instances]

    def _device(self, api: Nvml, gpu: Gpu, handle: Any, whole: Any) -> Gpu:
        try:
            return _twice(lambda: self._figures(api, gpu, handle, whole))
        except NvmlFailure as failure:
            return self._lost(gpu, failure)

    def _figures(self, api: Nvml, gpu: Gpu, handle: Any, whole: Any) -> Gpu:
        total, used, allocated, least = _memory(api, handle)
        processes = self._listing.processes(api, handle, allocated >= least)
        rates = tell(api, api.nvmlDeviceGetUtilizationRates, handle)
        instance = gpu.parent is not None
        power = None if instance else tell(api, api.nvmlDeviceGetPowerUsage, handle)
        limit = None if instance else tell(api, api.nvmlDeviceGetEnforcedPowerLimit, handle)
        return replace(
            gpu,
            total=total,
            used=used,
            processes=processes,
            utilization=None if rates is None else rates.gpu / 100,
            temperature=_temperature(api, whole),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
        )

    # --- What is lost ---

    def _last(self, gpu: Gpu) -> Gpu:
        return next((known for known in self._gpus if known.uuid == gpu.uuid), gpu)

    def _lost(self, gpu: Gpu, failure: NvmlFailure) -> Gpu:
        if failure.code in DRIVER_GONE:
            raise failure
        if failure.code not in (NOT_SUPPORTED, NO_PERMISSION):
            self._ailing = True
        return replace(self._last(gpu), lost=failure.lost(f"GPU {gpu.index}"))

    def _vanished(self, gpu: Gpu) -> Gpu:
        if gpu.parent is None:
            self._ailing = True
            return replace(gpu, lost=gpu.lost or NvmlFailure(GPU_NOT_FOUND, "").lost(f"GPU {gpu.index}"))
        return replace(gpu, lost=f"GPU {gpu.index} was an instance of a GPU in MIG mode, and was removed.")

    def _unknown(self, position: int, failure: NvmlFailure) -> Gpu:
        """One that NVML counts and does not open: the one that was there before, if there was one."""
        uuid = self._positions.get(position, "")
        if uuid in {one.gpu.uuid for one in self._found()}:
            uuid = ""  # that one is elsewhere now
        index = self._numbers[uuid] if uuid else self._free_number(position)
        blank = Gpu(index=index, uuid=uuid, name="GPU", total=0, used=0, visible=str(position))
        return self._lost(blank, failure)


def _twice(function: Callable[[], T]) -> T:
    """Try again where that may help: engines shall not suffer from one hiccup of the driver."""
    try:
        return function()
    except NvmlFailure as failure:
        if failure.code in DRIVER_GONE or failure.code in DEVICE_GONE:
            raise
        return function()


def _memory(api: Nvml, handle: Any) -> tuple[int, int, int, int]:
    """Total, used with the driver's own share, used by processes, and what of that says there are some."""
    try:
        memory = ask(api, api.nvmlDeviceGetMemoryInfo, handle, api.nvmlMemory_v2)
        return memory.total, memory.total - memory.free, memory.used, SHOWN
    except NvmlFailure as failure:
        if failure.code in DRIVER_GONE or failure.code in DEVICE_GONE:
            raise
    memory = ask(api, api.nvmlDeviceGetMemoryInfo, handle)  # drivers before 510
    return memory.total, memory.total - memory.free, memory.used, SHOWN_ROUGHLY


def _temperature(api: Nvml, handle: Any) -> int | None:
    sensor = api.NVML_TEMPERATURE_GPU
    value = tell(api, lambda: api.nvmlDeviceGetTemperatureV(handle, sensor))
    return tell(api, lambda: api.nvmlDeviceGetTemperature(handle, sensor)) if value is None else value
