"""Simulated GPUs, held by real processes."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sagectl import simulated_device
from sagectl.core.gpu import Gpu, GpuReading
from sagectl.system.simulated_gpus import SimulatedGpus, SimulatedOptions
from tests.gpu_holders import MIB, MODULE, Holder, holders

GIB = 1 << 30


def opened(directory: Path, **options: object) -> SimulatedGpus:
    """Two GPUs of 2 GiB, unless said otherwise, already made."""
    given = SimulatedOptions(**{"count": 2, "memory": 2 * GIB, **options})  # type: ignore[arg-type]
    gpus = SimulatedGpus(given, directory)
    gpus.read()
    return gpus


def gpu(reading: GpuReading, index: int = 0) -> Gpu:
    found = reading.gpu(index)
    assert found is not None
    return found


def use(reading: GpuReading, index: int = 0) -> dict[int, int | None]:
    processes = gpu(reading, index).processes
    assert processes is not None
    return {process.pid: process.used for process in processes}


def until_free(gpus: SimulatedGpus, index: int = 0) -> float:
    """Seconds until nothing is held."""
    began = time.monotonic()
    while gpu(gpus.read(), index).used:
        assert time.monotonic() < began + 5, "still held"
        time.sleep(0.005)
    return time.monotonic() - began


def test_what_is_configured_is_shown(tmp_path: Path) -> None:
    gpus = opened(tmp_path / "gpus", count=4, nvlink=((0, 1), (2, 3), (3, 9)), numa=(0, 0, 1, 1))
    reading = gpus.read()
    assert (reading.backend, reading.trouble, reading.managed) == ("simulated", None, True)
    assert [one.index for one in reading.gpus] == [0, 1, 2, 3]
    assert [one.visible for one in reading.gpus] == ["0", "1", "2", "3"]
    assert [one.total for one in reading.gpus] == [2 * GIB] * 4
    assert [one.used for one in reading.gpus] == [0] * 4
    assert [sorted(one.peers) for one in reading.gpus] == [[1], [0], [3], [2]]
    assert [one.numa_node for one in reading.gpus] == [0, 0, 1, 1]
    assert all(set(one.cpus) <= os.sched_getaffinity(0) and one.cpus for one in reading.gpus)
    assert len({one.uuid for one in reading.gpus}) == 4
    assert abs(reading.at - time.monotonic()) < 1


def test_memory_takes_no_disk(tmp_path: Path) -> None:
    opened(tmp_path, memory=80 * GIB)
    with holders(tmp_path) as [holder]:
        assert holder.hold(0, 70 * GIB) == "held"
        assert os.stat(tmp_path / "gpu0").st_blocks == 0


def test_processes_hold_until_they_die(tmp_path: Path) -> None:
    gpus = opened(tmp_path)
    with holders(tmp_path, 2) as [ours, foreign]:
        assert ours.hold(0, 512 * MIB) == "held"
        assert ours.hold(0, 256 * MIB) == "held"
        assert ours.hold(1, 128 * MIB) == "held"
        assert foreign.hold(0, 100 * MIB) == "held"
        reading = gpus.read()
        assert use(reading) == {ours.pid: 768 * MIB, foreign.pid: 100 * MIB}
        assert use(reading, 1) == {ours.pid: 128 * MIB}
        assert (gpu(reading).used, gpu(reading, 1).used) == (868 * MIB, 128 * MIB)
        ours.free()
        assert use(gpus.read(), 1) == {}
        ours.kill()
        assert use(gpus.read()) == {foreign.pid: 100 * MIB}
        foreign.kill()
        assert gpu(gpus.read()).used == 0


def test_an_own_mapping_without_the_allocator_counts_too(tmp_path: Path) -> None:
    gpus = opened(tmp_path)
    with open(tmp_path / "gpu1", "rb") as file:
        memory = mmap.mmap(file.fileno(), 64 * MIB, mmap.MAP_SHARED, mmap.PROT_READ)
    assert use(gpus.read(), 1) == {os.getpid(): 64 * MIB}
    memory.close()
    assert use(gpus.read(), 1) == {}


def test_what_a_fork_inherits_counts_once_and_outlives_the_parent(tmp_path: Path) -> None:
    gpus = opened(tmp_path)
    with holders(tmp_path) as [parent]:
        parent.hold(0, 512 * MIB)
        child = parent.fork()
        assert use(gpus.read()) == {parent.pid: 512 * MIB}
        parent.hold(0, 64 * MIB)  # its own: the child does not have it
        assert use(gpus.read()) == {parent.pid: 576 * MIB}
        parent.kill()
        assert use(gpus.read()) == {child: 512 * MIB}
    until_free(gpus)


def test_starting_programs_does_not_look_like_memory(tmp_path: Path) -> None:
    """Between fork (or vfork) and exec a child has all of its parent's mappings."""
    gpus = opened(tmp_path)
    with open(tmp_path / "gpu0", "rb") as file:
        memory = mmap.mmap(file.fileno(), GIB, mmap.MAP_SHARED, mmap.PROT_READ)
    before_exec = functools.partial(time.sleep, 0.3)
    start = threading.Thread(target=subprocess.run, args=["true"], kwargs={"preexec_fn": before_exec})
    start.start()
    copies = 0
    while start.is_alive():
        assert use(gpus.read()) == {os.getpid(): GIB}
        copies += len(mappers(tmp_path)) > 1
    assert copies, "no reading fell between fork and exec"
    memory.close()


