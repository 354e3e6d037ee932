from __future__ import annotations

import inspect
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from sagectl.core.gpu import Gpu, GpuProcess, GpuReading
from sagectl.system import nvml_library
from sagectl.system.nvml import NvmlGpus
from sagectl.system.nvml_library import NvmlFailure, ask, load
from tests.unit.nvml_fake import GIB, MIB, Card, FakeNvml

LOST, RESET, GONE, NOT_LOADED, UNSUPPORTED, UNKNOWN = 15, 16, 28, 9, 3, 999


class Machine:
    """A reader over fake cards, with a clock and a /proc of its own."""

    def __init__(self, tmp_path: Path, *cards: Card, first_namespace: bool = True) -> None:
        self.nvml = FakeNvml(*cards)
        self.now = 1000.0
        self.proc = tmp_path / "proc"
        (self.proc / "self" / "ns").mkdir(parents=True)
        number = 4026531836 if first_namespace else 4026532999
        (self.proc / "self" / "ns" / "pid").symlink_to(f"pid:[{number}]")
        self.reader = NvmlGpus(self.nvml, lambda: self.now, self.proc, tmp_path / "sys")

    def process(self, pid: int, *files: str) -> None:
        """A process that is visible here and has these files open."""
        (self.proc / str(pid) / "fd").mkdir(parents=True)
        for number, file in enumerate(files):
            (self.proc / str(pid) / "fd" / str(number)).symlink_to(file)

    def read(self, after: float = 0.0) -> GpuReading:
        self.now += after
        return self.reader.read()

    def gpu(self, index: int = 0, after: float = 0.0) -> Gpu:
        found = self.read(after).gpu(index)
        assert found is not None
        return found


@pytest.fixture
def one(tmp_path: Path) -> Machine:
    return Machine(tmp_path, Card("GPU-a"))


def cards(count: int, **options: Any) -> list[Card]:
    return [replace(Card(f"GPU-{n}", bus=n), **options) for n in range(count)]


# --- What is there ---


def test_a_gpu_as_nvml_shows_it(tmp_path: Path) -> None:
    machine = Machine(
        tmp_path, Card("GPU-a", used=4 * GIB, compute=[(7, 3 * GIB)], cpus=(0, 63, 64), nodes=(1,))
    )
    reading = machine.read()
    assert (reading.backend, reading.driver, reading.at, reading.trouble) == ("nvml", "570.86.15", 1000, None)
    assert reading.gpus == (
        Gpu(
            index=0,
            uuid="GPU-a",
            name="NVIDIA Test",
            total=24 * GIB,
            used=4 * GIB + 500 * MIB,
            visible="0",
            processes=(GpuProcess(7, 3 * GIB),),
            utilization=0.37,
            temperature=62,
            power=123.456,
            power_limit=700.0,
            numa_node=1,
            cpus=(0, 63, 64),
        ),
    )


def test_what_does_not_change_is_read_once(one: Machine) -> None:
    one.read()
    one.nvml.calls.clear()
    one.nvml.cards[0].used = GIB
    assert one.gpu().used == GIB + 500 * MIB
    static = {"GetUUID", "GetName", "GetPciInfo", "GetNvLinkState", "GetCpuAffinity", "GetMemoryAffinity"}
    assert not static & set(one.nvml.calls)
    assert one.nvml.opened == 1


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("GetPowerUsage", "power"),
        ("GetEnforcedPowerLimit", "power_limit"),
        ("GetUtilizationRates", "utilization"),
        ("GetComputeRunningProcesses", "processes"),
    ],
)
@pytest.mark.parametrize("error", [UNSUPPORTED, 4, 13, UNKNOWN])
def test_what_a_gpu_does_not_tell_is_none(one: Machine, function: str, field: str, error: int) -> None:
    one.nvml.cards[0].failing[function] = error
    gpu = one.gpu()
    assert getattr(gpu, field) is None
    assert gpu.lost is None
    assert gpu.total == 24 * GIB


def test_an_older_library_tells_the_temperature_in_its_way(one: Machine) -> None:
    one.nvml.cards[0].failing["GetTemperatureV"] = 13
    assert one.gpu().temperature == 61
    one.nvml.cards[0].failing["GetTemperature"] = UNSUPPORTED
    assert one.gpu().temperature is None


