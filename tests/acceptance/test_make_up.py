"""`make up`: what it prints can be pasted as it is, both engines answer, Ctrl-C leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.heavy


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="sagectl-up-") as directory:
        yield Path(directory)


def up(python: str, home: Path) -> subprocess.Popen[str]:
    """What `make up` runs once the environments are there."""
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "etc" / "make" / "up.py"), "--home", str(home)),
            *("--engine-python", python, "--starter-python", python),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def read_until(process: subprocess.Popen[str], end: str) -> str:
    """Everything it prints up to a line with these words, or up to its end."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if end in line:
            break
    return "".join(lines)


def pasted(command: str) -> dict[str, Any]:
    """The answer to a printed `curl` command."""
    words = shlex.split(command)
    url, body = words[1], words[words.index("-d") + 1]
    asked = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


def test_both_engines_answer_the_printed_requests_and_ctrl_c_ends_everything(
    transformers_python: str, home: Path
) -> None:
    """Scenario: `make up`; the two printed `curl` commands, the printed `sagectl`; `make up` again; Ctrl-C.

    Result: a completion, two vectors of 384 numbers, two active engines; the second `make up` refuses,
    and says why; after Ctrl-C exit code 0 and no process of the directory.
    """
    process = up(transformers_python, home)
    watchdog = threading.Timer(180, process.kill)
    watchdog.start()
    try:
        said = read_until(process, "Ctrl-C stops")
        chat, embed = (
            pasted(command) for command in re.findall(r"curl .*?-d '.*?'$", said, re.DOTALL | re.MULTILINE)
        )
        assert "choices" in chat, chat
        assert chat["choices"][0]["message"]["content"]
        assert [len(entry["embedding"]) for entry in embed["data"]] == [384, 384]
        printed = re.search(r"^ +SAGECTL_HOME=\S+ (\S+) status$", said, re.MULTILINE)
        assert printed is not None, said
        shown = subprocess.run(
            [printed[1], "list", "--json"],
            env=os.environ | {"SAGECTL_HOME": str(home)},
            capture_output=True,
            check=True,
        )
        assert {e["name"]: e["state"] for e in json.loads(shown.stdout)["engines"]} == {
            "chat": "active",
            "embed": "active",
        }
        again = up(transformers_python, home)
        refused, _ = again.communicate(timeout=60)
        assert again.returncode == 1
        assert "already" in refused
        process.send_signal(signal.SIGINT)
        rest = read_until(process, "\0")
        assert process.wait(60) == 0, rest
        assert [p.cmdline() for p in psutil.process_iter() if str(home) in " ".join(_words(p))] == []
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(60)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
