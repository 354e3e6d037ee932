"""What sagectl uses of NVML, through nvidia-ml-py, and what NVML's errors mean to people."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 3, 4, 6
UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 1, 9, 12, 13
GPU_IS_LOST, RESET_REQUIRED, MISMATCH, GPU_NOT_FOUND, UNKNOWN = 15, 16, 18, 28, 999

DRIVER_GONE = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, MISMATCH})
"""Errors after which NVML answers nothing until it is initialised again."""
DEVICE_GONE = frozenset({GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND})
"""Errors after which one GPU answers nothing; others may come and go."""

_TROUBLE = {
    DRIVER_NOT_LOADED: "NVIDIA's kernel module is not loaded: load it with `modprobe nvidia`, and see `dmesg`"
    " for why it does not load",
    LIBRARY_NOT_FOUND: "NVIDIA's library libnvidia-ml.so.1 is not installed: install the driver, or set"
    ' backend = "none" in [gpu]',
    MISMATCH: "NVIDIA's kernel module and library are of different versions, as after an update of the"
    " driver: reboot, or load the new module and restart sagectld",
    NO_PERMISSION: "NVIDIA's driver refuses this user: the files /dev/nvidia* must be readable and writable",
    UNINITIALIZED: "NVIDIA's driver was unloaded",
}
_LOST = {
    GPU_IS_LOST: "has fallen off the bus: see `dmesg` for an Xid, then reset it or reboot",
    RESET_REQUIRED: "must be reset: end what runs on it, then `nvidia-smi --gpu-reset`",
    GPU_NOT_FOUND: "is not there any more: see `dmesg` for an Xid, then reset it or reboot",
    NO_PERMISSION: "refuses this user: its file /dev/nvidia* must be readable and writable",
    NOT_SUPPORTED: "does not say how much memory it has, so nothing can be placed on it",
}


class Nvml(Protocol):
    """The functions of nvidia-ml-py that are called. Handles are opaque; all raise NVMLError."""

    NVMLError: type[Exception]
    nvmlMemory_v2: int
    NVML_TEMPERATURE_GPU: int
    NVML_NVLINK_MAX_LINKS: int
    NVML_NVLINK_DEVICE_TYPE_SWITCH: int
    NVML_AFFINITY_SCOPE_NODE: int
    NVML_DEVICE_MIG_ENABLE: int

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> str: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...
    def nvmlDeviceGetName(self, handle: Any) -> str: ...
    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Sequence[Any]: ...
    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> Sequence[Any]: ...
    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle: Any) -> Sequence[Any]: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int: ...
    def nvmlDeviceGetTemperatureV(self, handle: Any, sensor: int) -> int: ...
    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int: ...
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int: ...
    def nvmlDeviceGetMigMode(self, handle: Any) -> Sequence[int]: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any: ...
    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> int: ...
    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: Any, link: int) -> int: ...
    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: Any, link: int) -> Any: ...
    def nvmlDeviceGetMemoryAffinity(self, handle: Any, size: int, scope: int) -> Sequence[int]: ...
    def nvmlDeviceGetCpuAffinity(self, handle: Any, size: int) -> Sequence[int]: ...


class NvmlFailure(Exception):
    """A call failed. code: NVML's; -1 where nvidia-ml-py itself is missing or does not fit."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    def trouble(self) -> str:
        """A sentence, where all of NVML is meant."""
        return f"{_TROUBLE.get(self.code, f'NVML does not answer: {self}')}."

    def lost(self, name: str) -> str:
        """A sentence, where one GPU is meant."""
        return f"{name} {_LOST.get(self.code, f'does not answer: {self}')}."


def load() -> Nvml:
    """nvidia-ml-py, imported only here. Raises NvmlFailure."""
    try:
        return cast(Nvml, importlib.import_module("pynvml"))
    except ImportError as error:
        raise NvmlFailure(-1, f"nvidia-ml-py cannot be imported ({error})") from error


def ask(api: Nvml, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of NVML. Raises NvmlFailure alone."""
    try:
        return function(*arguments)
    except api.NVMLError as error:
        raise NvmlFailure(int(getattr(error, "value", UNKNOWN)), str(error)) from error
    except Exception as error:
        # nvidia-ml-py raises others where it and the driver's library do not fit each other, or a driver in
        # trouble answers text that is none: whatever it is, it must not end the daemon.
        raise NvmlFailure(FUNCTION_NOT_FOUND, f"{type(error).__name__}: {error}") from error


def tell(api: Nvml, function: Callable[..., T], *arguments: Any) -> T | None:
    """The same for what not every GPU tells: None where this one does not.

    Raises NvmlFailure where the GPU or the driver is gone.
    """
    try:
        return ask(api, function, *arguments)
    except NvmlFailure as failure:
        if failure.code in DRIVER_GONE or failure.code in DEVICE_GONE:
            raise
        return None
