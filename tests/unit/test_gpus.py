from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from sagectl.config.settings import GpuSettings
from sagectl.system.gpus import Gpus
from sagectl.system.nvml_library import Nvml, NvmlFailure
from tests.unit.nvml_fake import GIB, Card, FakeNvml


def absent() -> Nvml:
    """No nvidia-ml-py, and no GPU."""
    raise NvmlFailure(12, "not found")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_auto_finds_the_gpus_that_nvml_shows(tmp_path: Path) -> None:
    gpus = Gpus(GpuSettings(), tmp_path, {}, library=FakeNvml(Card("GPU-a"), Card("GPU-b", bus=1)))
    reading = gpus.read()
    assert (reading.backend, len(reading.gpus), reading.managed) == ("nvml", 2, True)
    assert gpus.describe() == "2 GPUs (NVML, driver 570.86.15)"
    assert gpus.environment() == {}
    assert list(tmp_path.iterdir()) == []


def test_auto_without_a_gpu_manages_none(tmp_path: Path) -> None:
    gpus = Gpus(GpuSettings(), tmp_path, {}, library=absent)
    reading = gpus.read()
    assert (reading.backend, reading.gpus, reading.trouble, reading.managed) == ("none", (), None, False)
    assert gpus.describe() == "no GPUs are managed here"
    nvml = FakeNvml()
    assert Gpus(GpuSettings(), tmp_path, {}, library=nvml).read().backend == "none"
    assert nvml.open == 0


def test_auto_finds_a_driver_that_loads_late_and_then_keeps_it(tmp_path: Path) -> None:
    nvml, clock = FakeNvml(Card("GPU-a")), Clock()
    nvml.failing["nvmlInit"] = 9
    gpus = Gpus(GpuSettings(), tmp_path, {}, library=nvml, clock=clock)
    assert gpus.read().backend == "none"
    nvml.failing.clear()
    clock.now = 29
    assert gpus.read().backend == "none"
    clock.now = 31
    assert gpus.read().backend == "nvml"
    nvml.failing["*"] = 9
    reading = gpus.read()
    assert (reading.backend, bool(reading.trouble), len(reading.gpus)) == ("nvml", True, 1)


def test_nvml_that_is_asked_for_and_fails_is_trouble(tmp_path: Path) -> None:
    gpus = Gpus(GpuSettings(backend="nvml"), tmp_path, {"SAGE_GPU_MOCK_COUNT": "2"}, library=absent)
    reading = gpus.read()
    assert (reading.backend, reading.gpus) == ("nvml", ())
    assert (reading.trouble or "").startswith("NVIDIA's library libnvidia-ml.so.1 is not installed")
    assert gpus.describe().startswith("0 GPUs (NVML, driver ): NVIDIA's library")


def test_none_is_none(tmp_path: Path) -> None:
    nvml = FakeNvml(Card("GPU-a"))
    settings = GpuSettings(backend="none")
    assert Gpus(settings, tmp_path, {"SAGE_GPU_MOCK_COUNT": "2"}, library=nvml).read().backend == "none"
    assert nvml.opened == 0


def test_simulated_as_configured(tmp_path: Path) -> None:
    settings = GpuSettings(
        backend="simulated",
        simulated_count=2,
        simulated_memory=8 * GIB,
        nvlink=((0, 1),),
        simulated_process_ids=False,
        simulated_numa=(0, 1),
    )
    gpus = Gpus(settings, tmp_path / "gpus", {"SAGE_GPU_MOCK_COUNT": "7"}, library=absent)
    reading = gpus.read()
    assert reading.backend == "simulated"
    assert [(gpu.total, gpu.processes, gpu.numa_node) for gpu in reading.gpus] == [
        (8 * GIB, None, 0),
        (8 * GIB, None, 1),
    ]
    assert [sorted(gpu.peers) for gpu in reading.gpus] == [[1], [0]]
    assert gpus.environment() == {"SAGECTL_SIMULATED_GPUS": str(tmp_path / "gpus")}
    assert gpus.describe() == "2 GPUs (simulated)"
    gpus.close()


