"""`[daemon]` and `[gpu]`, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from sagectl.config.engines import check_nested
from sagectl.config.names import did_you_mean
from sagectl.config.schema import DaemonTable, GpuTable
from sagectl.config.sections import Report, Section
from sagectl.config.units import describe
from sagectl.config.wording import faults

LATER_KINDS = ("embedding", "finetune")
"""Kinds of which a configuration may speak before they are installed."""


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """`[daemon]`. group: whose members may read, start and stop; None for nobody else. Sizes in bytes."""

    group: str | None = None
    log_max_size: int = 50 * 2**20
    log_keep: int = 5


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """`[gpu]`. Sizes in bytes; budgets as bytes or as a share such as "40%".

    simulated_process_ids: whether the simulated driver shows who holds its memory.
    simulated_numa: the node of each simulated GPU; empty where they have none.
    """

    backend: Literal["auto", "nvml", "simulated", "none"] = "auto"
    reserve: int = 2**30
    simulated_count: int = 1
    simulated_memory: int = 24 * 2**30
    nvlink: tuple[tuple[int, ...], ...] = ()
    simulated_process_ids: bool = True
    simulated_numa: tuple[int, ...] = ()
    budgets: Mapping[str, int | str] = field(default_factory=dict)


def daemon_settings(section: Section, report: Report) -> DaemonSettings:
    """Check `[daemon]`; the defaults where it is wrong, which the report says."""
    values = check_nested(section, DaemonTable, report)
    try:
        table = DaemonTable.model_validate(values)
    except ValidationError as error:
        report.faults(section, faults(error.errors(include_url=False), values))
        return DaemonSettings()
    return DaemonSettings(group=table.group, log_max_size=table.log_max_size, log_keep=table.log_keep)


def gpu_settings(section: Section, kinds: Iterable[str], report: Report) -> GpuSettings:
    """Check `[gpu]`; the defaults where it is wrong, which the report says."""
    values = check_nested(section, GpuTable, report)
    try:
        table = GpuTable.model_validate(values)
    except ValidationError as error:
        report.faults(section, faults(error.errors(include_url=False), values))
        return GpuSettings()
    known = sorted({*kinds, *LATER_KINDS})
    for kind in table.budgets:
        if kind not in known:
            remedy = did_you_mean(kind, known) or f"kinds are {', '.join(known)}"
            report.error(section, ("budgets", kind), f"no kind is called {describe(kind)}", remedy)
    for index, group in enumerate(table.simulated.nvlink):
        path = ("simulated", "nvlink", index)
        outside = [gpu for gpu in group if gpu >= table.simulated.count]
        if outside:
            remedy = f"there are {table.simulated.count}, counted from 0"
            report.error(section, path, f"there is no simulated GPU {outside[0]}", remedy)
        elif len(set(group)) != len(group) or len(group) < 2:
            report.error(section, path, "does not link different GPUs", "write groups such as [0, 1]")
    nodes, count = table.simulated.numa, table.simulated.count
    if nodes and len(nodes) != count:
        message = f"is {len(nodes)} long, and there are {count} simulated GPUs"
        report.error(section, ("simulated", "numa"), message, "write one node for each, counted from 0")
    return GpuSettings(
        backend=table.backend,
        reserve=table.reserve,
        simulated_count=table.simulated.count,
        simulated_memory=table.simulated.memory,
        nvlink=tuple(tuple(group) for group in table.simulated.nvlink),
        simulated_process_ids=table.simulated.process_ids,
        simulated_numa=tuple(nodes),
        budgets=table.budgets,
    )
