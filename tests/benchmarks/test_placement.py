"""What deciding about GPU memory costs: CPU time, for which the daemon's loop does nothing else."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from sagectl.core.gpu import Gpu, GpuProcess, GpuReading
from sagectl.core.ledger import Entry, Phase, accounts, reconcile, rooms
from sagectl.core.placement import Layout, Need, NoRoom, Placement, Wanted, place
from tests.benchmarks.lab import Figures, sized, spread

GIB = 1 << 30
KINDS = ("llm", "embedding", "finetune", "exec")
BUDGETS: dict[str, int | str] = {"llm": "90%", "finetune": 60 * GIB}
LINKS = {
    "no NVLink": [],
    "pairs": [(0, 1), (2, 3), (4, 5), (6, 7)],
    "all linked": [tuple(range(8))],
}


def machine(links: list[tuple[int, ...]], chance: random.Random) -> GpuReading:
    """Eight GPUs of 80 GiB on two NUMA nodes; the driver's own share differs a little."""
    gpus = []
    for index in range(8):
        peers = {other for group in links if index in group for other in group if other != index}
        gpus.append(
            Gpu(
                index,
                f"GPU-{index}",
                "card",
                total=80 * GIB,
                used=500 * 2**20 + chance.randrange(8) * 2**20,
                peers=frozenset(peers),
                numa_node=index // 4,
            )
        )
    return GpuReading("simulated", tuple(gpus))


def requests(count: int, chance: random.Random) -> list[Wanted]:
    """Mostly small engines on one GPU, some over two, four or eight, some of them as they like."""
    result = []
    for number in range(count):
        size = chance.choice([1, 1, 1, 2, 2, 3, 4])
        shapes = chance.choice(
            [[(1, 1)]] * 8 + [[(2, 1)], [(4, 1)], [(2, 2), (4, 1)], [(8, 1), (4, 2), (2, 4)]]
        )
        layouts = tuple(Layout((Need(size * GIB),) * (tp * pp), tp, pp) for tp, pp in shapes)
        name = f"e{number}"
        result.append(Wanted(name, chance.choice(KINDS), layouts, group=f"g{number // 3}"))
    return result


def filled(reading: GpuReading, wishes: list[Wanted], times: list[float]) -> tuple[list[Entry], int]:
    """Place one after the other, each on what the ones before it left; and how many did not fit."""
    entries: list[Entry] = []
    refused = 0
    for wish in wishes:
        begin = time.thread_time()
        answer = place(wish, rooms(accounts(reading, entries, GIB), wish.kind, BUDGETS))
        times.append((time.thread_time() - begin) * 1000)
        if isinstance(answer, NoRoom):
            refused += 1
            continue
        for gpu, size in zip(answer.gpu_ids, answer.sizes, strict=True):
            entries.append(Entry(wish.name, wish.kind, wish.group, gpu, size))
    return entries, refused


@pytest.mark.parametrize("links", LINKS)
def test_requests_are_placed(links: str, figures: Figures) -> None:
    times: list[float] = []
    refused = 0
    for seed in range(sized(20, 1)):
        chance = random.Random(seed)
        entries, some = filled(machine(LINKS[links], chance), requests(200, chance), times)
        refused += some
        assert entries
    figures.add(f"200 requests on 8 GPUs, {links}: one of them", spread(times, digits=3))
    most, share = max(times), 100 * refused / len(times)
    figures.add(f"200 requests on 8 GPUs, {links}: the slowest", f"{most:.1f} ms ({share:.0f}% refused)")


@pytest.mark.parametrize(("gpus", "shape"), [(8, (1, 8)), (64, (8, 1)), (64, (8, 8))])
def test_the_search_ends(gpus: int, shape: tuple[int, int], figures: Figures) -> None:
    """No links and different rooms: what takes it longest."""
    times = []
    tensor, pipeline = shape
    for seed in range(sized(10, 2)):
        chance = random.Random(seed)
        card = machine([], chance).gpus[0]
        cards = [replace(card, index=index, numa_node=index // 8) for index in range(gpus)]
        used = [replace(one, used=chance.randrange(40 * GIB)) for one in cards]
        needs = (Need(8 * GIB),) * (tensor * pipeline)
        begin = time.thread_time()
        free = rooms(accounts(GpuReading("simulated", tuple(used)), [], GIB), "llm", {})
        answer = place(Wanted("chat", "llm", (Layout(needs, tensor, pipeline),)), free)
        times.append((time.thread_time() - begin) * 1000)
        assert isinstance(answer, Placement)
    figures.add(f"{tensor} × {pipeline} ranks on {gpus} GPUs without NVLink", spread(times, digits=0))


@pytest.mark.parametrize("listed", [True, False], ids=["by process", "by difference"])
def test_the_ledger_is_reconciled(listed: bool, figures: Figures) -> None:
    """100 engines of 4 processes each, among as many of strangers."""
    chance = random.Random(0)
    reading = machine([], chance)
    entries = [
        Entry(f"e{number}", "llm", "", number % 8, 4 * GIB, 0, chance.choice([Phase.LOADING, Phase.RESIDENT]))
        for number in range(100)
    ]
    trees = {f"e{number}": range(number * 4, number * 4 + 4) for number in range(100)}
    times = []
    for round_ in range(sized(200, 10)):
        gpus = []
        for gpu in reading.gpus:
            processes = [
                GpuProcess(pid, (500 + round_) << 20)
                for entry in entries
                if entry.gpu == gpu.index
                for pid in trees[entry.engine]
            ]
            strangers = [GpuProcess(10_000 + number, 1 << 20) for number in range(50)]
            used = sum(process.used or 0 for process in processes)
            gpus.append(replace(gpu, used=used, processes=(*processes, *strangers) if listed else None))
        now = GpuReading("simulated", tuple(gpus))
        begin = time.thread_time()
        found = reconcile(now, entries, trees, {entry.key: 0 for entry in entries})
        kept = accounts(now, found, GIB)
        times.append((time.thread_time() - begin) * 1000)
        assert sum(account.measured for account in kept) > 0
    way = "by process" if listed else "by difference"
    figures.add(f"100 engines on 8 GPUs reconciled {way}", spread(times))
