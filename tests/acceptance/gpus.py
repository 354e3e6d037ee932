"""Simulated GPUs for the scenarios: engines and foreign processes that really hold their memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sagectl.simulated_device
from tests.acceptance.harness import Daemon, free_port, get, kill
from tests.acceptance.listening import PATIENCE

MODULE = Path(sagectl.simulated_device.__file__)


def gpus(count: int = 1, memory: str = "24GiB", more: str = "", **simulated: Any) -> str:
    """TOML of a machine with simulated GPUs; `more` goes into [gpu]."""
    lines = [f'[gpu]\nbackend = "simulated"\n{more}[gpu.simulated]\ncount = {count}\nmemory = "{memory}"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in simulated.items()]
    return "\n".join(lines) + "\n"


class Gpu:
    """One daemon on a machine with simulated GPUs, and what its engines do."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.ports: dict[str, int] = {}

    def engine(self, name: str, hold: int = 0, *words: str, **keys: Any) -> str:
        """TOML of an engine that holds so many MiB on each of its GPUs when it is up."""
        port = self.ports.setdefault(name, free_port(keys.get("replicas", 1)))
        keys.setdefault("probe", '{ http = "/", interval = 0.2, timeout = 2 }')
        keys.setdefault("restart", "{ delay = 0, limit = 0 }")
        command = ("--port", "{port}", "--device-module", str(MODULE), "--hold", str(hold))
        return self.daemon.engine(name, "gpu.py", *command, *words, port=port, **keys)

    def tell(self, name: str, *words: object) -> str:
        """Ask an engine to do something; its answer."""
        return get(self.ports[name], "/" + "/".join(map(str, words))).decode()

    def device(self, index: int = 0) -> dict[str, Any]:
        """A GPU as the API shows it."""
        found: dict[str, Any] = self.daemon.client.gpu()["devices"][index]
        return found

    def entry(self, name: str, index: int = 0) -> dict[str, Any]:
        """An engine's entry on a GPU."""
        (found,) = [one for one in self.device(index)["engines"] if one["name"] == name]
        return dict(found)

    @property
    def directory(self) -> Path:
        """Where the GPUs are."""
        return self.daemon.home / "run" / "gpus"

    @contextmanager
    def stranger(self, *mib: int) -> Iterator[int]:
        """A process of nobody's that holds so many MiB of the first GPUs."""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(MODULE), *map(str, mib)],
            env={"PATH": os.environ["PATH"], "SAGECTL_SIMULATED_GPUS": str(self.directory)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
            yield process.pid
        finally:
            kill(process.pid)
            process.wait()

    def until(self, holds: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
        """Wait for something that is measured, of which no event tells."""
        end = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < end, (
                f"{what} did not come about: {json.dumps(self.daemon.client.gpu())}"
            )
            time.sleep(0.05)
