"""What a call imports, which is why it is quick. Modules are asserted: times depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu_figures import device, gpus
from tests.integration.cli_daemon import READY, FakeDaemon, engine

ROOT = Path(__file__).parents[2]
HEAVY = {"pydantic", "aiohttp", "rich", "tomli", "pluggy", "psutil", "asyncio", "http.client", "ssl", "email"}
CODE = """
import json, sys
from sagectl.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write("\\n" + json.dumps([code, sorted(sys.modules)]))
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(
        tmp_path / "s", [engine("chat", **READY), engine("done", mode="run", substate="completed")]
    )
    daemon.answers["kinds"] = 200, {"kinds": []}
    daemon.answers["gpu"] = 200, gpus(device())
    daemon.logs["chat"] = b"one\n"
    yield daemon
    daemon.close()


def imported(daemon: FakeDaemon, *words: str) -> set[str]:
    command = [sys.executable, "-c", CODE, "--socket", daemon.path, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "chat"),
        ("list",),
        ("gpu",),
        ("start", "chat"),
        ("events",),
        ("logs", "chat"),
        ("show", "chat"),
        ("kinds",),
        ("engine", "list"),
        ("reset-failed",),
        ("estimate", "--help"),
        ("fine-tune", "--help"),
        ("fine-tune", "--base-model", "x", "--dataset", "d", "--output", "o", "--name", "n", "--detach"),
        ("fine-tune", "--follow", "--name", "done"),
    ],
)
def test_a_call_on_a_running_daemon_imports_nothing_heavy(daemon: FakeDaemon, words: tuple[str, ...]) -> None:
    assert not imported(daemon, *words) & HEAVY


def test_status_imports_its_own_verbs_alone(daemon: FakeDaemon) -> None:
    ours = {name for name in imported(daemon, "status") if name.startswith("sagectl")}
    assert ours == {
        *("sagectl", "sagectl.client", "sagectl.errors", "sagectl.shapes", "sagectl.unixhttp"),
        *("sagectl.cli", "sagectl.cli.exits", "sagectl.cli.look", "sagectl.cli.main"),
        *("sagectl.cli.render", "sagectl.cli.session"),
    }
