"""What this process may give to those that it starts: limits, priorities, CPUs."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagectl.config.machine import usable_cpus

CAP_SYS_NICE, CAP_SYS_RESOURCE = 23, 24
_LIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_OOM_SCORE = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True, slots=True)
class Powers:
    """What a process has, and so may pass on, and which rights it has to give more.

    hard: hard limits by the lower-case names behind RLIMIT_, -1 for unlimited.
    open_files: what the kernel gives nobody more of.
    nice, oom_score_adjust: its own. nice_ceiling: RLIMIT_NICE, 20 minus the best nice without rights.
    cpus: those that it could run on.
    """

    hard: Mapping[str, int]
    open_files: int
    nice: int
    nice_ceiling: int
    oom_score_adjust: int
    cpus: frozenset[int]
    any_limit: bool = False
    any_nice: bool = False
    any_oom_score: bool = False


def powers(oom_score_adjust: int | None) -> Powers:
    """Ours now.

    Args:
        oom_score_adjust: try this one where it is below ours and we lack the right to set any: what
            the kernel allows us then (no less than somebody with the right last set) stands nowhere.
    """
    rights = _rights()
    own = int(_OOM_SCORE.read_text())
    any_oom_score = bool(rights & 1 << CAP_SYS_RESOURCE)
    if oom_score_adjust is not None and oom_score_adjust < own and not any_oom_score:
        any_oom_score = _may_score(oom_score_adjust, own)
    return Powers(
        hard={name: resource.getrlimit(number)[1] for name, number in _LIMITS.items()},
        open_files=int(Path("/proc/sys/fs/nr_open").read_text()),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        nice_ceiling=resource.getrlimit(_LIMITS["nice"])[0],
        oom_score_adjust=own,
        cpus=usable_cpus(),
        any_limit=bool(rights & 1 << CAP_SYS_RESOURCE),
        any_nice=bool(rights & 1 << CAP_SYS_NICE),
        any_oom_score=any_oom_score,
    )


def _rights() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _may_score(wanted: int, own: int) -> bool:
    try:
        _OOM_SCORE.write_text(str(wanted))
    except PermissionError:
        return False
    _OOM_SCORE.write_text(str(own))
    return True
