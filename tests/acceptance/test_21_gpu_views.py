"""What people and scripts see of GPU memory, on simulated GPUs with processes that really hold it."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from sagectl import errors, simulated_device
from tests.acceptance.harness import BIN, Daemon, free_port
from tests.exposition import samples
from tests.gpu_holders import holders
from tests.terminal import terminal

GPUS = """
[gpu]
backend = "simulated"
reserve = "1GiB"
[gpu.simulated]
count = 2
memory = "24GiB"
nvlink = [[0, 1]]
[gpu.budgets]
exec = "20GiB"
"""
SMALL = {"gpu_memory": '"1GiB"'}


def gpu_engine(daemon: Daemon, name: str, hold: int = 512, **keys: Any) -> str:
    """TOML of an engine that holds so many MiB of each of its GPUs."""
    port = free_port()
    words = ["--port", "{port}", "--device-module", str(simulated_device.__file__), "--hold", str(hold)]
    keys = {"port": port, "autostart": False, "gpus": 1, "gpu_memory": '"4GiB"', **keys}
    keys.setdefault("probe", "{ http = '/', interval = 0.2, timeout = 2 }")
    given = {key: value for key, value in keys.items() if value is not None}
    return daemon.engine(name, "gpu.py", *words, **given)


def test_a_definition_that_can_never_be_placed_is_refused_and_nothing_defined(daemon: Daemon) -> None:
    daemon.configure(GPUS)
    daemon.start()
    body = {"name": "huge", "kind": "exec", "command": ["/bin/true"], "gpus": 1, "gpu_memory": "22GiB"}
    with pytest.raises(errors.Unplaceable, match="huge can never be placed here: needs 22") as caught:
        daemon.client.define(body)
    facts = caught.value.facts
    assert (facts["engine"], facts["needed_gb"]) == ("huge", 22.0)
    assert [row["fits"] for row in facts["devices"]] == [False, False]
    assert facts["devices"][0]["budget_left_gb"] == 20.0
    assert len(facts["arithmetic"]) == 3
    assert "22.0 GiB needed" in facts["arithmetic"][1]
    assert "budget" in caught.value.remedy
    assert daemon.client.engines() == []
    for verb in ("run", "engine start"):
        words = ["--engine-kind", "exec", "-o", "gpu_memory=90GiB", "--", "/bin/true"]
        shown = daemon.cli(*verb.split(), *words)
        assert shown.returncode == 1
        assert "can never be placed here: needs 90.0 GiB" in shown.stderr
        assert "\n  GPU 1: 90.0 GiB needed, 23.0 GiB free" in shown.stderr
    assert daemon.client.engines() == []

    assert daemon.client.define({**body, "gpu_memory": "20GiB"})["name"] == "huge"
    with pytest.raises(errors.Conflict):
        daemon.client.define({**body, "gpu_memory": "20GiB"})
    del body["gpus"]
    assert daemon.client.define({**body, "name": "cpu", "use_gpu": False})["name"] == "cpu"


def test_a_refused_start_shows_the_figures_wherever_it_is_asked_for(daemon: Daemon) -> None:
    daemon.configure(GPUS + gpu_engine(daemon, "huge", gpu_memory='"22GiB"'))
    daemon.start()
    started = daemon.cli("start", "huge")
    assert started.returncode == 1
    line = (
        "GPU 0: 22.0 GiB needed, 23.0 GiB free, of which the budget of exec leaves 20.0 GiB, 2.0 GiB missing"
    )
    for answer in (started.stderr, daemon.cli("status", "huge").stdout, daemon.cli("explain", "huge").stdout):
        assert line in " ".join(answer.split())
        assert "can never be placed here" in answer
        assert "lower `gpu_memory`" in answer
    explained = daemon.json("explain", "huge")
    assert (explained["decision"], explained["needed_gb"]) == ("refused", 22.0)
    assert line in explained["arithmetic"]
    assert [row["fits"] for row in explained["devices"]] == [False, False]
    diagnosis = json.loads(daemon.cli("--json", "status", "huge").stdout)["diagnosis"]
    assert diagnosis["arithmetic"] == explained["arithmetic"]


def test_gpu_shows_what_engines_and_others_really_hold(daemon: Daemon) -> None:
    daemon.configure(GPUS + gpu_engine(daemon, "chat", 2048) + gpu_engine(daemon, "over", 3072, **SMALL))
    daemon.start()
    assert daemon.cli("start", "chat", "over").returncode == 0
    with holders(daemon.home / "run" / "gpus", visible="0") as [stranger]:
        assert stranger.hold(0, 5 << 30) == "held"
        daemon.expect_event("memory-exceeded", "over")
        shown = " ".join(daemon.cli("gpu").stdout.split())
        told = daemon.json("gpu")
        figures = samples(daemon.client.metrics())
    assert told["backend"] == "simulated"
    first = told["devices"][0]
    assert [p["pid"] for p in first["foreign_processes"]] == [stranger.pid]
    assert first["memory_foreign_gb"] == 5.0
    held = {entry["name"]: entry for device in told["devices"] for entry in device["engines"]}
    assert {name: held[name]["measured_gb"] for name in held} == {"chat": 2.0, "over": 3.0}
    assert "GPU 0 Simulated GPU, 24.0 GiB, NVLink to GPU 1" in shown
    assert "chat exec resident 4.0 GiB 2.0 GiB" in shown
    assert "over exec resident 1.0 GiB 3.0 GiB ▲ 2.0 GiB over" in shown
    assert f"{stranger.pid} python" in shown
    gpu = next(d["gpu_id"] for d in told["devices"] for e in d["engines"] if e["name"] == "over")
    labels = f'{{engine="over",kind="exec",gpu="{gpu}"}}'
    assert figures[f"sagectl_engine_gpu_memory_reserved_bytes{labels}"] == 1 << 30
    assert figures[f"sagectl_engine_gpu_memory_measured_bytes{labels}"] == 3 << 30
    assert figures[f'sagectl_gpu_memory_foreign_bytes{{gpu="0",uuid="{first["uuid"]}"}}'] == 5 << 30
    assert figures["sagectl_gpu_queue_length"] == 0


def test_a_start_that_waits_tells_for_what_and_goes_on_when_memory_comes_free(daemon: Daemon) -> None:
    big = {"gpu_ids": "[0]", "gpus": None}
    text = GPUS + gpu_engine(daemon, "chat", 512, **{**big, "gpu_memory": '"15GiB"'})
    daemon.configure(text + gpu_engine(daemon, "tune", 512, **{**big, "gpu_memory": '"12GiB"'}))
    daemon.start()
    assert daemon.cli("start", "chat").returncode == 0

    why = "waiting for GPU memory: needs 12.0 GiB on GPU 0, where the budget of exec leaves 5.0 GiB"
    timed = daemon.cli("start", "tune", "--timeout", "1")
    assert timed.returncode == 1
    assert f"tune: activating (queued): {why}\n" in timed.stderr
    assert f"{why}. The start goes on; `sagectl status tune` shows how far it is." in timed.stderr
    assert f"1. tune priority normal, needs 12.0 GiB {why}" in " ".join(daemon.cli("gpu").stdout.split())
    assert why in daemon.cli("status").stdout
    assert samples(daemon.client.metrics())["sagectl_gpu_queue_length"] == 1
    # There is room on the other GPU, for which it did not ask.
    assert [row["fits"] for row in daemon.json("explain", "tune")["devices"]] == [False, False]

    environ = {**daemon.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [str(BIN / "sagectl"), "start", "tune"]
    with terminal(command, environ) as waiting:
        waiting.until("queued")
        waiting.interrupt()
        assert waiting.ended() == 130
    assert daemon.show("tune")["substate"] == "queued"

    with terminal(command, environ) as waiting:
        waiting.until("where the budget of exec")
        daemon.client.stop("chat")
        waiting.until(r"tune: .*active \(ready\)")
        assert waiting.ended() == 0
    assert daemon.show("tune")["memory_per_gpu_gb"] == 12.0


def test_a_watch_follows_what_engines_do(daemon: Daemon) -> None:
    daemon.configure(GPUS + gpu_engine(daemon, "chat", 2048))
    daemon.start()
    environ = {**daemon.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with terminal([str(BIN / "sagectl"), "gpu", "--watch"], environ) as watching:
        at = watching.until("No engine holds memory of it")
        daemon.client.start("chat")
        at = watching.until("chat .*resident .*4.0 GiB .*2.0 GiB", at)
        daemon.client.stop("chat")
        nobody = "No engine holds memory of it"
        watching.until(rf"{nobody}(?:(?!ENGINE|Ctrl-C)[\s\S])*{nobody}", at)  # in one picture
        watching.interrupt()
        assert watching.ended() == 0


def test_without_gpus_it_says_so(daemon: Daemon) -> None:
    daemon.configure('[gpu]\nbackend = "none"\n')
    daemon.start()
    shown = daemon.cli("gpu")
    assert shown.returncode == 0
    assert shown.stdout.startswith("No GPUs are managed here: [gpu] backend is `none`")
    assert daemon.json("gpu")["managed"] is False
    assert "sagectl_gpu" not in daemon.client.metrics()
