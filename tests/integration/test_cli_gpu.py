"""gpu, and what other verbs say of GPU memory, against a daemon of paper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagectl.cli import main
from tests import gpu_figures as figures
from tests.integration.cli_daemon import FAILED, READY, FakeDaemon, engine
from tests.terminal import ESCAPE, Terminal, terminal

WHY = "waiting for GPU memory: needs 20.0 GiB on 1 GPU; the most that is free is 3.0 GiB, on GPU 0"
QUEUED = {"state": "activating", "substate": "queued", "desired": "running", "reason": WHY}
CARD = figures.device(engines=[figures.engine("chat", 20.0, 18.7)], memory_used_gb=18.7, memory_free_gb=3.0)
GPUS = figures.gpus(CARD, queue=[figures.waiting("big", WHY)])
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"

Cli = Callable[..., int]
Out = pytest.CaptureFixture[str]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    held = {"gpu_ids": [0], "memory_per_gpu_gb": 20.0, "measured_memory_gb": 18.7}
    daemon = FakeDaemon(tmp_path / "s", [engine("chat", **{**READY, **held}), engine("big", **QUEUED)])
    daemon.answers["gpu"] = 200, GPUS
    yield daemon
    if not daemon.ended:
        daemon.close()


@pytest.fixture
def cli(daemon: FakeDaemon) -> Cli:
    return lambda *words: main.run(["--socket", daemon.path, *words])


def command(daemon: FakeDaemon, *words: str) -> list[str]:
    code = "from sagectl.cli.main import main; main()"
    return [sys.executable, "-c", code, "--socket", daemon.path, *words]


@pytest.fixture
def watching(daemon: FakeDaemon) -> Iterator[Terminal]:
    with terminal(command(daemon, "gpu", "--watch", "60"), dict(os.environ)) as found:
        yield found


def test_gpu_shows_devices_and_queue(cli: Cli, capsys: Out) -> None:
    assert cli("gpu") == 0
    out = capsys.readouterr().out
    assert out.startswith("GPU 0  A card, 24.0 GiB\n")
    assert "  chat    llm   resident  20.0 GiB  18.7 GiB\n" in out
    assert out.endswith(f"  1. big  priority normal, needs 20.0 GiB\n     {WHY}\n")


@pytest.mark.parametrize("words", [("gpu", "--json"), ("--json", "gpu")])
def test_json_is_the_apis_own_object(cli: Cli, capsys: Out, words: tuple[str, ...]) -> None:
    assert cli(*words) == 0
    assert json.loads(capsys.readouterr().out) == GPUS


def test_without_a_daemon_it_ends_with_5(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.close()
    for words in (("gpu",), ("gpu", "--watch")):
        assert cli(*words) == 5
        assert ENTER not in capsys.readouterr().out


@pytest.mark.parametrize("interval", ["0", "nan", "-1", "soon"])
def test_an_interval_that_is_none_is_refused(cli: Cli, interval: str) -> None:
    assert cli("gpu", f"--watch={interval}") == 2


def test_watch_draws_again_at_an_event_and_gives_the_terminal_back(
    daemon: FakeDaemon, watching: Terminal
) -> None:
    at = watching.until(r"\?1049h")
    at = watching.until("every 60 s, Ctrl-C ends", at)
    at = watching.until("18.7 GiB", at)
    daemon.answers["gpu"] = 200, figures.gpus(figures.device(memory_used_gb=7.3))
    while "GET events?follow=1&tail=0" not in daemon.requests:
        assert watching.process.poll() is None
    daemon.happen("chat", "stopped")
    at = watching.until("used 7.3 GiB", at)
    watching.interrupt()
    assert watching.ended() == 0
    assert watching.text.endswith(LEAVE)
    assert watching.text.count(ENTER) == 1
    assert "Traceback" not in watching.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_watch_give_the_terminal_back(watching: Terminal, number: signal.Signals) -> None:
    watching.until("18.7 GiB")
    watching.process.send_signal(number)
    assert watching.ended() == 128 + number
    assert watching.text.endswith(LEAVE)


def test_many_gpus_on_a_low_terminal_have_a_line_each(daemon: FakeDaemon) -> None:
    cards = [figures.device(gpu_id=n, engines=[figures.engine(f"chat-{n}", 20.0, 18.7)]) for n in range(8)]
    daemon.answers["gpu"] = 200, figures.gpus(*cards)
    with terminal(command(daemon, "gpu", "-w"), dict(os.environ), rows=24) as watching:
        watching.until("chat-7")
        watching.interrupt()
        assert watching.ended() == 0
    assert "more lines" not in watching.text


def test_of_a_picture_that_is_too_high_the_end_is_left_off(daemon: FakeDaemon) -> None:
    with terminal(command(daemon, "gpu", "-w"), dict(os.environ), rows=4) as watching:
        watching.until(r"\(\d+ more lines: make the terminal higher\)")
        watching.interrupt()
        assert watching.ended() == 0
    assert watching.text.count("\n") <= 4 * watching.text.count("\x1b[H")


def test_a_picture_is_not_wider_than_the_terminal(daemon: FakeDaemon) -> None:
    with terminal(command(daemon, "gpu", "--watch"), dict(os.environ), columns=50) as watching:
        watching.until("the most that is free is 3.0 GiB")
        watching.interrupt()
        assert watching.ended() == 0
    lines = ESCAPE.sub("", watching.text).replace("\r", "").split("\n")
    assert max(len(line) for line in lines) <= 50


def test_a_daemon_that_goes_away_is_waited_for(daemon: FakeDaemon) -> None:
    with terminal(command(daemon, "gpu", "--watch=0.1"), dict(os.environ)) as watching:
        at = watching.until("18.7 GiB")
        daemon.close()
        at = watching.until("No daemon answers; trying again", at)
        watching.until("18.7 GiB", at)  # the last figures stay
        os.unlink(daemon.path)
        again = FakeDaemon(Path(daemon.path), [])
        again.answers["gpu"] = 200, figures.gpus(figures.device(memory_used_gb=7.3))
        watching.until("used 7.3 GiB", at)
        watching.interrupt()
        assert watching.ended() == 0
        again.close()


def test_without_a_terminal_a_watch_prints_once_an_interval(daemon: FakeDaemon) -> None:
    process = subprocess.Popen(command(daemon, "gpu", "--watch=0.1"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        assert "\x1b" not in line
        seen += line.startswith("GPU 0")
        if seen == 3:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()


def test_a_watch_in_json_prints_a_line_each(daemon: FakeDaemon) -> None:
    words = command(daemon, "gpu", "--watch=0.1", "--json")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline()) for _ in range(2)] == [GPUS, GPUS]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()


# --- Other verbs -------------------------------------------------------------------------------


def test_list_shows_gpus_and_memory_where_any_engine_has_some(
    cli: Cli, daemon: FakeDaemon, capsys: Out
) -> None:
    assert cli("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-5:] == ["ADDRESS", "GPU", "MEMORY", "PID", "REASON"]
    assert lines[1].split()[-4:] == ["0", "20.0", "GiB", "4242"]
    daemon.engines["chat"].update(gpu_ids=[], memory_per_gpu_gb=None)
    cli("list")
    assert "GPU " not in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "GPU memory: 20.0 GiB reserved, 18.7 GiB measured on GPU 0"),
        ({"measured_memory_gb": None}, "GPU memory: 20.0 GiB reserved on GPU 0"),
        (
            {"gpu_ids": [0, 2]},
            "GPU memory: 20.0 GiB reserved on each of the GPUs 0, 2; at most 18.7 GiB measured",
        ),
        ({"memory_per_gpu_gb": None}, "GPUs: 0"),
    ],
)
def test_status_tells_what_is_reserved_and_measured(
    cli: Cli, daemon: FakeDaemon, capsys: Out, changes: dict[str, Any], line: str
) -> None:
    daemon.engines["chat"].update(changes)
    assert cli("status", "chat") == 0
    assert line in [text.strip() for text in capsys.readouterr().out.splitlines()]


def test_the_overview_has_a_line_for_each_gpu_and_who_waits(
    cli: Cli, daemon: FakeDaemon, capsys: Out
) -> None:
    plane = {"version": "0.1.0", "pid": 1, "uptime_seconds": 5.0}
    engines = list(daemon.engines.values())
    answer = {"control_plane": plane, "gpu": GPUS, "engines": engines, "reservations": []}
    daemon.answers["status"] = 200, answer
    assert cli("status") == 0
    out = capsys.readouterr().out
    assert "  0  A card  24.0 GiB  18.7 GiB  20.0 GiB    0 GiB  3.0 GiB\n" in out
    assert out.endswith(f"     {WHY}\n")


EXPLAINED = {
    "decision": "queued",
    "reason": WHY,
    "waiting_for": ["chat"],
    "arithmetic": ["GPU 0: 20.0 GiB needed, 3.0 GiB free, 17.0 GiB missing"],
    "needed_gb": 20.0,
    "size_from": "estimate",
    "gpu_ids": [],
    "placement": [],
    "devices": [
        {
            "gpu_id": 0,
            "total_gb": 24.0,
            "foreign_gb": 0.0,
            "reserved_gb": 20.0,
            "kept_free_gb": 1.0,
            "budget_left_gb": None,
            "free_gb": 3.0,
            "needed_gb": 20.0,
            "fits": False,
        }
    ],
}


def test_explain_has_the_figures_and_the_devices(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.answers["engines/id-big/explain"] = 200, EXPLAINED
    assert cli("explain", "big") == 0
    out = capsys.readouterr().out
    assert f"big: queued: {WHY}\n" in out
    assert "Figures: GPU 0: 20.0 GiB needed, 3.0 GiB free, 17.0 GiB missing\n" in out
    assert "GPU memory: needs 20.0 GiB, estimated from the model's own files\n" in out
    table = [line.split() for line in out.splitlines()[-2:]]
    assert table[0] == ["GPU", "TOTAL", "FOREIGN", "OTHERS", "HOLD", "KEPT", "FREE", "FREE", "NEEDED", "FITS"]
    assert table[1][-1] == "no"


def test_explain_tells_where_it_was_placed_and_why(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    reasons = ["the size is `gpu_memory`", "fits best on GPU 0: 3.0 GiB stay free there"]
    daemon.answers["engines/id-chat/explain"] = (
        200,
        {**EXPLAINED, "decision": "running", "gpu_ids": [0], "placement": reasons, "size_from": "gpu_memory"},
    )
    assert cli("explain", "chat") == 0
    out = capsys.readouterr().out
    assert "GPU memory: holds 20.0 GiB on GPU 0, set by gpu_memory\n" in out
    assert f"Placement: {reasons[0]}\n" in out
    assert f"           {reasons[1]}\n" in out


def test_a_wait_tells_each_reason_once(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    other = {**QUEUED, "reason": "waiting for its turn on GPU 0: chat is loading"}
    daemon.engines["big"].update(state="inactive", substate="dead", reason="")
    daemon.script["start", "big"] = [QUEUED, QUEUED, other, READY]
    assert cli("start", "big") == 0
    assert capsys.readouterr().err.splitlines() == [
        f"big: activating (queued): {WHY}",
        f"big: activating (queued): {other['reason']}",
    ]


def test_on_a_terminal_the_whole_reason_is_shown_while_it_waits(daemon: FakeDaemon) -> None:
    daemon.engines["big"].update(state="inactive", substate="dead", reason="")
    daemon.script["start", "big"] = [QUEUED]
    with terminal(command(daemon, "start", "big"), dict(os.environ), columns=60) as waiting:
        waiting.until("on GPU 0")
        waiting.interrupt()
        assert waiting.ended() == 130
    seen = ESCAPE.sub("", waiting.text)
    assert WHY in " ".join(seen.split())
    assert "Interrupted. The start goes on; `sagectl status big` shows how far it is." in seen


def test_a_refused_start_shows_its_figures(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    figures_of = {"summary": "no room", "remedy": "lower it", "arithmetic": ["GPU 0: 2 needed", "GPU 1: 3"]}
    refused = {**FAILED, "reason": "no room", "substate": "preflight", "diagnosis": figures_of}
    daemon.engines["big"].update(state="inactive", substate="dead", reason="")
    daemon.script["start", "big"] = [refused]
    assert cli("start", "big") == 1
    err = capsys.readouterr().err
    assert "    GPU 0: 2 needed\n    GPU 1: 3\n  What to do: lower it\n" in err
