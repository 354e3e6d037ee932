"""What NVML tells of a GPU that does not change while the driver runs: its place, CPUs and links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagectl.core.gpu import Gpu
from sagectl.system.nvml_library import Nvml, ask, tell

Address = tuple[int, int, int]
HIDDEN = 0xFFFFFFFF  # PCI domain of an NVSwitch that a virtual machine does not see
WORD = 64


@dataclass(frozen=True, slots=True)
class Links:
    """Where its active NVLinks lead: to these PCI addresses, or to a switch."""

    addresses: frozenset[Address] = frozenset()
    switched: bool = False


@dataclass(slots=True)
class Facts:
    """One GPU as NVML lists it. gpu: without what is measured; its peers are numbered by the caller."""

    handle: Any
    gpu: Gpu
    address: Address
    links: Links = field(default_factory=Links)
    divisible: bool = False
    """It knows MIG mode, on or off."""


def facts(api: Nvml, position: int, sysfs: Path) -> Facts:
    """Read them. position: NVML's index. Raises NvmlFailure."""
    handle = ask(api, api.nvmlDeviceGetHandleByIndex, position)
    uuid = ask(api, api.nvmlDeviceGetUUID, handle)
    pci = tell(api, api.nvmlDeviceGetPciInfo, handle)
    address = (pci.domain, pci.bus, pci.device) if pci is not None else (HIDDEN, position, 0)
    gpu = Gpu(
        index=position,
        uuid=uuid,
        name=tell(api, api.nvmlDeviceGetName, handle) or "GPU",
        total=0,
        used=0,
        visible=str(position),
        numa_node=_numa_node(api, handle, address, sysfs),
        cpus=_cpus(api, handle),
    )
    divisible = tell(api, api.nvmlDeviceGetMigMode, handle) is not None
    return Facts(handle, gpu, address, _links(api, handle), divisible)


def peers(known: Sequence[Facts]) -> list[frozenset[int]]:
    """The indices of each one's NVLink peers. Those on a switch are all connected with each other.

    A link counts where either end shows it.
    """
    found = []
    for one in known:
        found.append(
            frozenset(
                other.gpu.index
                for other in known
                if other is not one
                and (
                    (one.links.switched and other.links.switched)
                    or other.address in one.links.addresses
                    or one.address in other.links.addresses
                )
            )
        )
    return found


def _links(api: Nvml, handle: Any) -> Links:
    addresses, switched = set[Address](), False
    for link in range(api.NVML_NVLINK_MAX_LINKS):
        active = tell(api, api.nvmlDeviceGetNvLinkState, handle, link)
        if active is None:  # it has no more links, or none
            break
        if not active:
            continue
        kind = tell(api, api.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
        remote = tell(api, api.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
        if kind == api.NVML_NVLINK_DEVICE_TYPE_SWITCH or (remote is not None and remote.domain == HIDDEN):
            switched = True
        elif remote is not None:
            addresses.add((remote.domain, remote.bus, remote.device))
    return Links(frozenset(addresses), switched)


def _numa_node(api: Nvml, handle: Any, address: Address, sysfs: Path) -> int | None:
    """The node that is nearest; None where there is no one such, as in most virtual machines.

    nvmlDeviceGetNumaNodeId is something else: the node that the GPU's own memory is.
    """
    words = tell(api, api.nvmlDeviceGetMemoryAffinity, handle, 1, api.NVML_AFFINITY_SCOPE_NODE)
    nodes = _bits(words or ())
    if len(nodes) == 1:
        return nodes[0]
    domain, bus, device = address
    try:
        path = sysfs / "bus/pci/devices" / f"{domain:04x}:{bus:02x}:{device:02x}.0" / "numa_node"
        node = int(path.read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _cpus(api: Nvml, handle: Any) -> tuple[int, ...]:
    words = -(-(os.cpu_count() or 1) // WORD)
    configured = os.sysconf("SC_NPROCESSORS_CONF")
    return _bits(tell(api, api.nvmlDeviceGetCpuAffinity, handle, max(words, -(-configured // WORD))) or ())


def _bits(words: Sequence[int]) -> tuple[int, ...]:
    return tuple(
        number * WORD + bit for number, word in enumerate(words) for bit in range(WORD) if word >> bit & 1
    )
