"""nvidia-ml-py over GPUs in memory, with NVML's errors where a test sets them.

`NVMLError`, the constants, argument orders and field names are those of nvidia-ml-py; a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

GIB = 1 << 30
MIB = 1 << 20


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


@dataclass
class Card:
    """One GPU or MIG instance. failing: {function's name without nvmlDevice, or "*": error}.

    links: None where a link is down, "switch", "hidden", or the remote card's bus.
    """

    uuid: str
    bus: int = 0
    total: int = 24 * GIB
    reserved: int = 500 * MIB
    used: int = 0
    compute: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)
    shared: list[tuple[int, int | None]] = field(default_factory=list)
    links: list[int | str | None] = field(default_factory=list)
    mig: int | None = None
    instances: list[Card | None] = field(default_factory=list)
    cpus: tuple[int, ...] = (0, 1)
    nodes: tuple[int, ...] = (0,)
    failing: dict[str, int] = field(default_factory=dict)
    hiccups: dict[str, list[int]] = field(default_factory=dict)
    """Errors of the next calls alone."""


class FakeNvml:
    """The module. failing: errors of functions that are about no GPU."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 0x02000028
    NVML_TEMPERATURE_GPU = 0
    NVML_NVLINK_MAX_LINKS = 36
    NVML_NVLINK_DEVICE_TYPE_SWITCH = 2
    NVML_AFFINITY_SCOPE_NODE = 0
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, *cards: Card) -> None:
        self.cards = list(cards)
        self.failing: dict[str, int] = {}
        self.open = 0
        self.opened = 0
        self.calls: list[str] = []

    def __call__(self) -> FakeNvml:
        return self

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDevice"):
            raise AttributeError(name)
        method = getattr(self, "_" + name.removeprefix("nvmlDevice"))

        def call(card: Card, *arguments: Any) -> Any:
            short = name.removeprefix("nvmlDevice")
            self.calls.append(short)
            self._global(name)
            if card.hiccups.get(short):
                raise NVMLError(card.hiccups[short].pop())
            for key in (short, "*"):
                if key in card.failing:
                    raise NVMLError(card.failing[key])
            return method(card, *arguments)

        return call

    def _global(self, name: str) -> None:
        if not self.open and name != "nvmlInit":
            raise NVMLError(1)
        for key in (name, "*"):
            if key in self.failing:
                raise NVMLError(self.failing[key])

    def nvmlInit(self) -> None:
        self._global("nvmlInit")
        self.open += 1
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self._global("nvmlShutdown")
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._global("nvmlSystemGetDriverVersion")
        return "570.86.15"

    def nvmlDeviceGetCount(self) -> int:
        self._global("nvmlDeviceGetCount")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        self._global("nvmlDeviceGetHandleByIndex")
        card = self.cards[index]
        if (error := card.failing.get("GetHandleByIndex", card.failing.get("*"))) is not None:
            raise NVMLError(error)
        return card

    def _GetUUID(self, card: Card) -> str:
        return card.uuid

    def _GetName(self, card: Card) -> str:
        return "NVIDIA Test"

    def _GetPciInfo(self, card: Card) -> Any:
        return SimpleNamespace(domain=0, bus=card.bus, device=0)

    def _GetMemoryInfo(self, card: Card, version: int | None = None) -> Any:
        if version is None:
            used = card.used + card.reserved
            return SimpleNamespace(total=card.total, used=used, free=card.total - used)
        if "v2" in card.failing:
            raise NVMLError(card.failing["v2"])
        free = card.total - card.reserved - card.used
        return SimpleNamespace(total=card.total, reserved=card.reserved, used=card.used, free=free)

    def _GetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.compute]

    def _GetGraphicsRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.graphics]

    def _GetMPSComputeRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.shared]

    def _GetUtilizationRates(self, card: Card) -> Any:
        return SimpleNamespace(gpu=37, memory=12)

    def _GetTemperature(self, card: Card, sensor: int) -> int:
        return 61

    def _GetTemperatureV(self, card: Card, sensor: int) -> int:
        return 62

    def _GetPowerUsage(self, card: Card) -> int:
        return 123_456

    def _GetEnforcedPowerLimit(self, card: Card) -> int:
        return 700_000

    def _GetMigMode(self, card: Card) -> list[int]:
        if card.mig is None:
            raise NVMLError(3)
        return [card.mig, card.mig]

    def _GetMaxMigDeviceCount(self, card: Card) -> int:
        return 7

    def _GetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:
        found = card.instances[index] if index < len(card.instances) else None
        if found is None:
            raise NVMLError(6)
        return found

    def _GetNvLinkState(self, card: Card, link: int) -> int:
        if link >= len(card.links):
            raise NVMLError(2)
        return int(card.links[link] is not None)

    def _GetNvLinkRemoteDeviceType(self, card: Card, link: int) -> int:
        if card.links[link] == "hidden":
            raise NVMLError(3)
        return 2 if card.links[link] == "switch" else 0

    def _GetNvLinkRemotePciInfo(self, card: Card, link: int) -> Any:
        remote = card.links[link]
        if isinstance(remote, int):
            return SimpleNamespace(domain=0, bus=remote, device=0)
        return SimpleNamespace(domain=0xFFFFFFFF, bus=0xFF, device=0xFF)

    def _GetMemoryAffinity(self, card: Card, size: int, scope: int) -> list[int]:
        return [sum(1 << node for node in card.nodes)]

    def _GetCpuAffinity(self, card: Card, size: int) -> list[int]:
        words = [0, 0]
        for cpu in card.cpus:
            words[cpu // 64] |= 1 << cpu % 64
        return words
