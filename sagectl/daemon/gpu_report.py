"""The GPU accounts as people and scripts read them: sizes in GiB, under INTERFACE's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sagectl.config.settings import GpuSettings
from sagectl.core import ledger
from sagectl.core.engine import Engine, EngineSpec
from sagectl.core.gpu import Gpu, GpuProcess
from sagectl.core.ledger import Account, Entry
from sagectl.core.placement import Need, Wanted
from sagectl.core.queueing import in_order
from sagectl.core.sizes import GIB, gib
from sagectl.core.sizing import Demand
from sagectl.daemon.memory import GpuMemory


def gb(size: int | None) -> float | None:
    """Bytes in GiB, to a MiB."""
    return None if size is None else round(size / GIB, 3)


def report(memory: GpuMemory) -> dict[str, Any]:
    """`GET /v1/management/gpu`."""
    reading = memory.reading
    budgets = memory.settings.budgets
    return {
        "backend": reading.backend,
        "managed": reading.managed,
        "is_mock": reading.backend == "simulated",
        "driver": reading.driver,
        "trouble": reading.trouble,
        "devices": [_device(account, memory, budgets) for account in memory.accounts()],
        "queue": _queue(memory),
    }


def reservations(memory: GpuMemory) -> list[dict[str, Any]]:
    """`status`'s `reservations`: the ledger, an entry for each engine and GPU."""
    return [{"engine": e.engine, "gpu_id": e.gpu, **_entry(e)} for e in memory.entries()]


def _device(account: Account, memory: GpuMemory, budgets: Mapping[str, int | str]) -> dict[str, Any]:
    gpu = account.gpu
    ours = {entry.engine for entry in account.entries}
    return {
        "gpu_id": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory_total_gb": gb(gpu.total),
        "memory_used_gb": gb(gpu.used),
        "memory_free_gb": gb(account.free),
        "memory_reserved_gb": gb(account.reserved),
        "memory_measured_gb": gb(account.measured),
        "memory_foreign_gb": gb(account.foreign),
        "memory_kept_free_gb": gb(account.kept_free),
        "utilization": gpu.utilization,
        "temperature_celsius": gpu.temperature,
        "power_watts": gpu.power,
        "power_limit_watts": gpu.power_limit,
        "numa_node": gpu.numa_node,
        "cpus": list(gpu.cpus),
        "nvlink": sorted(gpu.peers),
        "mig_parent": gpu.parent,
        "lost": gpu.lost,
        "is_mock": memory.reading.backend == "simulated",
        "attribution": "difference" if gpu.processes is None else "process",
        "engines": [{"name": entry.engine, **_entry(entry)} for entry in account.entries],
        "foreign_processes": None if gpu.processes is None else _foreign(gpu, memory.owned(ours)),
        "budgets": {kind: _budget(account, kind, budget) for kind, budget in sorted(budgets.items())},
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "engine_kind": entry.kind,
        "phase": entry.phase.value,
        "reserved_gb": gb(entry.reserved),
        "measured_gb": gb(entry.measured),
    }


def _budget(account: Account, kind: str, budget: int | str) -> dict[str, Any]:
    size, held = ledger.budget_on(budget, account.gpu.total), account.held_by(kind)
    return {"budget_gb": gb(size), "held_gb": gb(held), "left_gb": gb(size - held)}


def _foreign(gpu: Gpu, owned: set[int]) -> list[dict[str, Any]]:
    processes: Iterable[GpuProcess] = gpu.processes or ()
    return [
        {"pid": process.pid, "used_gb": gb(process.used), "command": _command(process.pid)}
        for process in processes
        if process.pid not in owned
    ]


