"""Figures for Prometheus, in its text format 0.0.4. Sizes in bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sagectl.core import ledger
from sagectl.core.engine import SUBSTATES, Engine
from sagectl.core.ledger import Account

if TYPE_CHECKING:
    from sagectl.api.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Collects samples; those of one family stand together, under their help."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[list[str], list[str]]] = {}

    def family(self, name: str, kind: str, help_text: str) -> None:
        """Declare a family. One without samples is left out."""
        self._families[name] = ([f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"], [])

    def add(self, family: str, value: float, **labels: str) -> None:
        """Take a sample in."""
        self._families[family][1].append(f"{family}{_labels(labels)} {_number(value)}")

    def text(self) -> str:
        """All of it."""
        lines = [line for head, samples in self._families.values() if samples for line in (*head, *samples)]
        return "".join(f"{line}\n" for line in lines)


def collect(service: Service, now: float) -> str:
    """What `/metrics` answers. now: CLOCK_MONOTONIC, as in the engines' own times."""
    control, out = service.control, Exposition()
    _engines(out, control.engines(), now)
    _devices(out, control.accounts(), control.budgets())
    out.family("sagectl_gpu_queue_length", "gauge", "Engines that wait for GPU memory.")
    if (length := control.queue_length()) is not None:
        out.add("sagectl_gpu_queue_length", length)
    out.family("sagectl_uptime_seconds", "gauge", "Seconds since the API began to answer.")
    out.add("sagectl_uptime_seconds", round(now - service.started, 3))
    out.family("sagectl_api_connections", "gauge", "Open connections to the API.")
    out.add("sagectl_api_connections", service.connections)
    out.family("sagectl_api_requests_total", "counter", "Requests answered, by route and status.")
    for (method, path, code), count in sorted(service.answered.items()):
        out.add("sagectl_api_requests_total", count, method=method, path=path, code=str(code))
    return out.text()


def _engines(out: Exposition, engines: Sequence[Engine], now: float) -> None:
    counts = Counter((engine.state, engine.sub) for engine in engines)
    out.family("sagectl_engines", "gauge", "Engines by state.")
    for state, subs in SUBSTATES.items():
        for sub in sorted(subs):
            labels = {"state": state.value, "substate": sub.value.removesuffix("-failed")}
            out.add("sagectl_engines", counts[state, sub], **labels)
    out.family("sagectl_engine_up", "gauge", "1 where the engine is up.")
    out.family("sagectl_engine_restarts_total", "counter", "Automatic restarts.")
    out.family("sagectl_engine_uptime_seconds", "gauge", "Seconds since the engine's process started.")
    for engine in engines:
        labels = {"engine": engine.name, "kind": engine.spec.kind}
        out.add("sagectl_engine_up", int(engine.up), **labels)
        out.add("sagectl_engine_restarts_total", engine.restart_count, **labels)
        if engine.process:
            out.add("sagectl_engine_uptime_seconds", round(now - engine.process.started, 3), **labels)


_SIZES = (
    ("total", "Memory of the GPU."),
    ("used", "Memory that is used, as the driver says."),
    ("foreign", "Memory that processes hold which are no engine's."),
    ("reserved", "Memory that is reserved for engines."),
    ("measured", "Memory that engines measurably hold."),
    ("free", "Memory that may be given away; negative where more is held than there is."),
)


def _devices(out: Exposition, accounts: Iterable[Account], budgets: Mapping[str, int | str]) -> None:
    for size, help_text in _SIZES:
        out.family(f"sagectl_gpu_memory_{size}_bytes", "gauge", help_text)
    out.family("sagectl_gpu_utilization_ratio", "gauge", "Share of time in which the GPU was busy.")
    out.family("sagectl_gpu_temperature_celsius", "gauge", "Temperature of the GPU.")
    out.family("sagectl_gpu_power_watts", "gauge", "Power that the GPU draws.")
    out.family("sagectl_gpu_lost", "gauge", "1 where the GPU cannot be used any more.")
    out.family("sagectl_engine_gpu_memory_reserved_bytes", "gauge", "Memory reserved for the engine.")
    out.family(
        "sagectl_engine_gpu_memory_measured_bytes", "gauge", "Memory that the engine measurably holds."
    )
    out.family("sagectl_gpu_budget_bytes", "gauge", "Ceiling of all engines of a kind.")
    out.family("sagectl_gpu_budget_held_bytes", "gauge", "What engines of that kind hold of it.")
    for account in accounts:
        _device(out, account)
        index = str(account.gpu.index)
        for entry in account.entries:
            labels = {"engine": entry.engine, "kind": entry.kind, "gpu": index}
            out.add("sagectl_engine_gpu_memory_reserved_bytes", entry.reserved, **labels)
            out.add("sagectl_engine_gpu_memory_measured_bytes", entry.measured, **labels)
        for kind, budget in sorted(budgets.items()):
            ceiling = ledger.budget_on(budget, account.gpu.total)
            out.add("sagectl_gpu_budget_bytes", ceiling, gpu=index, kind=kind)
            out.add("sagectl_gpu_budget_held_bytes", account.held_by(kind), gpu=index, kind=kind)


def _device(out: Exposition, account: Account) -> None:
    gpu = account.gpu
    labels = {"gpu": str(gpu.index), "uuid": gpu.uuid}
    sizes = {
        "total": gpu.total,
        "used": gpu.used,
        "foreign": account.foreign,
        "reserved": account.reserved,
        "measured": account.measured,
        "free": account.free,
    }
    for name, size in sizes.items():
        out.add(f"sagectl_gpu_memory_{name}_bytes", size, **labels)
    known: dict[str, float | None] = {
        "utilization_ratio": gpu.utilization,
        "temperature_celsius": gpu.temperature,
        "power_watts": gpu.power,
    }
    for name, figure in known.items():
        if figure is not None:
            out.add(f"sagectl_gpu_{name}", figure, **labels)
    out.add("sagectl_gpu_lost", int(gpu.lost is not None), **labels)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return repr(value) if math.isfinite(value) else "NaN"


def _labels(labels: Mapping[str, str]) -> str:
    escaped = (
        f'{name}="{value}"'
        for name, text in labels.items()
        for value in [text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")]
    )
    return "{" + ",".join(escaped) + "}" if labels else ""
