"""On a real terminal: colours, widths, the spinner."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagectl.cli import live
from tests.integration.cli_daemon import FAILED, READY, STARTING, FakeDaemon, engine

ROOT = Path(__file__).parents[2]
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "s", [engine("chat"), engine("embed", **FAILED)])
    yield daemon
    daemon.close()


def on_a_terminal(daemon: FakeDaemon, *words: str, columns: int = 60) -> str:
    """Everything that the command writes to a terminal of this width."""
    primary, secondary = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", "from sagectl.cli.main import main; main()", "--socket", daemon.path, *words],
        cwd=ROOT,
        env=env,
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    seen = b""
    try:
        while piece := os.read(primary, 65536):
            seen += piece
    except OSError:  # Linux ends a terminal that nobody has open with EIO
        pass
    finally:
        os.close(primary)
        process.wait(timeout=20)
    return seen.decode().replace("\r\n", "\n")


def test_a_table_is_coloured_and_does_not_wrap(daemon: FakeDaemon) -> None:
    written = on_a_terminal(daemon, "list", columns=48)
    assert "\x1b[31mfailed (exit-code)\x1b[0m" in written
    lines = ESCAPE.sub("", written).splitlines()
    assert lines[0].split() == ["NAME", "KIND", "STATE", "REASON"]
    assert all(len(line) <= 48 for line in lines)
    assert lines[2].endswith("…")


def test_a_wait_shows_a_spinner_and_leaves_only_the_outcome(daemon: FakeDaemon) -> None:
    daemon.script["start", "chat"] = [STARTING, {**STARTING, "reason": "reading shard 3 of 8 " * 5}, READY]
    written = on_a_terminal(daemon, "start", "chat")
    assert any(frame in written for frame in live.FRAMES)
    drawn, _, rest = written.rpartition("\x1b[J")
    assert "loading weights" in drawn
    assert ESCAPE.sub("", rest) == "chat: active (ready) on 127.0.0.1:8001, pid 4242\n"
    assert all(len(line) < 60 for line in ESCAPE.sub("", drawn).splitlines())


def test_the_newest_log_line_is_shown_while_starting(daemon: FakeDaemon) -> None:
    daemon.logs["chat"] = b"loading shard 1\rloading shard 2\n"
    daemon.script["start", "chat"] = [STARTING]
    written = on_a_terminal(daemon, "start", "chat", "--timeout", "1")
    assert "  loading shard 2" in ESCAPE.sub("", written)
    assert "loading shard 1" not in written
