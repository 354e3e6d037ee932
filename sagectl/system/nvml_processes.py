"""Who holds memory on a GPU, and whether the driver can tell us at all.

In a container the driver may list nobody, or the host's process ids, which are not ours and may by
chance be those of other processes here. Then the answer is None, and use is attributed by difference.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sagectl.core.gpu import GpuProcess
from sagectl.system.nvml_library import Nvml, tell

FIRST_NAMESPACE = "pid:[4026531836]"  # the kernel's fixed number of the namespace that it boots with
DEVICES = ("/dev/nvidia", "/dev/dxg")


class Listing:
    """Process lists of one driver. What was once seen to work is trusted from then on."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._shown = False
        self._hidden = False
        try:
            self._first = os.readlink(proc / "self/ns/pid") == FIRST_NAMESPACE
        except OSError:
            self._first = False

    def processes(self, api: Nvml, handle: Any, in_use: bool) -> tuple[GpuProcess, ...] | None:
        """Those on the GPU. None where the driver shows none, or others than ours.

        in_use: some process must hold memory there. Raises NvmlFailure where the GPU is gone.
        """
        listed = _merged(api, handle)
        if listed is None:
            return None
        if self._first:
            ours = listed
        else:
            ours = {pid: used or None for pid, used in listed.items() if self._holds(pid) is not False}
        if ours and (self._first or any(self._holds(pid) for pid in ours)):
            self._shown, self._hidden = True, False
        elif not self._shown and not ours and (in_use or listed):
            self._hidden = True
        if self._hidden:
            return None
        return tuple(GpuProcess(pid, used) for pid, used in sorted(ours.items()))

    def _holds(self, pid: int) -> bool | None:
        """Whether a process of ours with this id has the driver open; None where we may not look."""
        directory = f"{self._proc}/{pid}/fd"
        try:
            return any(os.readlink(f"{directory}/{fd}").startswith(DEVICES) for fd in os.listdir(directory))
        except PermissionError:
            return None
        except OSError:
            return False


def _merged(api: Nvml, handle: Any) -> dict[int, int | None] | None:
    """Compute, graphics and MPS processes by id; None where the driver does not tell.

    One that is in several lists has the same memory in each of them. 0 is nobody's id: the kernel's word
    for a process of another namespace.
    """
    compute = tell(api, lambda: api.nvmlDeviceGetComputeRunningProcesses(handle))
    if compute is None:
        return None
    graphics = tell(api, lambda: api.nvmlDeviceGetGraphicsRunningProcesses(handle)) or ()
    shared = tell(api, lambda: api.nvmlDeviceGetMPSComputeRunningProcesses(handle)) or ()
    found: dict[int, int | None] = {}
    for row in (row for row in (*compute, *graphics, *shared) if row.pid):
        known = found.get(row.pid)
        used = row.usedGpuMemory
        found[row.pid] = known if used is None else max(used, known or 0)
    return found