def test_facts_that_are_not_told_are_left_out(one: Machine) -> None:
    failing = ("GetName", "GetPciInfo", "GetCpuAffinity", "GetMemoryAffinity", "GetNvLinkState", "GetMigMode")
    one.nvml.cards[0].failing.update(dict.fromkeys(failing, UNSUPPORTED))
    one.nvml.failing["nvmlSystemGetDriverVersion"] = UNKNOWN
    reading = one.read()
    gpu = reading.gpus[0]
    assert (gpu.name, gpu.cpus, gpu.numa_node, gpu.peers) == ("GPU", (), None, frozenset())
    assert reading.driver == ""


@pytest.mark.parametrize(("text", "node"), [("1\n", 1), ("-1\n", None), ("", None), (None, None)])
def test_the_kernel_tells_the_node_where_nvml_names_no_one(
    tmp_path: Path, text: str | None, node: int | None
) -> None:
    machine = Machine(tmp_path, Card("GPU-a", bus=0x1A, nodes=(0, 1)))
    if text is not None:
        directory = tmp_path / "sys" / "bus/pci/devices/0000:1a:00.0"
        directory.mkdir(parents=True)
        (directory / "numa_node").write_text(text)
    assert machine.gpu().numa_node == node


def test_a_driver_without_the_newer_memory_query(one: Machine) -> None:
    one.nvml.cards[0].failing["v2"] = 13
    one.nvml.cards[0].used = GIB
    gpu = one.gpu()
    assert (gpu.total, gpu.used, gpu.lost) == (24 * GIB, GIB + 500 * MIB, None)


def test_a_gpu_without_memory_of_its_own_cannot_be_used(one: Machine) -> None:
    one.nvml.cards[0].failing["GetMemoryInfo"] = UNSUPPORTED
    assert one.gpu().lost == ("GPU 0 does not say how much memory it has, so nothing can be placed on it.")
    one.read(60)
    assert one.nvml.opened == 1


# --- NVLink ---


def peers(machine: Machine) -> list[list[int]]:
    return [sorted(gpu.peers) for gpu in machine.read().gpus]


def test_links_between_pairs(tmp_path: Path) -> None:
    four = cards(4)
    four[0].links, four[1].links = [None, 1], [0, 0]
    four[2].links = [3]  # one end alone shows it
    assert peers(Machine(tmp_path, *four)) == [[1], [0], [3], [2]]


@pytest.mark.parametrize("kind", ["switch", "hidden"])
def test_gpus_on_a_switch_are_all_connected(tmp_path: Path, kind: str) -> None:
    four = [*cards(3, links=[kind, kind]), Card("GPU-3", bus=3)]
    assert peers(Machine(tmp_path, *four)) == [[1, 2], [0, 2], [0, 1], []]


def test_a_link_to_something_else_connects_nothing(tmp_path: Path) -> None:
    assert peers(Machine(tmp_path, *cards(2, links=[77]))) == [[], []]


# --- Processes ---


def test_a_process_of_several_lists_counts_once(one: Machine) -> None:
    card = one.nvml.cards[0]
    card.compute, card.graphics, card.shared = [(5, GIB), (6, None)], [(5, GIB), (4, MIB)], [(6, 2 * MIB)]
    assert one.gpu().processes == (GpuProcess(4, MIB), GpuProcess(5, GIB), GpuProcess(6, 2 * MIB))


def test_use_that_the_driver_does_not_tell_is_none(one: Machine) -> None:
    one.nvml.cards[0].compute = [(5, None), (0, GIB)]
    assert one.gpu().processes == (GpuProcess(5, None),)


def test_an_empty_list_beside_memory_in_use_means_hidden(one: Machine) -> None:
    card = one.nvml.cards[0]
    card.used = 10 * MIB
    assert one.gpu().processes == ()
    card.used = 300 * MIB
    assert one.gpu().processes is None
    card.used = 0  # it does not change back with each stop
    assert one.gpu().processes is None
    card.compute, card.used = [(5, GIB)], GIB
    assert one.gpu().processes == (GpuProcess(5, GIB),)


def test_lists_that_were_seen_to_work_are_trusted(one: Machine) -> None:
    card = one.nvml.cards[0]
    card.compute, card.used = [(5, GIB)], GIB
    one.read()
    card.compute = []
    assert one.gpu().processes == ()


def test_an_old_driver_does_not_tell_its_own_share(one: Machine) -> None:
    card = one.nvml.cards[0]
    card.failing["v2"] = 13
    assert one.gpu().processes == ()
    card.used = GIB
    assert one.gpu().processes is None


