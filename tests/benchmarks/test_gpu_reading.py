"""What one reading of the simulated GPUs costs, which looks at every process of the machine."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from sagectl.system.simulated_gpus import SimulatedGpus, SimulatedOptions
from tests.benchmarks.lab import Figures, sized, spread
from tests.gpu_holders import MIB, holders


def test_a_reading_among_many_processes(figures: Figures, tmp_path: Path) -> None:
    others = 300
    gpus = SimulatedGpus(SimulatedOptions(count=8), tmp_path)
    gpus.read()
    sleeping = [subprocess.Popen(["sleep", "1000"]) for _ in range(others)]
    try:
        with holders(tmp_path, 8) as engines:
            for index, engine in enumerate(engines):
                assert engine.hold(index, 512 * MIB) == "held"
            times, ours = [], []
            for _ in range(sized(200, 20)):
                began, cpu = time.perf_counter(), time.thread_time()
                reading = gpus.read()
                times.append((time.perf_counter() - began) * 1e3)
                ours.append((time.thread_time() - cpu) * 1e3)
            assert [gpu.used for gpu in reading.gpus] == [512 * MIB] * 8
    finally:
        for process in sleeping:
            process.kill()
        for process in sleeping:
            process.wait()
    there = sum(name.isdigit() for name in os.listdir("/proc"))
    what = f"reading 8 simulated GPUs among {there + others + 8} processes"
    figures.add(what, spread(times), "under 50 ms")
    figures.add("of it processor time", spread(ours))
