"""Which engine a process belongs to, by what the kernel says of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sagectl.system.gpu_owners import Owners

# Its child is in a session of its own, with an empty environment.
STRIPPED = (
    "import os, subprocess, sys\n"
    "child = subprocess.Popen(['/bin/sleep', '1000'], env={}, start_new_session=True)\n"
    "print(child.pid, flush=True); sys.stdin.read(); child.kill()"
)


@contextmanager
def process(
    home: Path, name: str, program: str = "import sys; print(flush=True); sys.stdin.read()"
) -> Iterator[tuple[int, str]]:
    """A process with an engine's mark, and the line that it printed."""
    env = {"PATH": os.environ["PATH"], "SAGECTL_ENGINE": f"{name}:1:{home}/{name}"}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as made:
        assert made.stdout is not None
        line = made.stdout.readline().strip()
        try:
            yield made.pid, line
        finally:
            made.communicate("")


def test_a_marked_process_is_its_engines_and_no_other_homes(tmp_path: Path) -> None:
    with process(tmp_path, "chat") as (chat, _), process(tmp_path, "embed@1") as (embed, _):
        assert Owners(tmp_path).of([chat, embed, os.getpid(), 1]) == {"chat": {chat}, "embed@1": {embed}}
        assert Owners(tmp_path / "elsewhere").of([chat]) == {}


def test_a_child_that_cleared_its_environment_is_told_by_its_parent(tmp_path: Path) -> None:
    with process(tmp_path, "chat", STRIPPED) as (parent, child):
        assert Owners(tmp_path).of([int(child), parent]) == {"chat": {int(child), parent}}


def test_a_forked_child_whose_parent_died_keeps_the_mark(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True); time.sleep(1000)"
    )
    env = {"PATH": os.environ["PATH"], "SAGECTL_ENGINE": f"chat:1:{tmp_path}/chat"}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program], env=env, stdout=subprocess.PIPE, text=True
    ) as made:
        made.wait()
        assert made.stdout is not None
        orphan = int(made.stdout.readline())
        assert Owners(tmp_path).of([orphan]) == {"chat": {orphan}}
        os.kill(orphan, signal.SIGKILL)


def test_what_ended_belongs_to_nobody_and_a_recycled_pid_is_looked_at_again(tmp_path: Path) -> None:
    owners = Owners(tmp_path)
    with process(tmp_path, "chat") as (pid, _):
        assert owners.of([pid]) == {"chat": {pid}}
    assert owners.of([pid]) == {}
