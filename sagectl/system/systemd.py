"""What systemd is doing with the daemon's unit right now."""

from __future__ import annotations

import asyncio
import logging

from sagectl.system.unit import Unit

log = logging.getLogger("sagectl.systemd")

JOB_SECONDS = 3.0
"""How long systemd may take to say what it is doing."""
KEEPING_JOBS = frozenset({"restart", "try-restart"})
"""Jobs that bring the daemon back at once, so that its engines need not stop."""


def job_of(unit: str, listed: str) -> str | None:
    """The type of the unit's job in what `systemctl list-jobs --no-legend` prints: `stop`, `restart`, ….

    >>> job_of("sagectld.service", "186 sagectld.service restart running")
    'restart'
    """
    for line in listed.splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] == unit:
            return words[2]
    return None


async def job(unit: Unit) -> str | None:
    """What systemd is doing with the unit right now; None for nothing, and where it cannot be asked."""
    command = ("systemctl", *unit.ask, "list-jobs", "--no-legend", "--no-pager", "--plain")
    try:
        asked = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
    except OSError as error:
        log.warning("systemctl cannot be run: %s", error)
        return None
    try:
        async with asyncio.timeout(JOB_SECONDS):
            listed, _ = await asked.communicate()
    except TimeoutError:
        asked.kill()
        await asked.wait()
        log.warning("systemd does not say what its job is")
        return None
    return job_of(unit.name, listed.decode(errors="replace"))
