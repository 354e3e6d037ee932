"""start, stop, restart, run: waiting until it is so, and what is said meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sagectl.cli import main, wait
from tests.integration.cli_daemon import FAILED, READY, STARTING, STOPPED, STOPPING, FakeDaemon, engine

ROOT = Path(__file__).parents[2]
BACKOFF = {
    **STARTING,
    "substate": "backoff",
    "reason": "exited with code 1; again in 2 s",
    "level": "warning",
}
Cli = Callable[..., int]
Out = pytest.CaptureFixture[str]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "s", [engine("chat"), engine("embed"), engine("a@1", group="a")])
    daemon.logs["chat"] = b"Traceback\nOSError: no such model\n"
    yield daemon
    daemon.close()


@pytest.fixture
def cli(daemon: FakeDaemon) -> Cli:
    return lambda *words: main.run(["--socket", daemon.path, *words])


def test_start_waits_until_the_engine_is_ready(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["start", "chat"] = [STARTING, {**STARTING, "reason": "asking /health"}, READY]
    assert cli("start", "chat") == 0
    captured = capsys.readouterr()
    assert captured.out == "chat: active (ready) on 127.0.0.1:8001, pid 4242\n"
    assert captured.err == (
        "chat: activating (starting): loading weights\nchat: activating (starting): asking /health\n"
    )


def test_start_of_an_engine_that_is_up_returns_at_once(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.engines["chat"].update(READY)
    assert cli("start", "chat") == 0
    assert "GET events?follow=1" not in daemon.requests


def test_a_failed_start_exits_1_with_reason_remedy_and_log(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["start", "chat"] = [STARTING, BACKOFF, FAILED]
    assert cli("start", "chat") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("exited with code 1; again in 2 s\n") == 1
    assert captured.err.endswith(
        "chat: failed (exit-code): exited with code 1 while starting\n"
        "  The model does not exist\n"
        "  What to do: Check the model's name\n"
        "  Last log lines (/var/log/sagectl/chat.log):\n"
        "  │ Traceback\n"
        "  │ OSError: no such model\n"
    )


def test_several_are_waited_for_and_one_failure_makes_the_exit_code(
    cli: Cli, daemon: FakeDaemon, capsys: Out
) -> None:
    daemon.script["start", "chat"] = [STARTING, FAILED]
    daemon.script["start", "embed"] = [STARTING, STARTING, READY]
    assert cli("start", "chat", "embed") == 1
    captured = capsys.readouterr()
    assert "embed: active (ready)" in captured.out
    assert "chat: failed (exit-code)" in captured.err


def test_json_is_printed_once_when_it_is_over(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["start", "chat"] = [STARTING, BACKOFF, READY]
    assert cli("start", "chat", "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out)["engines"][0]["state"] == "active"


def test_no_wait_only_asks(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["start", "chat"] = [STARTING, READY]
    assert cli("start", "chat", "--no-wait") == 0
    assert capsys.readouterr().out == "chat: activating (starting): loading weights\n"
    assert daemon.requests[-1] == "POST engines/id-chat/start"


def test_the_timeout_ends_the_waiting_and_not_the_request(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["start", "chat"] = [STARTING]
    assert cli("start", "chat", "--timeout", "0.3") == 1
    assert capsys.readouterr().err.endswith(
        "chat: still activating (starting) after 0.3s: loading weights. "
        "The start goes on; `sagectl status chat` shows how far it is.\n"
    )
    assert daemon.requests.count("POST engines/id-chat/stop") == 0


def test_again_is_passed_on(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.script["start", "chat"] = [READY]
    assert cli("start", "chat", "--again") == 0
    assert "POST engines/id-chat/start?again=1" in daemon.requests


def test_stop_waits_until_nothing_runs(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.engines["chat"].update(READY)
    daemon.script["stop", "chat"] = [{**STOPPING, "substate": "draining"}, STOPPING, STOPPED]
    assert cli("stop", "chat", "--drain", "1.5") == 0
    assert "POST engines/id-chat/stop?drain=1.5" in daemon.requests
    assert capsys.readouterr().out == "chat: inactive (stopped)\n"


def test_restart_waits_for_another_process(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.engines["chat"].update(READY)
    new = {**READY, "pid": 4343, "started_at": "2026-01-05T12:01:00Z"}
    down = {**STOPPING, "desired": "running"}
    daemon.script["restart", "chat"] = [{}, down, STARTING, new]
    assert cli("restart", "chat") == 0
    assert "pid 4343" in capsys.readouterr().out


def test_a_lost_event_delays_the_end_and_does_not_prevent_it(
    cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "SAFETY", 0.05)
    daemon.script["start", "chat"] = [STARTING]
    daemon.answers["events"] = 200, {"events": []}
    silent = daemon.step
    reads = 0

    def step(name: str | None = None) -> None:
        nonlocal reads
        reads += 1
        if reads == 5:
            daemon.engines["chat"].update(READY)
        silent(name)

    daemon.step = step  # type: ignore[method-assign]
    assert cli("start", "chat") == 0


def test_a_conflict_is_said_in_the_daemons_words(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    problem = {"code": "conflict", "detail": "the job chat is completed", "remedy": "use --again"}
    daemon.answers["engines/id-chat/start"] = 409, problem
    assert cli("start", "chat") == 1
    assert capsys.readouterr().err == "sagectl: the job chat is completed. Use --again.\n"


def test_a_conflict_of_one_does_not_keep_the_others_from_starting(
    cli: Cli, daemon: FakeDaemon, capsys: Out
) -> None:
    daemon.answers["engines/id-chat/start"] = 409, {"code": "conflict", "detail": "completed"}
    daemon.script["start", "embed"] = [STARTING, READY]
    assert cli("start", "chat", "embed") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("chat: completed\n")
    assert captured.out.startswith("embed: active (ready)")


def test_a_daemon_that_comes_back_is_waited_for(
    cli: Cli, daemon: FakeDaemon, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "SAFETY", 0.05)
    daemon.script["start", "chat"] = [STARTING, STARTING]
    # Its output is read only once it has ended: pytest's capture loses what another thread writes meanwhile.
    missed, absent = threading.Event(), wait.Wait._absent

    def note(self: wait.Wait) -> None:
        missed.set()
        absent(self)

    monkeypatch.setattr(wait.Wait, "_absent", note)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli("start", "chat")))
    thread.start()
    with daemon.changed:
        daemon.changed.wait_for(lambda: len(daemon.events) >= 2, timeout=20)
    daemon.close()
    Path(daemon.path).unlink()
    assert missed.wait(timeout=20)
    next_one = FakeDaemon(Path(daemon.path), [engine("chat", **READY)])
    thread.join(timeout=20)
    next_one.close()
    assert codes == [0]
    said = capsys.readouterr()
    assert "waiting for it to come back" in said.err
    assert "chat: active (ready)" in said.out


def test_a_daemon_that_does_not_come_back_ends_the_wait_with_5(
    cli: Cli, daemon: FakeDaemon, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "SAFETY", 0.05)
    monkeypatch.setattr(wait, "PATIENCE", 0.1)
    gone = threading.Thread(target=daemon.close)
    monkeypatch.setattr(daemon, "step", lambda name=None: gone.start() if name is None else None)
    daemon.engines["chat"].update(STARTING)
    assert cli("start", "chat") == 5
    assert "The daemon went away while this waited" in capsys.readouterr().err


def test_engine_start_prints_the_id_alone(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["define", "engine-0a1b2c3d"] = [STARTING, READY]
    words = ("engine", "start", "m/x", "--engine-kind", "llm", "--port", "8001", "--label", "a=b")
    assert cli(*words, "-o", "max_model_len=4096") == 0
    captured = capsys.readouterr()
    assert captured.out == "engine-0a1b2c3d\n"
    assert "engine-0a1b2c3d: active (ready) on 127.0.0.1:8001, pid 4242\n" in captured.err
    expected = {"kind": "llm", "model": "m/x", "port": 8001, "labels": {"a": "b"}, "max_model_len": 4096}
    assert daemon.bodies == [expected]


def test_engine_start_that_fails_has_printed_the_id(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["define", "engine-0a1b2c3d"] = [STARTING, FAILED]
    assert cli("engine", "start", "m/x") == 1
    captured = capsys.readouterr()
    assert captured.out == "engine-0a1b2c3d\n"
    assert "What to do: Check the model's name" in captured.err


def test_run_ends_with_its_engine(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.script["define", "engine-0a1b2c3d"] = [STARTING, FAILED]
    assert cli("run", "m/x") == 1
    assert "sagectl: failed (exit-code): exited with code 1 while starting\n" in capsys.readouterr().err


def _spawn(daemon: FakeDaemon, *words: str) -> subprocess.Popen[str]:
    # Ctrl-C is ignored in what a shell starts in the background, such as this test.
    obey = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{obey}; from sagectl.cli.main import main; main()"
    command = [sys.executable, "-c", code, "--socket", daemon.path, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


def test_an_interrupted_wait_says_that_the_request_goes_on(daemon: FakeDaemon) -> None:
    daemon.script["start", "chat"] = [STARTING]
    process = _spawn(daemon, "start", "chat")
    _read_until(process, "activating")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "Interrupted. The start goes on; `sagectl status chat` shows how far it is.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_its_engine_and_forgets_it(
    daemon: FakeDaemon, number: signal.Signals
) -> None:
    name = "engine-0a1b2c3d"
    daemon.script["define", name] = [STARTING, READY]
    daemon.script["stop", name] = [STOPPING, STOPPED]
    daemon.logs[name] = b"hello from the engine\n"
    process = _spawn(daemon, "run", "m/x")
    _read_until(process, "active (ready) on http://127.0.0.1:8001")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "hello from the engine\n" in out
    assert f"{name}: inactive (stopped)" in out
    assert name not in daemon.engines


def test_a_closed_pipe_is_no_error(daemon: FakeDaemon) -> None:
    for number in range(3):
        daemon.happen("chat", f"event {number}")
    read, write = os.pipe()
    os.close(read)
    code = "from sagectl.cli.main import main; main()"
    command = [sys.executable, "-c", code, "--socket", daemon.path, "events"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=20, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