@pytest.mark.parametrize(
    ("environ", "count", "memory"),
    [
        ({"SAGE_GPU_MOCK_COUNT": "3"}, 3, 24 * GIB),
        ({"SAGE_GPU_MOCK_MEMORY_GB": "0.5"}, 1, GIB // 2),
        ({"SAGE_GPU_MOCK_COUNT": "2", "SAGE_GPU_MOCK_MEMORY_GB": "80"}, 2, 80 * GIB),
        ({"SAGE_GPU_MOCK_COUNT": "0"}, 0, 0),
    ],
)
def test_variables_choose_simulated_gpus_under_auto(
    tmp_path: Path, environ: dict[str, str], count: int, memory: int
) -> None:
    nvml = FakeNvml(Card("GPU-a"))
    reading = Gpus(GpuSettings(), tmp_path, environ, library=nvml).read()
    assert (reading.backend, reading.trouble, nvml.opened) == ("simulated", None, 0)
    assert [gpu.total for gpu in reading.gpus] == [memory] * count


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("SAGE_GPU_MOCK_COUNT", "two", "SAGE_GPU_MOCK_COUNT=two is no number of GPUs: write 0 to 64."),
        ("SAGE_GPU_MOCK_COUNT", "-1", "SAGE_GPU_MOCK_COUNT=-1 is no number of GPUs: write 0 to 64."),
        ("SAGE_GPU_MOCK_COUNT", "65", "SAGE_GPU_MOCK_COUNT=65 is no number of GPUs: write 0 to 64."),
        ("SAGE_GPU_MOCK_COUNT", "²", "SAGE_GPU_MOCK_COUNT=² is no number of GPUs: write 0 to 64."),
        *(
            (
                "SAGE_GPU_MOCK_MEMORY_GB",
                value,
                f"SAGE_GPU_MOCK_MEMORY_GB={value} is no size of a GPU: write GiB, such as 24 or 0.5.",
            )
            for value in ("24GiB", "0", "-3", "nan", "inf", "1e9")
        ),
    ],
)
def test_variables_that_mean_nothing_are_trouble(tmp_path: Path, variable: str, value: str, why: str) -> None:
    gpus = Gpus(GpuSettings(), tmp_path / "gpus", {variable: value}, library=absent)
    for _ in range(2):
        reading = gpus.read()
        assert (reading.backend, reading.gpus, reading.trouble) == ("simulated", (), why)
    assert not (tmp_path / "gpus").exists()


class Hanging(FakeNvml):
    """A driver that hangs while told to."""

    def __init__(self, *cards: Card) -> None:
        super().__init__(*cards)
        self.answers = threading.Event()
        self.answers.set()

    def _GetUtilizationRates(self, card: Card) -> object:
        self.answers.wait()
        return super()._GetUtilizationRates(card)


def test_a_driver_that_hangs_does_not_hang_us(tmp_path: Path) -> None:
    nvml = Hanging(Card("GPU-a"))
    gpus = Gpus(GpuSettings(backend="nvml"), tmp_path, {}, library=nvml)
    healthy = gpus.read(5.0)
    assert healthy.trouble is None
    nvml.answers.clear()
    try:
        before = threading.active_count()
        began = time.monotonic()
        reading = gpus.read(0.05)
        assert time.monotonic() - began < 1
        assert reading.gpus == healthy.gpus
        assert (reading.trouble or "").startswith("The GPU driver has not answered for 0 s")
        for _ in range(5):
            assert gpus.read(10.0).trouble
            assert gpus.read().trouble
        gpus.close()
        assert threading.active_count() == before + 1
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "gpus")
    finally:
        nvml.answers.set()
    deadline = time.monotonic() + 5
    while (reading := gpus.read(5.0)).trouble:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert reading.gpus == healthy.gpus
    gpus.close()
    assert nvml.open == 0
