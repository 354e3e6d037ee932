"""A look at what a job is going to read, before it is given any GPU: what is wrong costs nobody's memory.

The command is the kind's (`LaunchPlan.rehearsal`). It runs in the engine's environment and as its user, but
sees no GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sagectl.config import envfile
from sagectl.core.engine import EngineSpec
from sagectl.daemon import environment
from sagectl.daemon.accounts import account
from sagectl.plugin import EngineKind, EngineRequest, ExitStatus, FailureReport, LaunchPlan, Refusal
from sagectl.system.commands import run_command

log = logging.getLogger("sagectl.rehearsal")

LIMIT = 3600.0
"""Seconds; longer looks are given up, and the engine finds out by itself."""


async def trouble(
    spec: EngineSpec,
    plan: LaunchPlan,
    kind: EngineKind[Any],
    request: EngineRequest[Any],
    inherited: Mapping[str, str],
) -> Refusal | None:
    """Why the engine would fail, where its kind recognises that; else it is let try.

    Raises: whatever the kind does; LookupError, PermissionError, OSError, ValueError for its user and files.
    """
    user = account(spec.user)
    env = environment.compose(
        inherited,
        plan=plan.env,
        env=spec.env,
        env_file=envfile.read(spec.env_file) if spec.env_file else {},
        gpus=environment.visible(()),
        user={} if user is None else user.variables,
    )
    who = None if user is None else (user.uid, user.gid, user.groups)
    result = await run_command(plan.rehearsal, env=env, cwd="/", user=who, timeout=LIMIT)
    if result.code == 0:
        return None
    status = None if result.code is None else ExitStatus(code=result.code)
    report = FailureReport("starting", status, tuple(result.output.splitlines()))
    found = kind.explain(request, report)
    if found is None:
        log.info("%s: the look at what it reads ended with %s: %s", spec.name, result.code, result.output)
        return None
    return Refusal(found.summary.rstrip("."), found.remedy.rstrip("."), found.arithmetic, found.retryable)