def test_in_a_container_the_hosts_ids_are_not_ours(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Card("GPU-a", used=2 * GIB), first_namespace=False)
    machine.process(12, "/dev/null", "/tmp/x")
    machine.nvml.cards[0].compute = [(4711, GIB), (12, GIB)]  # 12 is another process here
    assert machine.gpu().processes is None


def test_in_a_container_whose_driver_translates_ids(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Card("GPU-a", used=2 * GIB), first_namespace=False)
    machine.process(12, "/dev/null", "/dev/nvidia0")
    machine.nvml.cards[0].compute = [(4711, GIB), (12, GIB), (0, 5)]
    assert machine.gpu().processes == (GpuProcess(12, GIB),)
    machine.nvml.cards[0].compute = [(12, 0)]  # some translate the id and then find no use for it
    assert machine.gpu().processes == (GpuProcess(12, None),)
    machine.nvml.cards[0].compute = []
    assert machine.gpu().processes == ()


def test_processes_that_we_may_not_look_into_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, Card("GPU-a", used=GIB, compute=[(12, GIB)]), first_namespace=False)
    machine.process(12)

    def refuse(path: Any) -> list[str]:
        raise PermissionError(path)

    monkeypatch.setattr(os, "listdir", refuse)  # root, who runs tests too, may look into everything
    assert machine.gpu().processes == (GpuProcess(12, GIB),)


def test_without_proc_nothing_is_believed(tmp_path: Path) -> None:
    nvml = FakeNvml(Card("GPU-a", compute=[(12, GIB)]))
    gpus = NvmlGpus(nvml, proc=tmp_path / "none").read().gpus
    assert gpus[0].processes is None


# --- MIG ---


def mig(*instances: Card | None, **options: Any) -> Card:
    return Card("GPU-m", bus=1, mig=1, instances=list(instances), **options)


def instance(name: str, **options: Any) -> Card:
    return Card(name, total=10 * GIB, reserved=0, failing={"GetUtilizationRates": UNSUPPORTED}, **options)


def test_instances_stand_for_their_gpu(tmp_path: Path) -> None:
    first, second = instance("MIG-1", used=GIB, compute=[(5, GIB)]), instance("MIG-2")
    machine = Machine(tmp_path, Card("GPU-a"), mig(first, None, second), Card("GPU-b", bus=2))
    gpus = machine.read().gpus
    shown = [(gpu.index, gpu.uuid, gpu.visible, gpu.parent) for gpu in gpus]
    assert shown == [
        (0, "GPU-a", "GPU-a", None),
        (2, "GPU-b", "GPU-b", None),
        (3, "MIG-1", "MIG-1", "GPU-m"),
        (4, "MIG-2", "MIG-2", "GPU-m"),
    ]
    one = gpus[2]
    assert (one.total, one.used, one.processes) == (10 * GIB, GIB, (GpuProcess(5, GIB),))
    assert (one.utilization, one.power, one.power_limit, one.temperature) == (None, None, None, 62)


def test_instances_come_and_go(tmp_path: Path) -> None:
    card = mig()
    machine = Machine(tmp_path, Card("GPU-a"), card)
    card.mig = 0
    assert [gpu.visible for gpu in machine.read().gpus] == ["0", "1"]
    card.mig = 1
    assert machine.gpu(1).lost == (
        "GPU 1 is in MIG mode and has no instances: make some with `nvidia-smi mig`."
    )
    card.instances = [instance("MIG-1"), instance("MIG-2")]
    assert [(gpu.index, gpu.lost) for gpu in machine.read().gpus] == [(0, None), (2, None), (3, None)]
    card.instances = [instance("MIG-2"), instance("MIG-3")]
    reading = machine.read()
    assert [(gpu.index, gpu.uuid) for gpu in reading.gpus] == [
        (0, "GPU-a"),
        (2, "MIG-1"),
        (3, "MIG-2"),
        (4, "MIG-3"),
    ]
    assert [gpu.lost for gpu in reading.gpus if gpu.lost] == [
        "GPU 2 was an instance of a GPU in MIG mode, and was removed."
    ]
    machine.read(60)
    assert machine.nvml.opened == 1


def test_instances_are_lost_with_their_gpu(tmp_path: Path) -> None:
    card = mig(instance("MIG-1"), instance("MIG-2"))
    machine = Machine(tmp_path, card)
    machine.read()
    card.failing["*"] = LOST
    reading = machine.read()
    assert [gpu.uuid for gpu in reading.gpus] == ["MIG-1", "MIG-2"]
    assert all(gpu.lost for gpu in reading.gpus)


