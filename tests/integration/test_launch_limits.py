"""What an engine was given of the machine holds from its first instruction, or it is not started."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sagectl.plugin import ExitStatus
from sagectl.shim import tree
from tests.integration.process_support import SLEEP, Machine, running
from tests.integration.test_processes import SYSTEM_PYTHON

OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
REPORT = """
import json, os, resource
def limit(name):
    return list(resource.getrlimit(getattr(resource, name)))
print(json.dumps({
    "limits": {name[7:].lower(): limit(name) for name in dir(resource) if name.startswith("RLIMIT_")},
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "oom": int(open("/proc/self/oom_score_adj").read()),
    "cpus": sorted(os.sched_getaffinity(0)),
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "blocked": [line for line in open("/proc/self/status") if line.startswith("SigBlk")],
    "session": os.getsid(0) == os.getpid(),
}), flush=True)
"""
STATUS = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
CAP_SYS_RESOURCE = bool(int(STATUS["CapEff"], 16) & 1 << 24)
OOM_SCORE = int(Path("/proc/self/oom_score_adj").read_text())
MOST_FILES = int(Path("/proc/sys/fs/nr_open").read_text())
CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with running(tmp_path) as it:
        yield it


async def told(machine: Machine, python: str = sys.executable, **given: Any) -> dict[str, Any]:
    """What a process that was started so finds."""
    await machine.start(python, "-I", "-S", "-c", REPORT, **given)
    status = (await machine.events.until("exited"))[1]
    assert status == ExitStatus(code=0), machine.text()
    answer: dict[str, Any] = json.loads(machine.text().splitlines()[-1])
    return answer


async def refused(machine: Machine, **given: Any) -> str:
    machine.processes.launch("chat", machine.order(*SLEEP, **given))
    text: str = (await machine.events.next("spawn_failed"))[1]
    return text


async def test_every_limit_reaches_the_engine(machine: Machine) -> None:
    own = await told(machine)
    wanted = {
        "as": (4 << 30, 5 << 30),
        "core": (0, 0),
        "cpu": (100, 200),
        "data": (3 << 30, 3 << 30),
        "fsize": (1 << 30, 1 << 30),
        "memlock": (4096, 8192),
        "msgqueue": (1000, 2000),
        "nice": (0, 0),
        "nofile": (77, 1000),
        "nproc": (5000, 5000),
        "rtprio": (0, 0),
        "rttime": (1000, 2000),
        "sigpending": (50, 60),
        "stack": (1 << 20, 2 << 20),
    }
    found = await told(machine, rlimits=wanted)
    limits = found["limits"]
    assert {name: tuple(limits[name]) for name in wanted} == wanted
    assert limits["rss"] == own["limits"]["rss"]
    assert await told(machine) == own  # the shim itself is as it was


async def test_what_is_not_said_stays_as_it_is(machine: Machine) -> None:
    own = await told(machine)
    assert own["limits"]["nofile"] == list(OPEN_FILES)
    assert own["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    assert own["cpus"] == CPUS
    assert await told(machine, rlimits={"core": (0, 0)}) == {
        **own,
        "limits": {**own["limits"], "core": [0, 0]},
    }


async def test_nice_oom_score_and_cpus_reach_the_engine(machine: Machine) -> None:
    found = await told(machine, nice=7, oom_score_adjust=321, cpu_affinity=CPUS[-1:])
    assert (found["nice"], found["oom"], found["cpus"]) == (7, 321, CPUS[-1:])
    assert found["session"]
    assert int(found["blocked"][0].split()[1], 16) == 0
    found = await told(machine)
    assert (found["nice"], found["oom"], found["cpus"]) == (
        os.getpriority(os.PRIO_PROCESS, 0),
        OOM_SCORE,
        CPUS,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of another user")
@pytest.mark.skipif(SYSTEM_PYTHON is None, reason="needs a python3 that every user can run")
async def test_limits_are_set_before_root_is_given_up(machine: Machine) -> None:
    user = (65534, 65534, (65534, 4))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert SYSTEM_PYTHON is not None
    found = await told(
        machine,
        SYSTEM_PYTHON,
        user=user,
        nice=own,
        oom_score_adjust=100,
        rlimits={"nproc": (100, 200), "nofile": (64, 64)},
    )
    assert found["ids"] == [[65534] * 3, [65534] * 3, [4, 65534]]
    assert found["limits"]["nproc"] == [100, 200]
    assert found["limits"]["nofile"] == [64, 64]
    assert found["oom"] == 100


async def test_few_open_files_for_the_engine_are_not_few_for_its_shim(machine: Machine) -> None:
    await machine.start("/bin/sh", "-c", "ulimit -Hn", rlimits={"nofile": (8, 8)})
    await machine.events.until("exited")
    assert machine.text() == "8\n"
    await machine.start("/bin/sh", "-c", "echo again; sleep 1000")
    await machine.wrote("again")
    await machine.lose_daemon()
    assert (await machine.new_daemon())[0].process is not None


async def test_little_memory_still_lets_a_program_begin(machine: Machine) -> None:
    """Less than the shim itself has: the limit is the engine's, and the shim must not stumble over it."""
    await machine.start("/bin/sh", "-c", "ulimit -v", rlimits={"as": (8 << 20, 8 << 20)})
    assert (await machine.events.until("exited"))[1] == ExitStatus(code=0)
    assert machine.text() == "8192\n"


