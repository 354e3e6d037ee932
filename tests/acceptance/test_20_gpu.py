"""Scenario 20: GPU memory that adds up. The GPUs are simulated; who holds their memory is real."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.gpus import Gpu, gpus
from tests.acceptance.harness import Daemon, await_end, kill

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture
def gpu(daemon: Daemon) -> Iterator[Gpu]:
    return Gpu(daemon)


# --- Reserved, measured, released ---------------------------------------------------------------


def test_what_is_reserved_and_what_is_held(gpu: Gpu) -> None:
    """Scenario 20.1: an engine with 6 GiB holds 4000 MiB, then 512 more in a child of its own session; a
    process of nobody's holds 1 GiB; the child dies; the engine is stopped.

    Result: all of that is told apart, counted once, and gone when its holder is, without a call.
    """
    gpu.daemon.configure(gpus() + gpu.engine("chat", 4000, gpu_memory='"6GiB"'))
    gpu.daemon.start()
    [chat] = gpu.daemon.until_ready("chat")
    assert (chat["gpu_ids"], chat["memory_per_gpu_gb"]) == ([0], 6.0)
    with gpu.stranger(1024) as stranger:
        child = int(gpu.tell("chat", "fork", 0, 512))
        gpu.until(lambda: gpu.entry("chat")["measured_gb"] == round(4512 / 1024, 3), "the child's memory")
        gpu.until(lambda: gpu.device()["memory_foreign_gb"] == 1.0, "the stranger's memory")
        device = gpu.device()
        assert [one["pid"] for one in device["foreign_processes"]] == [stranger]
        assert device["memory_free_gb"] == 24 - 1 - 1 - 6
        kill(child)
        gpu.until(lambda: gpu.entry("chat")["measured_gb"] == round(4000 / 1024, 3), "the child's end")
    gpu.until(lambda: gpu.device()["memory_foreign_gb"] == 0.0, "the stranger's end")
    assert gpu.daemon.cli("stop", "chat").returncode == 0
    device = gpu.device()
    assert (device["engines"], device["memory_used_gb"], device["memory_free_gb"]) == ([], 0.0, 23.0)
    assert gpu.daemon.show("chat")["memory_per_gpu_gb"] is None


def test_an_engine_sees_the_gpus_that_it_was_given(gpu: Gpu) -> None:
    """Scenario 20.2: one engine by number, one on two GPUs, replicas, one with none.

    Result: each sees those alone; the replicas are on two; the one with none sees none, and reserves nothing.
    """
    gpu.daemon.configure(
        gpus(3, nvlink=[[1, 2]])
        + gpu.engine("fixed", 10, gpu_memory='"2GiB"', gpu_ids=[1])
        + gpu.engine("wide", 10, gpu_memory='"8GiB"', gpus=2)
        + gpu.engine("twin", 10, gpu_memory='"3GiB"', replicas=2)
        + gpu.engine("none", 0, use_gpu=False)
    )
    gpu.daemon.start()
    gpu.daemon.until_ready("fixed", "wide", "twin@1", "twin@2", "none")
    shown = {e["name"]: e["gpu_ids"] for e in gpu.daemon.client.engines()}
    assert (shown["fixed"], shown["none"]) == ([1], [])
    assert shown["wide"] == [1, 2]  # they are linked
    assert shown["twin@1"] != shown["twin@2"]
    assert gpu.tell("wide", "env", "CUDA_VISIBLE_DEVICES") == "1,2"
    assert gpu.tell("none", "env", "CUDA_VISIBLE_DEVICES") == ""
    assert gpu.tell("fixed", "env", "CUDA_DEVICE_ORDER") == "PCI_BUS_ID"


@pytest.mark.parametrize("process_ids", [True, False])
def test_a_crash_gives_the_memory_back_before_the_next_start(gpu: Gpu, process_ids: bool) -> None:
    """Scenario 20.3: an engine that holds most of the card gets SIGKILL, three times; also where the driver
    shows no process ids.

    Result: it comes back each time in the same place, and is never refused by its own remains.
    """
    gpu.daemon.configure(gpus(process_ids=process_ids) + gpu.engine("chat", 20000, gpu_memory='"20GiB"'))
    gpu.daemon.start()
    [chat] = gpu.daemon.until_ready("chat")
    for _ in range(3):
        kill(chat["pid"] or 0)
        chat = gpu.daemon.until(
            "chat", lambda e, old=chat: e["substate"] == "ready" and e["pid"] != old["pid"]
        )  # type: ignore[misc]
        assert chat["gpu_ids"] == [0]
    gpu.until(lambda: gpu.entry("chat")["measured_gb"] == round(20000 / 1024, 3), "what it holds")
    assert gpu.device()["attribution"] == ("process" if process_ids else "difference")
    assert gpu.device()["memory_foreign_gb"] == 0.0
    assert gpu.daemon.cli("stop", "chat").returncode == 0
    assert gpu.device()["memory_used_gb"] == 0.0


# --- Waiting ------------------------------------------------------------------------------------


def test_one_loads_at_a_time_on_a_gpu(gpu: Gpu) -> None:
    """Scenario 20.4: two engines that load for a while on one GPU, a third one on the other GPU.

    Result: the second says for whom it waits, and starts when the first is ready; the third waits for nobody.
    """
    load = ("--load", "1")
    gpu.daemon.configure(
        gpus(2)
        + gpu.engine("a", 100, *load, gpu_memory='"4GiB"', gpu_ids=[0])
        + gpu.engine("b", 100, *load, gpu_memory='"4GiB"', gpu_ids=[0])
        + gpu.engine("c", 100, *load, gpu_memory='"4GiB"', gpu_ids=[1])
    )
    gpu.daemon.start()
    queued = gpu.daemon.expect_event("queued")
    first, second = ("a", "b") if queued["engine"] == "b" else ("b", "a")
    assert queued["text"] == f"waiting for its turn on GPU 0: {first} is loading"
    waiting = gpu.daemon.show(second)
    assert (waiting["state"], waiting["substate"], waiting["waiting_for"]) == (
        "activating",
        "queued",
        [first],
    )
    gpu.daemon.until_ready("a", "b", "c")
    ready = {e["engine"]: e["id"] or 0 for e in gpu.daemon.events if e["kind"] == "ready"}
    started = {e["engine"]: e["id"] or 0 for e in gpu.daemon.events if e["kind"] == "started"}
    assert started[second] > ready[first]
    assert started["c"] < ready[first]


def test_what_does_not_fit_waits_by_priority_and_then_by_age(gpu: Gpu) -> None:
    """Scenario 20.5: the card is full; three engines are started, the last with the highest priority; what
    fills the card is stopped.

    Result: each says what it waits for; the one with the highest priority goes first and leaves room for
    one of the others, the older.
    """
    gpu.daemon.configure(
        gpus()
        + gpu.engine("full", 100, gpu_memory='"20GiB"')
        + gpu.engine("older", 100, gpu_memory='"10GiB"', autostart=False)
        + gpu.engine("newer", 100, gpu_memory='"10GiB"', autostart=False)
        + gpu.engine("vital", 100, gpu_memory='"12GiB"', autostart=False, priority='"critical"')
    )
    gpu.daemon.start()
    gpu.daemon.until_ready("full")
    for name in ("older", "newer", "vital"):
        gpu.daemon.client.start(name)
        gpu.daemon.until(name, lambda e: e["reason"].startswith("waiting for GPU memory: needs"))
    assert "10.0 GiB" in gpu.daemon.show("older")["reason"]
    assert "3.0 GiB" in gpu.daemon.show("older")["reason"]
    assert [one["name"] for one in gpu.daemon.client.gpu()["queue"]] == ["vital", "older", "newer"]
    explained = gpu.daemon.json("explain", "older")
    assert (explained["decision"], explained["needed_gb"]) == ("queued", 10.0)
    assert explained["devices"][0] | {} == {
        "gpu_id": 0, "total_gb": 24.0, "foreign_gb": 0.0, "reserved_gb": 20.0, "kept_free_gb": 1.0,
        "budget_left_gb": None, "free_gb": 3.0, "needed_gb": 10.0, "fits": False,
    }  # fmt: skip
    gpu.daemon.client.stop("full")
    gpu.daemon.until_ready("vital", "older")
    newer = gpu.daemon.until("newer", lambda e: "1.0 GiB" in e["reason"])
    assert newer["substate"] == "queued"
    gpu.daemon.client.stop("vital")
    gpu.daemon.until_ready("newer")


def test_a_start_waits_until_a_stranger_is_gone(gpu: Gpu) -> None:
    """Scenario 20.6: a process of nobody's holds most of the card; an engine is started; the process ends.

    Result: what is foreign is respected; the engine starts by itself once it is gone.
    """
    gpu.daemon.configure(gpus() + gpu.engine("chat", 100, gpu_memory='"10GiB"', autostart=False))
    gpu.daemon.start()
    with gpu.stranger(20000):
        gpu.daemon.client.start("chat")
        gpu.daemon.until("chat", lambda e: e["reason"].startswith("waiting for GPU memory"))
    gpu.daemon.until_ready("chat")


def test_what_can_never_fit_is_refused_at_once(gpu: Gpu) -> None:
    """Scenario 20.7: engines that are larger than the card, or their kind's budget, or want GPUs that are not
    there.

    Result: failed (preflight), with the figures, and no restart.
    """
    gpu.daemon.configure(
        gpus(2, more='budgets = { exec = "50%" }\n')
        + gpu.engine("large", gpu_memory='"30GiB"')
        + gpu.engine("over", gpu_memory='"13GiB"')
        + gpu.engine("many", gpu_memory='"1GiB"', gpus=3)
        + gpu.engine("absent", gpu_memory='"1GiB"', gpu_ids=[7])
    )
    gpu.daemon.start()
    for name, words in {
        "large": ("30.0 GiB",),
        "over": ("13.0 GiB", "12.0 GiB"),
        "many": ("3 GPUs", "2"),
        "absent": ("GPU 7",),
    }.items():
        failed = gpu.daemon.until_state(name, "failed")
        assert (failed["substate"], failed["restart_count"]) == ("preflight", 0)
        assert failed["reason"].startswith("can never be placed here: ")
        assert all(word in failed["reason"] for word in words), failed["reason"]


# --- Budgets, overruns, footprints --------------------------------------------------------------


def test_a_budget_binds_what_is_started_and_spares_what_runs(gpu: Gpu) -> None:
    """Scenario 20.8: two engines of a kind run; a reload sets a budget that only one of them fits, and raises
    another engine's priority.

    Result: the reload says what no longer fits and restarts nothing; a third start waits for the budget; a
    second reload lifts it, and the start goes on.
    """
    engines = (
        gpu.engine("a", 100, gpu_memory='"6GiB"')
        + gpu.engine("b", 100, gpu_memory='"6GiB"')
        + gpu.engine("c", 100, gpu_memory='"6GiB"', autostart=False)
    )
    gpu.daemon.configure(gpus() + engines)
    gpu.daemon.start()
    before = [e["pid"] for e in gpu.daemon.until_ready("a", "b")]
    gpu.daemon.configure(gpus(more='budgets = { exec = "8GiB" }\n') + engines)
    reloaded = gpu.daemon.client.reload()
    assert reloaded["restarts"] == []
    assert any("budget of exec is 8.0 GiB" in text and "12.0 GiB" in text for text in reloaded["warnings"])
    assert [gpu.daemon.show(name)["pid"] for name in ("a", "b")] == before
    gpu.daemon.client.start("c")
    gpu.daemon.until("c", lambda e: e["substate"] == "queued" and "budget" in e["reason"])
    gpu.daemon.configure(gpus() + engines)
    gpu.daemon.client.reload()
    gpu.daemon.until_ready("c")
    assert [gpu.daemon.show(name)["pid"] for name in ("a", "b")] == before


def test_what_a_budget_refused_is_tried_again_under_another(gpu: Gpu) -> None:
    """Scenario 20.17: an engine is started that its kind's budget can never hold; the budget is raised.

    Result: refused while it can never fit; started by the reload.
    """
    engine = gpu.engine("chat", 100, gpu_memory='"6GiB"', autostart=False)
    gpu.daemon.configure(gpus(more='budgets = { exec = "4GiB" }\n') + engine)
    gpu.daemon.start()
    gpu.daemon.client.start("chat")
    gpu.daemon.until_state("chat", "failed")
    gpu.daemon.configure(gpus() + engine)
    gpu.daemon.client.reload()
    gpu.daemon.until_ready("chat")


def test_a_reload_stops_nothing_for_more_memory_than_there_is(gpu: Gpu) -> None:
    """Scenario 20.18: of two engines on a card one is to have more than is free, by a reload.

    Result: it runs on as it was, and an event says why.
    """

    def configure(size: str) -> None:
        gpu.daemon.configure(
            gpus()
            + gpu.engine("chat", 100, gpu_memory=f'"{size}"')
            + gpu.engine("other", 100, gpu_memory='"15GiB"')
        )

    configure("4GiB")
    gpu.daemon.start()
    [chat, _] = gpu.daemon.until_ready("chat", "other")
    configure("20GiB")
    gpu.daemon.client.reload()
    refused = gpu.daemon.expect_event("restart-refused", "chat")
    assert "the memory for it is not there: needs 20.0 GiB" in refused["text"]
    assert "it runs on as it was" in refused["text"]
    assert gpu.daemon.show("chat")["pid"] == chat["pid"]
    assert gpu.daemon.show("chat")["needs_restart"]


@pytest.mark.parametrize("what", ["warn", "restart", "stop"])
def test_an_engine_that_takes_more_than_it_was_given(gpu: Gpu, what: str) -> None:
    """Scenario 20.9: an engine with 2 GiB takes 4, with each `on_exceed`.

    Result: an event says so with the figures; it is left alone, restarted, or stopped. Others cannot be
    given what it took.
    """
    gpu.daemon.configure(gpus() + gpu.engine("chat", 1000, gpu_memory='"2GiB"', on_exceed=f'"{what}"'))
    gpu.daemon.start()
    [chat] = gpu.daemon.until_ready("chat")
    gpu.tell("chat", "hold", 0, 3000)
    event = gpu.daemon.expect_event("memory-exceeded", "chat")
    assert event["text"].startswith("holds 3.9 GiB of GPU 0, where 2.0 GiB are reserved for it")
    if what == "warn":
        assert gpu.daemon.show("chat")["pid"] == chat["pid"]
        assert gpu.device()["memory_free_gb"] == round(23 - 4000 / 1024, 3)
    elif what == "restart":
        again = gpu.daemon.until("chat", lambda e: e["substate"] == "ready" and e["pid"] != chat["pid"])
        assert again["restart_count"] == 1  # it counts, or a leak would restart it for ever
        gpu.until(lambda: gpu.entry("chat")["measured_gb"] == round(1000 / 1024, 3), "its new measure")
    else:
        stopped = gpu.daemon.until_state("chat", "inactive")
        assert "holds 3.9 GiB" in stopped["reason"]
        assert stopped["desired"] == "stopped"


def test_a_measured_peak_is_what_the_next_start_asks_for(gpu: Gpu) -> None:
    """Scenario 20.10: an engine of unknown size holds 5000 MiB, gives 3000 of it back and is restarted; the
    daemon is killed in between.

    Result: the first start asks for what is assumed, the next for the peak and a little more.
    """
    gpu.daemon.configure(gpus() + gpu.engine("chat", 2000, gpus=1))
    gpu.daemon.start()
    [chat] = gpu.daemon.until_ready("chat")
    assert chat["memory_per_gpu_gb"] == 2.0
    assert "its size is not known" in " ".join(gpu.daemon.json("explain", "chat")["placement"])
    gpu.tell("chat", "hold", 0, 3000)
    gpu.until(lambda: gpu.entry("chat")["measured_gb"] == round(5000 / 1024, 3), "the peak")
    gpu.tell("chat", "free")
    gpu.until(lambda: gpu.entry("chat")["measured_gb"] < 4, "the peak's end")
    gpu.daemon.kill()
    gpu.daemon.start()
    gpu.daemon.client.restart("chat")
    again = gpu.daemon.until("chat", lambda e: e["substate"] == "ready" and e["pid"] != chat["pid"])
    assert again["memory_per_gpu_gb"] == pytest.approx(5000 / 1024 * 1.03, abs=0.01)
    assert gpu.daemon.json("explain", "chat")["size_from"] == "learned"


def test_a_planned_restart_waits_for_a_neighbour_that_loads(gpu: Gpu) -> None:
    """Scenario 20.15: while an engine loads, a reload changes what its neighbour on the GPU is launched with.

    Result: the neighbour is restarted only once the load is over, which is not disturbed.
    """
    go = gpu.daemon.home / "go"

    def configure(version: str) -> None:
        gpu.daemon.configure(
            gpus()
            + gpu.engine("old", 100, gpu_memory='"4GiB"', env={"VERSION": version})
            + gpu.engine("new", 100, "--until", str(go), gpu_memory='"4GiB"', autostart=False)
        )

    configure("1")
    gpu.daemon.start()
    [old] = gpu.daemon.until_ready("old")
    gpu.daemon.client.start("new")
    gpu.daemon.until_state("new", "starting")
    configure("2")
    assert gpu.daemon.client.reload()["restarts"] == [{"name": "old", "keys": ["env.VERSION"]}]
    assert gpu.daemon.client.engine("old")["pid"] == old["pid"]
    go.touch()
    gpu.daemon.until_ready("new")
    gpu.daemon.until("old", lambda e: e["substate"] == "ready" and e["pid"] != old["pid"])
    ids = {(e["engine"], e["kind"]): e["id"] or 0 for e in gpu.daemon.events}
    assert ids["new", "ready"] < ids["old", "exited"]
    assert gpu.tell("old", "env", "VERSION") == "2"


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU is no choice")
def test_an_engine_runs_on_the_cpus_next_to_its_gpu(gpu: Gpu) -> None:
    """Scenario 20.16: two GPUs on two NUMA nodes, an engine on each, and one with CPUs of its own choice.

    Result: each runs on its GPU's node; what the user says wins.
    """
    gpu.daemon.configure(
        gpus(2, numa=[0, 1])
        + gpu.engine("near", 10, gpu_memory='"2GiB"', gpu_ids=[0])
        + gpu.engine("far", 10, gpu_memory='"2GiB"', gpu_ids=[1])
        + gpu.engine("own", 10, gpu_memory='"2GiB"', gpu_ids=[1], cpu_affinity=f'"{CPUS[0]}"')
    )
    gpu.daemon.start()
    pids = [engine["pid"] or 0 for engine in gpu.daemon.until_ready("near", "far", "own")]
    half = len(CPUS) // 2
    assert [sorted(os.sched_getaffinity(pid)) for pid in pids] == [CPUS[:half], CPUS[half:], CPUS[:1]]


# --- What goes wrong ----------------------------------------------------------------------------


def test_a_gpu_that_is_lost_takes_its_engines_along(gpu: Gpu) -> None:
    """Scenario 20.11: one of two GPUs falls off the bus under an engine.

    Result: an event says so; the engine fails for that reason and comes back on the other GPU; the lost GPU
    is never used, until it is back.
    """
    gpu.daemon.configure(gpus(2) + gpu.engine("chat", 100, gpu_memory='"4GiB"'))
    gpu.daemon.start()
    [chat] = gpu.daemon.until_ready("chat")
    lost = (chat["gpu_ids"] or [9])[0]
    kept = gpu.directory / f"gpu{lost}"
    (gpu.directory / f"gpu{lost}").rename(gpu.daemon.home / "away")
    event = gpu.daemon.expect_event("gpu-lost")
    assert f"GPU {lost}" in event["text"]
    again = gpu.daemon.until("chat", lambda e: e["substate"] == "ready" and e["pid"] != chat["pid"])
    assert again["gpu_ids"] == [1 - lost]
    assert again["restart_count"] == 1
    assert gpu.device(lost)["lost"]
    (gpu.daemon.home / "away").rename(kept)
    gpu.daemon.expect_event("gpu-back")
    assert gpu.device(lost)["lost"] is None


def test_engines_outlive_a_driver_that_cannot_be_asked(gpu: Gpu) -> None:
    """Scenario 20.12: the driver cannot be asked any more; an engine is started; the driver is back.

    Result: what runs goes on; the start waits and says why; all is well once the driver answers.
    """
    gpu.daemon.configure(
        gpus()
        + gpu.engine("a", 100, gpu_memory='"4GiB"')
        + gpu.engine("b", 100, gpu_memory='"4GiB"', autostart=False)
    )
    gpu.daemon.start()
    [a] = gpu.daemon.until_ready("a")
    gpu.directory.rename(gpu.daemon.home / "away")
    gpu.daemon.expect_event("gpu-trouble")
    gpu.daemon.client.start("b")
    gpu.daemon.until("b", lambda e: e["reason"].startswith("waiting for the GPUs: "))
    assert gpu.daemon.show("a")["pid"] == a["pid"]
    shutil.rmtree(gpu.directory, ignore_errors=True)
    (gpu.daemon.home / "away").rename(gpu.directory)
    gpu.daemon.until_ready("b")
    assert gpu.daemon.show("a")["pid"] == a["pid"]


def test_a_start_that_a_neighbours_stop_breaks_is_not_held_against_it(gpu: Gpu) -> None:
    """Scenario 20.13: while an engine loads, the user stops its neighbour on the GPU; the engine ends over it
    the first time, as vLLM does.

    Result: the stop runs at once; the engine is started again, and no restart is counted.
    """
    marker = gpu.daemon.home / "failed"
    gpu.daemon.configure(
        gpus()
        + gpu.engine("old", 2000, gpu_memory='"4GiB"')
        + gpu.engine("new", 100, "--fail-once", str(marker), gpu_memory='"4GiB"', autostart=False)
    )
    gpu.daemon.start()
    gpu.daemon.until_ready("old")
    gpu.daemon.client.start("new")
    gpu.daemon.until_state("new", "starting")
    gpu.until(marker.exists, "the load")
    assert gpu.daemon.cli("stop", "old").returncode == 0
    assert gpu.daemon.show("new")["substate"] == "starting"
    marker.with_name("failed.go").touch()
    [new] = gpu.daemon.until_ready("new")
    assert (new["restart_count"], new["consecutive_failures"]) == (0, 0)
    assert any("not counted" in e["text"] for e in gpu.daemon.events if e["engine"] == "new")


def test_nothing_leaks_when_engines_shims_and_daemons_die_at_any_point(gpu: Gpu) -> None:
    """Scenario 20.14: engines that together do not fit two GPUs; forty times somebody is killed, or an engine
    is stopped or started, at whatever moment; in the end all are stopped.

    Result: no GPU is ever promised to more than it has; in the end what was started runs or waits, and
    nothing is reserved or held when all are down.
    """
    rng = random.Random(20)
    sizes = {"a": 9, "b": 9, "c": 12, "d": 6, "e": 11}
    gpu.daemon.configure(
        gpus(2) + "".join(gpu.engine(n, 900 * size, gpu_memory=f'"{size}GiB"') for n, size in sizes.items())
    )
    gpu.daemon.start()
    for _ in range(40):
        name = rng.choice(list(sizes))
        match rng.choice(["daemon", "daemon", "engine", "shim", "both", "stop", "start"]):
            case "daemon":
                gpu.daemon.kill()
                gpu.daemon.start()
            case "engine":
                kill(*gpu.daemon.tree(name))
            case "shim":
                kill(*gpu.daemon.shims(name))
            case "both":
                kill(*gpu.daemon.shims(name), *gpu.daemon.tree(name))
            case "stop":
                gpu.daemon.client.stop(name)
            case "start":
                gpu.daemon.client.start(name)
        for device in gpu.daemon.client.gpu()["devices"]:
            reserved = sum(one["reserved_gb"] for one in device["engines"])
            assert reserved <= 23, device
            assert device["memory_used_gb"] <= 24
    for name in sizes:
        gpu.daemon.client.start(name)
    total = 0
    gpu.until(lambda: all(e["substate"] in ("ready", "queued") for e in gpu.daemon.client.engines()), "calm")
    up = [e["name"] for e in gpu.daemon.client.engines() if e["substate"] == "ready"]
    total = sum(sizes[name] for name in up)
    waiting = [sizes[name] for name in sizes if name not in up]
    assert total <= 46
    assert waiting
    left = [pid for name in sizes for pid in gpu.daemon.tree(name)]
    for name in sizes:
        gpu.daemon.client.stop(name, wait=20)
    for pid in left:
        await_end(pid)
    assert [d["engines"] for d in gpu.daemon.client.gpu()["devices"]] == [[], []]
    assert [d["memory_used_gb"] for d in gpu.daemon.client.gpu()["devices"]] == [0.0, 0.0]
    assert gpu.daemon.terminate(signal.SIGTERM) == 0


# --- What a job reads is looked at before ------------------------------------------------------------


@pytest.fixture
def writing(new_daemon: Callable[..., Daemon], installed: Callable[[str], str]) -> Gpu:
    """A job `write` that needs the GPU on which `chat` holds nearly all."""
    paths = (installed("reading"), os.environ.get("PYTHONPATH", ""))
    gpu = Gpu(new_daemon(PYTHONPATH=os.pathsep.join(filter(None, paths))))
    home = gpu.daemon.home
    keys = f'draft = "{home}/draft"\noutput = "{home}/models/out"\ngpu_memory = "6GiB"\n'
    table = f'[engines.write]\nkind = "writer"\n{keys}'
    gpu.daemon.configure(gpus() + gpu.engine("chat", 10, gpu_memory='"20GiB"') + table)
    gpu.daemon.start()
    gpu.daemon.until_ready("chat")
    return gpu


def test_a_job_that_would_fail_does_not_wait_for_a_gpu(writing: Gpu) -> None:
    """Scenario 20.20: the GPU is held. A job with an empty draft is started, then one with a good one.

    Result: failed (preflight) with the kind's reason, nothing reserved or waited for, and it saw no GPU; the
    good one is queued, and runs when the GPU is free.
    """
    daemon = writing.daemon
    draft = daemon.home / "draft"
    draft.write_text("")
    refused = daemon.cli("start", "write")
    assert refused.returncode == 1
    shown = daemon.show("write")
    assert (shown["state"], shown["substate"], shown["memory_per_gpu_gb"]) == ("failed", "preflight", None)
    assert shown["reason"] == "nothing is in it for GPUs ''"
    draft.write_text("a poem")
    daemon.client.start("write")
    daemon.until("write", lambda engine: engine["substate"] == "queued")
    assert daemon.cli("stop", "chat").returncode == 0
    daemon.until_state("write", "completed")


def test_a_job_that_is_stopped_while_it_is_looked_at_leaves_nothing(writing: Gpu) -> None:
    """Scenario 20.21: the draft is a pipe into which nobody writes. The job is started, and stopped.

    Result: it is stopped at once, and the process that looked is gone.
    """
    daemon = writing.daemon
    draft = daemon.home / "draft"
    os.mkfifo(draft)

    def looking() -> list[int]:
        return daemon.pids(lambda pid: str(draft).encode() in Path(f"/proc/{pid}/cmdline").read_bytes())

    daemon.client.start("write")
    writing.until(lambda: len(looking()) == 1, "somebody to look")
    assert daemon.show("write")["substate"] == "preflight"
    assert daemon.cli("stop", "write").returncode == 0
    assert daemon.show("write")["substate"] == "stopped"
    writing.until(lambda: looking() == [], "nobody to look any more")
