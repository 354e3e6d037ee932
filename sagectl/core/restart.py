"""Whether a failed engine is started again, and when. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from sagectl.core.engine import RestartPolicy, RestartWhen

JITTER = 0.1
"""Delays vary by this share up and down, so that engines that fell together do not rise together."""

LEAST_DELAY = 0.1
"""Seconds before the restart of what never became ready, however short the user's delay: a loop of
failing starts must not take the machine."""

STABLE_AFTER = 60.0
"""Seconds of readiness after which the backoff starts from the beginning again."""


@dataclass(frozen=True, slots=True)
class History:
    """What counts against another start.

    starts: monotonic times of earlier automatic restarts.
    unready: automatic restarts in a row that never became ready.
    step: how often the delay was already doubled.
    """

    starts: tuple[float, ...] = ()
    unready: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Again:
    """Start again in `delay` seconds."""

    delay: float
    history: History


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stay failed. `limited`: because of the start limit."""

    text: str
    limited: bool = False


def backoff(policy: RestartPolicy, step: int, chance: float) -> float:
    """Seconds before the restart that follows `step` doublings: capped, then jittered."""
    # The exponent is bounded before the power is taken: 2.0**1024 overflows.
    delay = min(policy.max_delay, policy.delay * 2.0 ** min(step, 60))
    return delay * (1.0 + JITTER * (2.0 * chance - 1.0))


def decide(
    policy: RestartPolicy, history: History, *, now: float, chance: float, went_ready: bool, hopeless: bool
) -> Again | GiveUp:
    """Decide after a failure.

    Args:
        went_ready: the start that failed had been ready.
        hopeless: the failure is one that trying again cannot mend; only `always` tries anyway.
    """
    if policy.policy is RestartWhen.NO:
        return GiveUp('not restarted: restart.policy is "no"')
    if hopeless and policy.policy is not RestartWhen.ALWAYS:
        return GiveUp("not restarted: trying again would not help")
    unready = 0 if went_ready else history.unready
    recent = tuple(t for t in history.starts if t > now - policy.window)
    if policy.limit and len(recent) >= policy.limit:
        return GiveUp(f"{len(recent)} restarts within {policy.window:g} s are the limit", limited=True)
    if policy.limit and unready >= policy.limit:
        return GiveUp(f"{unready} restarts in a row never became ready, which is the limit", limited=True)
    delay = backoff(policy, history.step, chance)
    return Again(
        delay=delay if went_ready else max(delay, LEAST_DELAY),
        history=History(starts=(*recent, now), unready=unready + 1, step=history.step + 1),
    )