def test_one_hiccup_does_not_turn_instances_into_a_gpu(tmp_path: Path) -> None:
    card = mig(instance("MIG-1"))
    machine = Machine(tmp_path, card)
    before = machine.read().gpus
    for function in ("GetMigMode", "GetMaxMigDeviceCount", "GetMigDeviceHandleByIndex"):
        card.hiccups[function] = [UNKNOWN]
        assert machine.read().gpus == before


# --- What goes wrong ---


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (LOST, "GPU 1 has fallen off the bus: see `dmesg` for an Xid, then reset it or reboot."),
        (RESET, "GPU 1 must be reset: end what runs on it, then `nvidia-smi --gpu-reset`."),
        (GONE, "GPU 1 is not there any more: see `dmesg` for an Xid, then reset it or reboot."),
        (UNKNOWN, "GPU 1 does not answer: error 999."),
    ],
)
def test_a_lost_gpu_keeps_its_last_figures_and_may_come_back(tmp_path: Path, error: int, why: str) -> None:
    two = cards(2, used=GIB)
    machine = Machine(tmp_path, *two)
    before = machine.read()
    two[1].failing["*"] = error
    reading = machine.read()
    assert (reading.trouble, reading.gpus[0]) == (None, before.gpus[0])
    assert reading.gpus[1] == replace(before.gpus[1], lost=why)
    assert machine.nvml.opened == 1
    two[1].failing.clear()
    assert machine.read(11).gpus == before.gpus
    assert (machine.nvml.opened, machine.nvml.open) == (2, 1)


@pytest.mark.parametrize("function", ["GetUtilizationRates", "GetComputeRunningProcesses", "GetPowerUsage"])
def test_a_gpu_may_be_lost_in_the_middle_of_a_reading(one: Machine, function: str) -> None:
    one.read()
    one.nvml.cards[0].failing[function] = LOST
    assert "fallen off" in (one.gpu().lost or "")


def test_one_hiccup_is_not_a_loss(one: Machine) -> None:
    before = one.read().gpus
    one.nvml.cards[0].hiccups["GetMemoryInfo"] = [UNKNOWN, UNKNOWN]  # of both its versions
    assert one.read().gpus == before
    assert not one.nvml.cards[0].hiccups["GetMemoryInfo"]


def test_nvml_is_opened_anew_for_a_lost_gpu_but_not_all_the_time(one: Machine) -> None:
    one.read()
    one.nvml.cards[0].failing["*"] = LOST
    for _ in range(100):
        assert one.gpu(after=0.5).lost
    assert 5 <= one.nvml.opened <= 7
    assert one.nvml.open == 1


def test_indices_stay_when_a_gpu_leaves_the_list(tmp_path: Path) -> None:
    first, second, third = cards(3)
    machine = Machine(tmp_path, first, second, third)
    machine.read()
    first.failing["*"] = LOST
    machine.read()
    machine.nvml.cards = [second, third]
    reading = machine.read(11)
    shown = [(gpu.index, gpu.uuid, gpu.visible, gpu.lost is None) for gpu in reading.gpus]
    assert shown == [(0, "GPU-0", "0", False), (1, "GPU-1", "0", True), (2, "GPU-2", "1", True)]
    first.failing.clear()
    machine.nvml.cards = [first, second, third]
    gpus = machine.read(11).gpus
    assert [(gpu.visible, gpu.lost) for gpu in gpus] == [("0", None), ("1", None), ("2", None)]


def test_another_gpu_in_its_place_has_another_index(tmp_path: Path) -> None:
    first, second = cards(2)
    machine = Machine(tmp_path, first, second)
    machine.read()
    second.failing["*"] = LOST
    machine.read()
    machine.nvml.cards = [first, Card("GPU-new", bus=1)]
    reading = machine.read(11)
    assert [(gpu.index, gpu.uuid, bool(gpu.lost)) for gpu in reading.gpus] == [
        (0, "GPU-0", False),
        (1, "GPU-1", True),
        (2, "GPU-new", False),
    ]


def test_a_gpu_that_cannot_be_opened_at_first(tmp_path: Path) -> None:
    two = cards(2)
    two[0].failing["GetHandleByIndex"] = LOST
    machine = Machine(tmp_path, *two)
    reading = machine.read()
    assert [(gpu.index, gpu.uuid, gpu.total) for gpu in reading.gpus] == [(0, "", 0), (1, "GPU-1", 24 * GIB)]
    assert reading.gpus[0].lost
    two[0].failing.clear()
    assert [gpu.uuid for gpu in machine.read(11).gpus] == ["GPU-0", "GPU-1"]
    two[0].failing["GetHandleByIndex"] = two[0].failing["*"] = LOST
    machine.read()
    gpu = machine.gpu(0, after=11)  # opened anew: the one that was there before
    assert (gpu.uuid, gpu.total, bool(gpu.lost)) == ("GPU-0", 24 * GIB, True)


