"""What this process may give, read from the machine that it runs on, against what the kernel does."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sagectl.config.machine import usable_cpus
from sagectl.system.powers import Powers, powers

ROOT = Path(__file__).parents[2]
# As a user without rights, with a few limits; says what it finds and what the kernel then lets it do.
UNPRIVILEGED = f"""
import json, os, resource, sys
sys.path[:0] = {sys.path!r}
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
os.setpriority(os.PRIO_PROCESS, 0, 3)
from sagectl.system.powers import powers
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
found = powers(None)
print(json.dumps([found.any_limit, found.any_nice, found.any_oom_score, found.hard["nofile"], found.nice]))
"""


def test_powers_are_those_of_this_process() -> None:
    found = powers(None)
    assert found.hard["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found.open_files == int(Path("/proc/sys/fs/nr_open").read_text())
    assert found.nice == os.getpriority(os.PRIO_PROCESS, 0)
    assert found.oom_score_adjust == int(Path("/proc/self/oom_score_adj").read_text())
    assert found.cpus >= os.sched_getaffinity(0)


def test_somebody_without_rights_has_none() -> None:
    run = [sys.executable, "-I", "-c", UNPRIVILEGED]
    told = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(told.stdout) == [False, False, False, 200, 3]


def test_a_try_leaves_the_oom_score_as_it_was() -> None:
    path = Path("/proc/self/oom_score_adj")
    before = path.read_text()
    tried = powers(int(before) - 1 if int(before) > -1000 else -1000)
    assert path.read_text() == before
    rights = int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line)[8:], 16
    )
    if rights & 1 << 24:
        assert tried.any_oom_score


def test_usable_cpus_do_not_depend_on_those_that_we_run_on() -> None:
    before = os.sched_getaffinity(0)
    usable = usable_cpus()
    assert usable >= before
    assert os.sched_getaffinity(0) == before
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == usable
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_powers_are_values() -> None:
    assert isinstance(powers(None), Powers)
    assert powers(None) == powers(None)
    with pytest.raises(AttributeError):
        powers(None).nice = 1  # type: ignore[misc]
