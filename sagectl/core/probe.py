"""What a probe's answer means, counted as Kubernetes counts."""

from __future__ import annotations

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
