"""What `GET /v1/management/gpu` answers, made up piece by piece."""

from __future__ import annotations

from typing import Any


def engine(name: str, reserved: float, measured: float, phase: str = "resident") -> dict[str, Any]:
    """An engine's part of a GPU, GiB."""
    return {
        "name": name,
        "engine_kind": "llm",
        "phase": phase,
        "reserved_gb": reserved,
        "measured_gb": measured,
    }


def device(**figures: Any) -> dict[str, Any]:
    """A GPU of 24 GiB that nobody uses, unless `figures` say otherwise."""
    engines = figures.get("engines", [])
    return {
        "gpu_id": 0,
        "uuid": "GPU-0",
        "name": "A card",
        "memory_total_gb": 24.0,
        "memory_used_gb": 0.0,
        "memory_free_gb": 23.0,
        "memory_reserved_gb": sum(one["reserved_gb"] for one in engines),
        "memory_measured_gb": sum(one["measured_gb"] for one in engines),
        "memory_foreign_gb": 0.0,
        "memory_kept_free_gb": 1.0,
        "utilization": None,
        "temperature_celsius": None,
        "power_watts": None,
        "power_limit_watts": None,
        "numa_node": None,
        "cpus": [],
        "nvlink": [],
        "mig_parent": None,
        "lost": None,
        "is_mock": False,
        "attribution": "process",
        "engines": [],
        "foreign_processes": [],
        "budgets": {},
        **figures,
    }


def waiting(name: str, reason: str, needed: float = 20.0) -> dict[str, Any]:
    """One that waits for memory."""
    return {
        "name": name,
        "priority": "normal",
        "needed_gb": needed,
        "reason": reason,
        "waiting_for": [],
    }


def gpus(*devices: dict[str, Any], **figures: Any) -> dict[str, Any]:
    """The whole answer."""
    return {
        "backend": "nvml",
        "managed": True,
        "is_mock": False,
        "driver": "575.57",
        "trouble": None,
        "devices": list(devices),
        "queue": [],
        **figures,
    }