def _command(pid: int) -> str | None:
    """The program's name; its arguments may hold what is nobody's business."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return None


def _queue(memory: GpuMemory) -> list[dict[str, Any]]:
    found = []
    for one in in_order(memory.waiting()):
        verdict = memory.verdicts.get(one.engine_id)
        found.append(
            {
                "name": one.wanted.name,
                "priority": one.priority.value,
                "needed_gb": needed_gb(memory, one.wanted),
                "reason": verdict.reason if verdict else "",
                "waiting_for": list(verdict.names) if verdict else [],
            }
        )
    return found


def needed_gb(memory: GpuMemory, wanted: Wanted) -> float | None:
    """GiB on the GPU that gives most, of the largest GPU where a share is asked for."""
    largest = max((gpu.total for gpu in memory.reading.gpus), default=0)
    return gb(max((need.on(largest) for need in wanted.layouts[0].needs), default=0))


def overdrawn(memory: GpuMemory, settings: GpuSettings) -> tuple[str, ...]:
    """What already runs and would not fit these settings any more. It goes on all the same."""
    found = []
    for account in ledger.accounts(memory.reading, memory.entries(), settings.reserve):
        index, total = account.gpu.index, account.gpu.total
        if settings.reserve >= total:
            found.append(
                f"GPU {index}: `reserve` is {gib(settings.reserve)} of {gib(total)}: nothing can start"
            )
        for kind, budget in sorted(settings.budgets.items()):
            size, held = ledger.budget_on(budget, total), account.held_by(kind)
            if held > size:
                names = ", ".join(e.engine for e in account.entries if e.kind == kind)
                found.append(
                    f"GPU {index}: the budget of {kind} is {gib(size)}, and {names} "
                    f"{'holds' if ',' not in names else 'hold'} {gib(held)}: what runs goes on, and what is "
                    "started from now on must fit"
                )
    return tuple(found)


def explanation(memory: GpuMemory, engine: Engine) -> dict[str, Any]:
    """`explain`'s figures: what the engine needs or holds, and how each GPU stands to that."""
    if not memory.managed or engine.spec.gpus == 0:
        return {"needed_gb": None, "devices": []}
    held, asked = engine.reservation, memory.asked(engine)
    if held is not None:
        need = Need(max(held.sizes))
    elif asked is not None:
        need = asked.wanted.layouts[0].needs[0]
    else:
        return {"needed_gb": None, "devices": [_row(a, engine, None, memory) for a in memory.accounts()]}
    accounts = memory.accounts()
    needed = gb(max((need.on(a.gpu.total) for a in accounts), default=need.size))
    return {
        **_figures(memory, engine),
        "needed_gb": needed,
        "size_from": held.source if held is not None else asked.source if asked is not None else None,
        "gpu_ids": list(held.gpu_ids) if held is not None else [],
        "placement": list(held.reasons) if held is not None else [],
        "devices": [_row(account, engine, need, memory) for account in accounts],
    }


def _figures(memory: GpuMemory, engine: Engine) -> dict[str, Any]:
    """What speaks against it now, where it waits for memory."""
    verdict = memory.verdicts.get(engine.id)
    if not engine.memory_wanted or verdict is None or verdict.room is None:
        return {}
    return {"arithmetic": list(verdict.room.arithmetic)}


def devices(memory: GpuMemory, spec: EngineSpec, asked: Demand) -> list[dict[str, Any]]:
    """How each GPU stands to an engine that is not defined."""
    need = asked.wanted.layouts[0].needs[0]
    return [_row(account, Engine("", spec), need, memory) for account in memory.accounts()]


def _row(account: Account, engine: Engine, need: Need | None, memory: GpuMemory) -> dict[str, Any]:
    """The GPU as it is for this engine, whose own part counts as free."""
    own = sum(entry.held for entry in account.entries if entry.engine == engine.name)
    budget = memory.settings.budgets.get(engine.spec.kind)
    left = None
    if budget is not None:
        total = ledger.budget_on(budget, account.gpu.total)
        left = total - account.held_by(engine.spec.kind, engine.name)
    free = account.free + own
    usable = free if left is None else min(free, left)
    needed = None if need is None else need.on(account.gpu.total)
    ids = engine.spec.gpu_ids
    able = account.gpu.lost is None and (ids is None or account.gpu.index in ids)
    return {
        "gpu_id": account.gpu.index,
        "total_gb": gb(account.gpu.total),
        "foreign_gb": gb(account.foreign),
        "reserved_gb": gb(sum(entry.held for entry in account.entries if entry.engine != engine.name)),
        "kept_free_gb": gb(account.kept_free),
        "budget_left_gb": gb(left),
        "free_gb": gb(free),
        "needed_gb": gb(needed),
        "fits": None if needed is None else usable >= needed and able,
    }
