"""Control groups of engines, on the real cgroup v2 of this machine where it is ours to divide."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagectl.shim.group import Group
from sagectl.system import groups
from sagectl.system.groups import Groups

HOME = Path("/nowhere/test")
# Each process forks a successor and ends, in a session of its own: nobody can walk as fast as that.
FLEEING = """
import os, sys
print("off", flush=True)
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
"""


@pytest.fixture
def base() -> Iterator[Groups]:
    """A base below the root group, with a sleeping process as its zygote."""
    sleeper = subprocess.Popen(["sleep", "1000"])
    try:
        found = groups.prepare(sleeper.pid, groups.name_of(HOME), None)
        if found is None:
            pytest.skip("there is no cgroup v2 here whose root is ours to divide")
        yield found
    finally:
        sleeper.kill()
        sleeper.wait()
        if (root := groups.mount()) is not None:
            groups.remove(root / groups.name_of(HOME))


def test_one_kill_ends_what_flees_faster_than_it_can_be_found(base: Groups) -> None:
    group = Group(str(base.base), "web")
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", FLEEING], stdout=subprocess.PIPE) as process:
        group.join([process.pid], {})
        assert group.joined
        assert process.stdout is not None
        process.stdout.readline()
        assert group.kill()
        end = time.monotonic() + 10
        while pids := group.pids():
            assert time.monotonic() < end, pids
            time.sleep(0.005)
    group.leave()
    assert not Path(group.path).exists()


def test_a_group_knows_its_processes_and_disappears_with_the_last(base: Groups) -> None:
    group = Group(str(base.base), "web@1")
    with subprocess.Popen(["sleep", "1000"]) as process:
        group.join([process.pid], {"memory_max": 2**30, "cpu_weight": 50})
        assert group.pids() == [process.pid]
        group.leave()
        assert Path(group.path).exists()  # it is not empty
        assert groups.own_group(process.pid, groups.mount() or Path()) == Path(group.path)
        process.kill()
    group.leave()
    assert not Path(group.path).exists()


def test_the_base_is_found_again_by_the_next_zygote_and_goes_when_empty(base: Groups) -> None:
    assert groups.prepare(os.getpid(), groups.name_of(HOME), None) == base
    root = groups.mount()
    assert root is not None
    (root / "cgroup.procs").write_text(str(os.getpid()))  # home again
    groups.remove(base.base)
    assert base.base.exists()  # the sleeper is in it


@pytest.mark.parametrize("base_path", [None, "/proc/no/such/place"])
def test_without_groups_everything_goes_on(base_path: str | None) -> None:
    group = Group(base_path, "web")
    group.join([os.getpid()], {"memory_max": 1})
    assert not group.joined
    assert group.pids() == []
    assert not group.kill()
    assert group.oom_kills() == 0
    group.leave()


def test_the_kernels_count_and_the_limits_are_where_the_kernel_has_them(tmp_path: Path) -> None:
    """The memory controller is on the other hierarchy here, so a directory stands for a group's files."""
    folder = tmp_path / "engines" / "web"
    folder.mkdir(parents=True)
    for name in ("cgroup.procs", "memory.max", "cpu.weight"):
        (folder / name).touch()
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n")
    group = Group(str(tmp_path), "web")
    group.join([7], {"memory_max": 2**30, "cpu_weight": None})
    assert (folder / "memory.max").read_text() == str(2**30)
    assert (folder / "cpu.weight").read_text() == "100"
    assert group.oom_kills() == 2