def mappers(directory: Path) -> list[str]:
    """Processes that map something below the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(directory) in path.read_text():
                found.append(path.parent.name)
    return found


def test_a_full_gpu_refuses_with_figures(tmp_path: Path) -> None:
    opened(tmp_path)
    with holders(tmp_path, 2) as [first, second]:
        assert first.hold(0, GIB) == "held"
        answer = second.hold(0, GIB + 4096)
        assert answer == (
            "MemoryError: out of memory on GPU 0: tried to allocate 1.00 GiB, 1.00 GiB of 2.00 GiB are free"
        )
        assert second.hold(0, GIB) == "held"
        assert second.hold(0, 1).startswith("MemoryError")
        assert second.hold(1, 3 * GIB).startswith("MemoryError")


def test_racing_processes_never_overfill(tmp_path: Path) -> None:
    gpus = opened(tmp_path, count=1)
    command = [sys.executable, "-I", "-S", str(MODULE), "700"]
    environ = {**os.environ, "SAGECTL_SIMULATED_GPUS": str(tmp_path)}
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    running = [
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    try:
        lines = [one.stdout.readline() for one in running if one.stdout]
        assert lines.count("holding\n") == 2
        assert gpu(gpus.read()).used == 1400 * MIB
    finally:
        for one in running:
            one.kill()
    errors = [one.communicate()[1] for one in running]
    assert sum("MemoryError: out of memory" in error for error in errors) == 4
    assert until_free(gpus) < 1


def test_cuda_visible_devices_names_the_gpus(tmp_path: Path) -> None:
    gpus = opened(tmp_path, count=3)
    with holders(tmp_path, visible="2,0,x,1") as [one]:
        assert one.hold(0, MIB) == "held"
        assert one.hold(1, 2 * MIB) == "held"
        assert one.hold(2, MIB) == "RuntimeError: there is no GPU 2: 2 are visible"
        reading = gpus.read()
        assert [gpu(reading, index).used for index in range(3)] == [2 * MIB, 0, MIB]
    with holders(tmp_path, visible="") as [blind]:
        assert blind.hold(0, MIB) == "RuntimeError: there is no GPU 0: 0 are visible"


def test_without_process_ids_only_the_sum_is_shown(tmp_path: Path) -> None:
    gpus = opened(tmp_path, process_ids=False)
    with holders(tmp_path) as [one]:
        one.hold(0, 300 * MIB)
        assert gpu(gpus.read()).processes is None
        assert gpu(gpus.read()).used == 300 * MIB


def test_a_gpu_falls_off_the_bus_and_comes_back(tmp_path: Path) -> None:
    gpus = opened(tmp_path)
    with holders(tmp_path) as [one]:
        one.hold(1, 300 * MIB)
        gpus.read()
        (tmp_path / "gpu1").unlink()
        reading = gpus.read()
        assert (gpu(reading).lost, reading.trouble) == (None, None)
        assert gpu(reading, 1).lost == "GPU 1 has fallen off the bus: its file was removed."
        assert (gpu(reading, 1).used, gpu(reading, 1).total) == (300 * MIB, 2 * GIB)
        assert one.hold(1, MIB) == "RuntimeError: there is no GPU 1: 1 are visible"
        with holders(tmp_path, visible="1") as [other]:
            assert other.hold(0, MIB).startswith("RuntimeError: GPU 0 is lost: ")
        # A daemon that starts now does not heal it.
        assert gpu(opened(tmp_path).read(), 1).lost
        with open(tmp_path / "gpu1", "wb") as file:
            os.truncate(file.fileno(), 2 * GIB)
        assert (gpu(gpus.read(), 1).lost, gpu(gpus.read(), 1).used) == (None, 0)
        assert one.hold(1, MIB) == "held"
        assert gpu(gpus.read(), 1).used == MIB


def test_a_driver_is_unloaded_and_loaded_again(tmp_path: Path) -> None:
    place, aside = tmp_path / "gpus", tmp_path / "aside"
    gpus = opened(place)
    with holders(place) as [one]:
        one.hold(0, 300 * MIB)
        before = gpus.read()
        place.rename(aside)
        assert one.hold(0, MIB).startswith("RuntimeError: the simulated driver is not there")
        reading = gpus.read()
        assert reading.trouble == f"The simulated driver is not there: No such file or directory ({place})."
        assert reading.gpus == before.gpus
        assert reading.at > before.at
        aside.rename(place)
        assert gpus.read().trouble is None
        assert gpus.read().gpus == before.gpus
    shutil.rmtree(place)
    assert gpus.read().trouble
    assert opened(place).read().trouble is None


def test_a_second_daemon_finds_what_is_held(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with holders(tmp_path) as [one]:
        one.hold(0, 300 * MIB)
        larger = opened(tmp_path, count=3, memory=4 * GIB).read()
        assert use(larger) == {one.pid: 300 * MIB}
        assert [each.total for each in larger.gpus] == [4 * GIB] * 3


def test_a_place_that_cannot_be_made_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reading = SimulatedGpus(SimulatedOptions(), tmp_path / "file" / "gpus").read()
    assert reading.trouble
    assert "Not a directory" in reading.trouble
    assert reading.gpus == ()


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    gpus = opened(tmp_path / "link")
    with holders(tmp_path / "link") as [one]:
        one.hold(0, MIB)
        assert use(gpus.read()) == {one.pid: MIB}


def test_other_directories_are_not_ours(tmp_path: Path) -> None:
    gpus, others = opened(tmp_path / "a"), opened(tmp_path / "a" / "b")
    with holders(tmp_path / "a" / "b") as [one]:
        one.hold(0, MIB)
        assert gpu(gpus.read()).used == 0
        assert use(others.read()) == {one.pid: MIB}


def test_visible_counts_as_cuda_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path, count=12)
    monkeypatch.setenv("SAGECTL_SIMULATED_GPUS", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert simulated_device.visible() == list(range(12))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", " 10,3 ,-1,2")
    assert simulated_device.visible() == [10, 3]
    monkeypatch.delenv("SAGECTL_SIMULATED_GPUS")
    with pytest.raises(RuntimeError, match="SAGECTL_SIMULATED_GPUS is not set"):
        simulated_device.visible()


def test_a_holder_that_is_stopped_still_holds(tmp_path: Path) -> None:
    gpus = opened(tmp_path)
    one = Holder(tmp_path)
    try:
        one.hold(0, MIB)
        os.kill(one.pid, 19)
        assert use(gpus.read()) == {one.pid: MIB}
    finally:
        one.close()
