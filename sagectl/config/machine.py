"""What a configuration needs of the machine it is checked on: accounts, groups, env files, CPUs.

Warnings, never mistakes: a configuration may be checked on another machine than the one it is for, and
the daemon looks again before each start.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import threading
from collections.abc import Iterator, Mapping

from sagectl.config import envfile
from sagectl.config.limits import MAX_CPUS, cpus_in_words
from sagectl.config.load import Config
from sagectl.config.sections import DEFAULT, Origin
from sagectl.core.engine import EngineSpec
from sagectl.errors import Problem


def warnings(config: Config) -> tuple[Problem, ...]:
    """What this machine lacks."""
    found = [*_group(config)]
    seen: set[tuple[str, str]] = set()
    for spec in config.specs:
        origins = config.origins.get(spec.name, {})
        for problem in _engine(spec, origins):
            # Replicas share one definition.
            if (problem.key, problem.message) not in seen:
                seen.add((problem.key, problem.message))
                found.append(problem)
    return tuple(found)


def _group(config: Config) -> Iterator[Problem]:
    group = config.daemon.group
    if group is None:
        return
    try:
        grp.getgrnam(group)
    except KeyError:
        yield Problem(
            "daemon.group",
            f'this machine has no group "{group}", so root and the daemon\'s user alone may connect',
            f"create it: groupadd --system {group}",
            config.files[0] if config.files else "",
            severity="warning",
        )


def _engine(spec: EngineSpec, origins: Mapping[str, Origin]) -> Iterator[Problem]:
    if spec.user is not None and not _is_user(spec.user):
        yield _warning(
            spec, origins, "user", f'this machine has no user "{spec.user}"', "create it, or name another"
        )
    if spec.env_file is not None:
        try:
            envfile.read(spec.env_file)
        except (OSError, ValueError) as error:
            yield _warning(spec, origins, "env_file", envfile.words(spec.env_file, error), "mend the file")

    if spec.cpu_affinity is not None and (lacking := set(spec.cpu_affinity) - (usable := usable_cpus())):
        what = "a CPU" if len(lacking) == 1 else "CPUs"
        message = f"names {what} that this machine does not have: {cpus_in_words(sorted(lacking))}"
        yield _warning(spec, origins, "cpu_affinity", message, f"it has CPUs {cpus_in_words(sorted(usable))}")


def usable_cpus() -> frozenset[int]:
    """The CPUs that this process could run on, whichever it is bound to now."""
    found: list[set[int]] = []

    def look() -> None:
        with contextlib.suppress(OSError):  # a sandbox may forbid it: then these alone are sure
            os.sched_setaffinity(0, range(MAX_CPUS))  # the kernel leaves out what we may not use
        found.append(os.sched_getaffinity(0))

    # In a thread of its own, which alone it binds: 0 is the calling thread.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return frozenset(found[0])


def _is_user(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return user.isdecimal()
    return True


def _warning(spec: EngineSpec, origins: Mapping[str, Origin], key: str, message: str, remedy: str) -> Problem:
    origin = origins.get(key, DEFAULT)
    where = origin.key or f"engines.{spec.group or spec.name}.{key}"
    return Problem(where, message, remedy, origin.file, origin.line, severity="warning")
