"""What people and scripts see of GPU memory, on simulated GPUs with processes that really hold it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sagectl import errors, simulated_device
from tests.acceptance.harness import Daemon, free_port

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


def gpu_engine(daemon: Daemon, name: str, hold: int = 512, **keys: Any) -> str:
    """TOML of an engine that holds so many MiB of each of its GPUs."""
    port = free_port()
    words = ["--port", "{port}", "--device-module", str(simulated_device.__file__), "--hold", str(hold)]
    keys = {"port": port, "autostart": False, "gpus": 1, "gpu_memory": '"4GiB"', **keys}
    keys.setdefault("probe", "{ http = '/', interval = 0.2, timeout = 2 }")
    return daemon.engine(name, "gpu.py", *words, **keys)


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
