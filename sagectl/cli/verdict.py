"""Is what was asked for so yet? Pure: from an engine before the request and now."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagectl.client import Engine

GRACE = 2.0
"""Seconds after a request in which an engine that looks as before may just not have heard of it."""
SETTLED = 1.0
"""Seconds that an engine without a probe must be up: what dies at once never was. supervisord's startsecs."""


class Goal(Enum):
    """What a verb waits for; the value is its noun in messages."""

    UP = "start"
    DOWN = "stop"
    RESTARTED = "restart"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a wait. ok: it is as asked for. why: what else happened instead, or a remark."""

    ok: bool
    why: str = ""


def judge(goal: Goal, before: Engine, now: Engine | None, passed: float) -> Verdict | None:
    """The verdict, None while it is still under way.

    Args:
        before: the engine before the request.
        now: the engine as it is, None where the daemon does not know it any more.
        passed: seconds since the request.
    """
    if now is None:
        return Verdict(goal is Goal.DOWN, "" if goal is Goal.DOWN else "it was removed meanwhile")
    if goal is Goal.DOWN:
        return _down(before, now)
    heard = passed > GRACE or _changed(before, now)
    return _up(now, heard) if goal is Goal.UP else _restarted(before, now, heard)


def _changed(before: Engine, now: Engine) -> bool:
    keys = ("state", "substate", "since", "started_at", "pid", "desired")
    return any(before.get(key) != now.get(key) for key in keys)


def _down(before: Engine, now: Engine) -> Verdict | None:
    if now["state"] == "inactive":
        return Verdict(True)
    if now["state"] == "failed":
        return Verdict(True, "" if before["state"] == "failed" else now["reason"])
    if now["desired"] == "running" and now["state"] == "active" and _changed(before, now):
        return Verdict(False, "it was started again meanwhile")
    return None


def _up(now: Engine, heard: bool) -> Verdict | None:
    if now["substate"] == "completed" and heard:
        return Verdict(True)
    if now["state"] == "active" and now["substate"] != "unready":
        return Verdict(True) if settles_in(now) <= 0 else None
    if not heard:
        return None
    if now["state"] == "failed" or now.get("blocked"):
        return Verdict(False, now["reason"])
    if now["state"] in ("inactive", "deactivating") and now["desired"] == "stopped":
        return Verdict(False, "it was stopped meanwhile")
    return None


def settles_in(now: Engine) -> float:
    """Seconds until an engine that is up counts as up."""
    if now["state"] != "active" or now.get("probed") is not False or now.get("mode") != "serve":
        return 0.0
    return SETTLED - (now.get("uptime_seconds") or 0.0)


def _restarted(before: Engine, now: Engine, heard: bool) -> Verdict | None:
    if now["state"] == "active" and before["state"] == "active" and _same_process(before, now):
        return None
    return _up(now, heard)


def _same_process(before: Engine, now: Engine) -> bool:
    return bool(before.get("pid") == now.get("pid") and before.get("started_at") == now.get("started_at"))