def test_a_gpu_that_refuses_us(one: Machine) -> None:
    one.nvml.cards[0].failing["*"] = 4
    assert one.gpu().lost == ("GPU 0 refuses this user: its file /dev/nvidia* must be readable and writable.")


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (NOT_LOADED, "NVIDIA's kernel module is not loaded: "),
        (12, "NVIDIA's library libnvidia-ml.so.1 is not installed: "),
        (18, "NVIDIA's kernel module and library are of different versions"),
        (4, "NVIDIA's driver refuses this user: "),
        (1, "NVIDIA's driver was unloaded."),
        (UNKNOWN, "NVML does not answer: error 999."),
    ],
)
def test_a_driver_that_is_not_there(one: Machine, error: int, begins: str) -> None:
    one.nvml.failing["nvmlInit"] = error
    reading = one.read()
    assert (reading.trouble or "").startswith(begins)
    assert (reading.trouble or "").endswith(".")
    assert (reading.gpus, reading.backend, reading.managed) == ((), "nvml", True)
    one.nvml.failing.clear()
    assert one.read().trouble is None


@pytest.mark.parametrize("error", [1, NOT_LOADED, 18])
def test_a_driver_that_goes_away_and_returns(one: Machine, error: int) -> None:
    before = one.read()
    one.nvml.failing["*"] = error
    for _ in range(3):
        reading = one.read(1)
        assert reading.trouble
        assert reading.gpus == before.gpus
    one.nvml.failing.clear()
    one.nvml.open = 0
    reading = one.read(1)
    assert (reading.trouble, reading.gpus) == (None, before.gpus)
    assert one.nvml.open == 1


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlSystemGetDriverVersion"]
)
def test_a_driver_that_goes_away_while_it_is_opened(one: Machine, function: str) -> None:
    one.nvml.failing[function] = NOT_LOADED
    assert one.read().trouble
    assert one.nvml.open == 0
    one.nvml.failing.clear()
    assert one.read().trouble is None


def test_closing_lets_go_and_a_reading_opens_again(one: Machine) -> None:
    one.reader.close()
    one.read()
    one.reader.close()
    one.reader.close()
    assert one.nvml.open == 0
    assert one.read().trouble is None


def test_errors_that_are_not_nvmls_do_not_escape() -> None:
    nvml = FakeNvml()

    def odd() -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    with pytest.raises(NvmlFailure, match="UnicodeDecodeError"):
        ask(nvml, odd)  # type: ignore[arg-type]


# --- The real nvidia-ml-py ---


def test_the_fake_and_the_protocol_are_nvidia_ml_pys() -> None:
    for name, value in inspect.getmembers(FakeNvml):
        if name.startswith("NVML_") or name == "nvmlMemory_v2":
            assert getattr(pynvml, name) == value, name
    for name, function in inspect.getmembers(nvml_library.Nvml, inspect.isfunction):
        if name.startswith("nvml"):
            wanted = list(inspect.signature(function).parameters)[1:]
            real = inspect.signature(getattr(pynvml, name)).parameters
            required = [parameter for parameter in real.values() if parameter.default is parameter.empty]
            assert len(required) <= len(wanted) <= len(real), name
    for number in (*nvml_library.DRIVER_GONE, *nvml_library.DEVICE_GONE):
        assert number in pynvml.NVMLError._valClassMapping, number
    assert pynvml.NVML_ERROR_GPU_IS_LOST == nvml_library.GPU_IS_LOST
    assert pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH == nvml_library.MISMATCH
    assert pynvml.NVML_ERROR_DRIVER_NOT_LOADED == nvml_library.DRIVER_NOT_LOADED


def test_the_real_library_on_this_machine_is_a_reading_whatever_there_is() -> None:
    reader = NvmlGpus()
    reading = reader.read()
    reader.close()
    assert reading.backend == "nvml"
    assert reading.gpus or reading.trouble


def test_without_nvidia_ml_py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlFailure, match="cannot be imported"):
        load()
    assert (NvmlGpus().read().trouble or "").startswith("NVML does not answer: nvidia-ml-py cannot")
