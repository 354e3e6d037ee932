"""What a kind may do beyond `EngineKind`, asked of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sagectl.plugin.kind import EngineKind, EngineRequest, FactQuery, Facts, HttpProbe, LaunchPlan, Refusal
from sagectl.plugin.memory import MemoryEstimate


@dataclass(frozen=True, slots=True)
class Loading:
    """How an engine that runs takes in another model: requests that have to succeed, one after the other.

    undo: what leaves the engine as it was, where one of `steps` failed.
    """

    steps: tuple[HttpProbe, ...]
    undo: tuple[HttpProbe, ...] = ()


def default_gpus(kind: EngineKind[Any]) -> int:
    """How many GPUs the kind's engines use where the user says nothing."""
    found = getattr(kind, "default_gpus", 1)
    return found if isinstance(found, int) else 1


def estimate(
    kind: EngineKind[Any], request: EngineRequest[Any], facts: Facts
) -> MemoryEstimate | Refusal | None:
    """What the kind says of the memory that an engine needs; None where it says nothing."""
    found = getattr(kind, "estimate", None)
    answer: MemoryEstimate | Refusal | None = found(request, facts) if callable(found) else None
    return answer


def further_facts(kind: EngineKind[Any], request: EngineRequest[Any], facts: Facts) -> Sequence[FactQuery]:
    """What else the kind needs to know, given the answers to its first questions."""
    found = getattr(kind, "further_facts", None)
    asked: Sequence[FactQuery] = found(request, facts) if callable(found) else ()
    return asked


def can_load(kind: EngineKind[Any]) -> bool:
    """Whether engines of this kind may take in models while they run."""
    return callable(getattr(kind, "loading", None))


def loading(
    kind: EngineKind[Any],
    request: EngineRequest[Any],
    plan: LaunchPlan,
    facts: Facts,
    *,
    name: str,
    edition: int,
) -> Loading | Refusal:
    """How an engine takes in `request.model` as `name`. Only where the kind `can_load`."""
    found: Any = kind.loading  # type: ignore[attr-defined]
    answer: Loading | Refusal = found(request, plan, facts, name, edition)
    return answer