async def test_a_limit_that_is_passed_ends_the_engine(machine: Machine) -> None:
    await machine.start("/bin/sh", "-c", "while :; do :; done", rlimits={"cpu": (1, 1)})
    assert (await machine.events.until("exited"))[1].signal in (signal.SIGXCPU, signal.SIGKILL)


async def test_an_ignored_signal_is_not_inherited(machine: Machine) -> None:
    await machine.start("/bin/sh", "-c", "grep Sig /proc/self/status", nice=5)
    await machine.events.until("exited")
    lines = dict(line.split(":\t") for line in machine.text().splitlines())
    assert int(lines["SigBlk"], 16) == 0
    assert int(lines["SigIgn"], 16) & 0x7FFFFFFF == 0


async def test_descriptors_are_the_same_with_limits_as_without(machine: Machine) -> None:
    script = "cd /proc/$$/fd; readlink *"
    await machine.start("/bin/bash", "-c", script)
    await machine.events.until("exited")
    plain = sorted(machine.text().splitlines())
    await machine.start("/bin/bash", "-c", script, nice=5)
    await machine.events.until("exited")
    assert sorted(machine.text().splitlines()[len(plain) :]) == plain


# --- Refusals -----------------------------------------------------------------------------------


async def test_more_open_files_than_any_process_may_have_are_refused(machine: Machine) -> None:
    text = await refused(machine, rlimits={"nofile": (MOST_FILES + 1, MOST_FILES + 1)})
    assert text.startswith(f"cannot set limits.nofile to {MOST_FILES + 1}: ")
    await machine.start(*SLEEP)  # and the next one works


@pytest.mark.skipif(CAP_SYS_RESOURCE, reason="these tests run with CAP_SYS_RESOURCE, which may do that")
async def test_a_hard_limit_above_our_own_is_refused(machine: Machine) -> None:
    own = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if own == resource.RLIM_INFINITY:
        pytest.skip("there is no limit to be above of")
    text = await refused(machine, rlimits={"memlock": (0, -1)})
    assert text.startswith("cannot set limits.memlock to [0, unlimited]: ")


@pytest.mark.skipif(CAP_SYS_RESOURCE, reason="these tests run with CAP_SYS_RESOURCE, which may do that")
async def test_an_oom_score_below_our_own_is_refused(machine: Machine) -> None:
    text = await refused(machine, oom_score_adjust=-1000)
    assert text.startswith("cannot set oom_score_adjust to -1000: Permission denied")


@pytest.mark.parametrize("cpus", [(4000,), (CPUS[0], 4000)])
async def test_a_cpu_that_is_not_there_is_refused(machine: Machine, cpus: tuple[int, ...]) -> None:
    text = await refused(machine, cpu_affinity=cpus)
    assert text.startswith("cannot set cpu_affinity to ")
    assert "4000" in text


async def test_a_limit_that_this_kernel_does_not_have_is_refused(machine: Machine) -> None:
    assert (await refused(machine, rlimits={"luck": (1, 1)})).startswith("cannot set limits.luck to 1: ")


@pytest.mark.parametrize(
    ("argv", "cwd", "text"),
    [
        (("/nonexistent/program",), "/", "cannot run /nonexistent/program: No such file or directory"),
        (("/etc/passwd",), "/", "cannot run /etc/passwd: Permission denied"),
        (SLEEP, "/no/such", "cannot enter the working directory /no/such: No such file or directory"),
        (("/bin/echo", "a\0b"), "/", "cannot run /bin/echo: embedded null byte"),
    ],
)
async def test_other_reasons_are_told_as_without_limits(
    machine: Machine, argv: tuple[str, ...], cwd: str, text: str
) -> None:
    machine.processes.launch("chat", machine.order(*argv, cwd=cwd, nice=5))
    assert await machine.events.next("spawn_failed") == (1, text)
    assert tree.children(machine.shim()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of another user")
async def test_too_many_processes_of_the_user_are_named(machine: Machine) -> None:
    user = (64123, 64123, ())
    await machine.start("/bin/sh", "-c", "sleep 1000 & sleep 1000", user=user)
    await machine.grown(3)
    machine.processes.launch("other", machine.order(*SLEEP, user=user, rlimits={"nproc": (1, 1)}))
    text = (await machine.events.next("spawn_failed"))[1]
    assert text == "cannot run /bin/sleep: its user has more processes than limits.nproc allows"
    machine.processes.release("other")
