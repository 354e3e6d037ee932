"""Scenario 22: GPU memory where settings, declarations and daemons change under what runs or waits."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from tests.acceptance.gpus import MODULE, Gpu, gpus
from tests.acceptance.harness import Daemon

NONE = '[gpu]\nbackend = "none"\n'

DETACHED = """
import os, runpy, signal, sys, time
directory = os.environ["SAGECTL_SIMULATED_GPUS"]
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    while os.getppid() == os.getsid(0):
        time.sleep(0.01)
    holder = "import os, runpy, signal; os.environ['SAGECTL_SIMULATED_GPUS'] = %r; "
    holder += "kept = runpy.run_path(%r)['allocate'](0, 4 << 30); signal.pause()"
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", holder % (directory, sys.argv[1])], dict())
while True:
    signal.pause()
"""


@pytest.fixture
def gpu(daemon: Daemon) -> Iterator[Gpu]:
    return Gpu(daemon)


def test_no_gpus_to_manage_leave_nobody_waiting(gpu: Gpu) -> None:
    """Scenario 22.1: an engine holds the card, another one waits for it; a reload sets `backend = "none"`;
    the first is stopped.

    Result: the second starts, without a reservation; the first is down at once.
    """
    engines = gpu.engine("a", 100, gpu_memory='"20GiB"') + gpu.engine(
        "b", 0, gpu_memory='"20GiB"', autostart=False
    )
    gpu.daemon.configure(gpus() + engines)
    gpu.daemon.start()
    gpu.daemon.until_ready("a")
    gpu.daemon.client.start("b")
    gpu.daemon.until("b", lambda e: e["reason"].startswith("waiting for GPU memory: needs"))
    gpu.daemon.configure(NONE + engines)
    gpu.daemon.client.reload()
    [b] = gpu.daemon.until_ready("b")
    assert b["memory_per_gpu_gb"] is None
    assert gpu.daemon.cli("stop", "a", "--timeout", "20").returncode == 0
    assert gpu.daemon.show("a")["state"] == "inactive"


def test_who_needs_no_gpu_any_more_reserves_none(gpu: Gpu) -> None:
    """Scenario 22.2: a reload takes the GPU from an engine that holds most of it.

    Result: it restarts without a reservation, and another one gets the memory.
    """
    other = gpu.engine("b", 0, gpu_memory='"20GiB"', autostart=False)
    gpu.daemon.configure(gpus() + gpu.engine("a", 0, gpu_memory='"20GiB"') + other)
    gpu.daemon.start()
    [a] = gpu.daemon.until_ready("a")
    gpu.daemon.configure(gpus() + gpu.engine("a", 0, use_gpu=False) + other)
    gpu.daemon.client.reload()
    gpu.daemon.until("a", lambda e: e["substate"] == "ready" and e["pid"] != a["pid"])
    assert gpu.device()["engines"] == []
    gpu.daemon.client.start("b")
    gpu.daemon.until_ready("b")


def test_who_waits_for_a_dependency_holds_no_memory(gpu: Gpu) -> None:
    """Scenario 22.3: an engine is restarted after what it depends on was stopped.

    Result: it waits for that, and another one gets the memory meanwhile.
    """
    gpu.daemon.configure(
        gpus()
        + gpu.engine("base", 0, use_gpu=False)
        + gpu.engine("a", 0, gpu_memory='"20GiB"', depends_on=["base"])
        + gpu.engine("b", 0, gpu_memory='"20GiB"', autostart=False)
    )
    gpu.daemon.start()
    gpu.daemon.until_ready("a")
    gpu.daemon.client.stop("base", wait=20)
    gpu.daemon.client.restart("a")
    gpu.daemon.until("a", lambda e: e["waiting_for"] == ["base"])
    gpu.daemon.client.start("b")
    gpu.daemon.until_ready("b")


@pytest.mark.parametrize(("mib", "again"), [(23000, 23000 / 1024), (23900, 2.0)])
def test_a_learned_peak_never_ends_all_starts(gpu: Gpu, mib: int, again: float) -> None:
    """Scenario 22.4: an engine of unknown size takes nearly all that there is, or even what is to be left
    free, and is restarted.

    Result: it starts again: with what it had, without anything on top; or as if nothing had been learned.
    """
    gpu.daemon.configure(gpus() + gpu.engine("a", 0, gpus=1))
    gpu.daemon.start()
    [a] = gpu.daemon.until_ready("a")
    gpu.tell("a", "hold", 0, mib)
    gpu.until(lambda: gpu.entry("a")["measured_gb"] > 22, "the peak")
    gpu.daemon.client.restart("a")
    found = gpu.daemon.until(
        "a", lambda e: e["state"] == "failed" or (e["substate"] == "ready" and e["pid"] != a["pid"])
    )
    assert (found["substate"], found["memory_per_gpu_gb"]) == ("ready", pytest.approx(again, abs=0.01))
    placement = " ".join(gpu.daemon.json("explain", "a")["placement"])
    assert ("can never be placed here and is not asked for" in placement) == (again == 2.0)


def test_a_daemon_of_the_engines_with_a_clean_environment_is_the_engines(gpu: Gpu) -> None:
    """Scenario 22.5: what holds the memory has a session, a parent and an environment of its own.

    Result: it is the engine's, and is not counted beside its reservation.
    """
    command = json.dumps([sys.executable, "-I", "-S", "-c", DETACHED, os.fspath(MODULE)])
    gpu.daemon.configure(
        gpus() + f'[engines.a]\nkind = "exec"\nautostart = true\ngpu_memory = "5GiB"\ncommand = {command}\n'
    )
    gpu.daemon.start()
    gpu.daemon.until_ready("a")
    gpu.until(lambda: gpu.device()["memory_used_gb"] == 4.0, "its use")
    assert (gpu.entry("a")["measured_gb"], gpu.device()["memory_foreign_gb"]) == (4.0, 0.0)


def test_a_gpu_that_is_lost_between_two_daemons(gpu: Gpu) -> None:
    """Scenario 22.6: the daemon is killed; the GPU of a running engine falls off the bus; the next one comes.

    Result: the engine fails for that reason, and comes back on the other GPU.
    """
    gpu.daemon.configure(gpus(2) + gpu.engine("a", 100, gpu_memory='"4GiB"'))
    gpu.daemon.start()
    [a] = gpu.daemon.until_ready("a")
    [lost] = a["gpu_ids"] or []
    gpu.daemon.kill()
    (gpu.directory / f"gpu{lost}").unlink()
    gpu.daemon.start()
    again = gpu.daemon.until("a", lambda e: e["substate"] == "ready" and e["pid"] != a["pid"])
    assert again["gpu_ids"] == [1 - lost]


def test_a_restart_keeps_its_place(gpu: Gpu) -> None:
    """Scenario 22.7: an engine waits for the memory of another one of its priority, which is restarted.

    Result: who was there is there again; who waited waits.
    """
    gpu.daemon.configure(
        gpus()
        + gpu.engine("a", 100, gpu_memory='"20GiB"')
        + gpu.engine("b", 100, gpu_memory='"20GiB"', autostart=False)
    )
    gpu.daemon.start()
    [a] = gpu.daemon.until_ready("a")
    gpu.daemon.client.start("b")
    gpu.daemon.until("b", lambda e: e["reason"].startswith("waiting for GPU memory: needs"))
    gpu.daemon.client.restart("a")
    gpu.daemon.until("a", lambda e: e["substate"] == "ready" and e["pid"] != a["pid"])
    assert gpu.daemon.show("b")["substate"] == "queued"


def test_a_driver_without_process_ids_and_two_daemons(gpu: Gpu) -> None:
    """Scenario 22.8: the driver shows no process ids; two engines are up as soon as they hold their memory;
    the daemon is killed, and another one comes.

    Result: nothing of it is taken for foreign, before or after, and the rest is there for a third engine.
    """
    gpu.daemon.configure(
        gpus(process_ids=False)
        + gpu.engine("a", 4000, gpu_memory='"6GiB"')
        + gpu.engine("b", 4000, gpu_memory='"6GiB"')
        + gpu.engine("c", 4000, gpu_memory='"10GiB"', autostart=False)
    )
    gpu.daemon.start()
    gpu.daemon.until_ready("a", "b")
    held = round(8000 / 1024, 3)
    gpu.until(lambda: gpu.device()["memory_measured_gb"] == held, "what both hold")
    assert (gpu.device()["memory_foreign_gb"], gpu.device()["memory_free_gb"]) == (0.0, 11.0)
    gpu.daemon.kill()
    gpu.daemon.start()
    gpu.until(lambda: gpu.device()["memory_measured_gb"] == held, "what both hold")
    assert (gpu.device()["memory_foreign_gb"], gpu.device()["memory_free_gb"]) == (0.0, 11.0)
    gpu.daemon.client.start("c")
    gpu.daemon.until_ready("c")
