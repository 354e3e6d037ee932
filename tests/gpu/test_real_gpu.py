"""What only a real GPU can show: whose memory it is, when it is free again, and that a cap holds."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagectl.core.gpu import Gpu
from sagectl.core.sizes import gib
from sagectl.system.nvml import NvmlGpus
from tests.gpu.conftest import INTERPRETER

pytestmark = pytest.mark.gpu

PROGRAM = Path(__file__).parent / "programs" / "torch_holder.py"
GIB = 1 << 30
MIB = 1 << 20


class Machine:
    """The first GPU that works, and what a tree of processes holds on it."""

    def __init__(self) -> None:
        self.reader = NvmlGpus()
        self.index = next(gpu.index for gpu in self.reader.read().gpus if gpu.lost is None)
        free = self.gpu().total - self.gpu().used
        if free < 4 * GIB:
            pytest.skip(f"GPU {self.index} has {gib(free)} free, of the 4 GiB that the test takes")

    def gpu(self) -> Gpu:
        reading = self.reader.read()
        found = reading.gpu(self.index)
        assert reading.trouble is None
        assert found is not None
        assert found.lost is None
        return found

    def use(self, pids: list[int]) -> tuple[int, str]:
        """Bytes that these processes hold; where ids are not shown, all that is used on the GPU."""
        gpu = self.gpu()
        sizes = {process.pid: process.used for process in gpu.processes or ()}
        if gpu.processes is None or any(sizes.get(pid, 0) is None for pid in pids):
            return gpu.used, "difference"
        return sum(sizes.get(pid) or 0 for pid in pids), "process"


class Tree:
    """A process and its child, with memory through torch."""

    def __init__(self, visible: str) -> None:
        environ = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        self._process = subprocess.Popen(
            [os.environ[INTERPRETER], str(PROGRAM)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pids = [self._process.pid]

    def tell(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if line.startswith("child "):
            pid, _, answer = answer.partition(" ")
            self.pids = [self._process.pid, int(pid)]
        assert answer, "the program has ended; its error is above"
        return answer

    def kill(self) -> None:
        """SIGKILL to both, and wait for their end."""
        ends = [os.pidfd_open(pid) for pid in self.pids if _lives(pid)]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for end in ends:
            _wait(end)
        self._process.communicate()


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _wait(end: int) -> None:
    assert select.select([end], [], [], 30)[0], "SIGKILL did not end it"
    os.close(end)


@pytest.fixture
def machine() -> Iterator[Machine]:
    found = Machine()
    yield found
    found.reader.close()


@pytest.fixture
def tree(machine: Machine) -> Iterator[Tree]:
    made = Tree(machine.gpu().visible)
    yield made
    made.kill()


def test_memory_of_a_tree_is_attributed_within_5_percent(machine: Machine, tree: Tree) -> None:
    assert tree.tell("warm") == "ok"
    assert tree.tell("child warm") == "ok"
    before, how = machine.use(tree.pids)
    assert tree.tell(f"hold {GIB}") == "ok"
    assert tree.tell(f"child hold {GIB // 2}") == "ok"
    after, how_after = machine.use(tree.pids)
    assert how == how_after
    grown, wanted = after - before, GIB + GIB // 2
    print(
        f"\nattribution by {how}: {gib(wanted)} allocated by parent and child, {gib(grown)} seen "
        f"({grown / wanted - 1:+.2%}); two contexts with 64 MiB each: {gib(before)}"
    )
    assert abs(grown - wanted) <= 0.05 * wanted


def test_release_is_seen_within_a_second(machine: Machine, tree: Tree) -> None:
    idle = machine.gpu().used
    assert tree.tell(f"hold {2 * GIB}") == "ok"
    assert tree.tell(f"child hold {GIB}") == "ok"
    held = machine.gpu().used - idle
    assert held >= 3 * GIB
    tree.kill()
    ended = time.monotonic()
    while True:
        gpu = machine.gpu()
        listed = {process.pid for process in gpu.processes or ()} & set(tree.pids)
        took = time.monotonic() - ended
        if not listed and gpu.used - idle < 0.05 * held:
            break
        assert took < 1, f"{gib(gpu.used - idle)} of {gib(held)} are still in use, {listed} listed"
        time.sleep(0.005)
    print(f"\nrelease of {gib(held)}: seen {took * 1e3:.0f} ms after the end of the processes")
    assert took < 1


def test_the_allocators_cap_holds(machine: Machine, tree: Tree) -> None:
    assert tree.tell("warm") == "ok"
    context, how = machine.use(tree.pids)
    cap = 2 * GIB
    assert tree.tell(f"cap {cap}") == "ok"
    assert tree.tell(f"hold {GIB}") == "ok"
    refused = tree.tell(f"hold {GIB}")  # with the 64 MiB from before more than the cap
    assert refused.startswith("OutOfMemoryError"), refused
    used = machine.use(tree.pids)[0]
    print(f"\ncap of {gib(cap)}, by {how}: {gib(used - context + 64 * MIB)} held, then: {refused}")
    assert used - context <= cap
