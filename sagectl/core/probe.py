"""What a probe's answer means, counted as Kubernetes counts."""

from __future__ import annotations

from dataclasses import dataclass

from sagectl.core.engine import ProbePolicy
from sagectl.core.events import ProbeFailed, ProbeSucceeded


def verdict(policy: ProbePolicy, failures: int, answer: ProbeSucceeded | ProbeFailed) -> tuple[int, bool]:
    """Count one answer: `(failures in a row, whether the threshold is reached)`.

    A timeout while requests or tokens advance is a busy engine, not a dead one, and counts as
    success; a wrong answer or a refused connection always counts.
    """
    if isinstance(answer, ProbeSucceeded) or (answer.timed_out and answer.advancing):
        return 0, False
    return failures + 1, failures + 1 >= policy.failures


def progress_interval(policy: ProbePolicy) -> float:
    """Seconds between two looks at a starting engine: often enough to time its silence fairly."""
    return min(30.0, max(0.05, policy.startup_timeout / 4))


GROWTH = 1 << 20
"""Bytes of memory or of reading below which a starting engine is not said to advance."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What shows that a starting engine works: bytes logged, resident and read, of its whole tree."""

    log_written: int
    rss_bytes: int
    read_bytes: int


def advance(before: Measurement | None, now: Measurement) -> str | None:
    """In which way the engine advanced between two measurements; None where in none.

    The first measurement has nothing to be compared with, and counts as an advance.
    """
    if before is None:
        return "started"
    if now.log_written > before.log_written:
        return "logged"
    if now.rss_bytes >= before.rss_bytes + GROWTH:
        return "grew"
    if now.read_bytes >= before.read_bytes + GROWTH:
        return "read"
    return None
