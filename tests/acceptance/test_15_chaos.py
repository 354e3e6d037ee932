"""Scenario 15: whatever is killed, stopped, removed and asked for, in whatever order, ends well.

Seeded: a failure prints the seed and the steps so far, and SAGECTL_CHAOS_SEED repeats it. SAGECTL_SOAK says
how many steps to take (`make soak`); without it the run is short.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.harness import Daemon, await_end, free_port, get, is_alive, kill

STEPS = int(os.environ.get("SAGECTL_SOAK", "0")) or 60
SEEDS = [int(os.environ["SAGECTL_CHAOS_SEED"])] if "SAGECTL_CHAOS_SEED" in os.environ else [1, 2]
DEADLINE = 40.0
"""Seconds in which everything must be as desired again; a liveness probe alone takes one of them."""
SERVERS = ("web", "deaf", "forker")
CRASHERS = ("crasher", "daemoniser")
ENGINES = (*SERVERS, *CRASHERS)


class Chaos:
    """One daemon and its engines under a sequence of mishaps."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.daemon = daemon
        self.random = random.Random(seed)
        self.steps: list[str] = []
        self.ports = {name: free_port() for name in SERVERS}
        self.wanted = dict.fromkeys(ENGINES, True)
        self.version = self.kills = 0
        self.configure()
        daemon.start()

    def configure(self) -> None:
        """Write the configuration; another `version` changes what one engine is launched with."""
        common = {
            "probe": '{ http = "/health", interval = 0.2, timeout = 0.5, failures = 2 }',
            "restart": "{ delay = 0, limit = 0 }",
            "stop": "{ drain = 0, timeout = 0.5 }",
        }
        engines = [
            self.daemon.engine(
                name, "server.py", "--port", "{port}", *words, port=self.ports[name], env=env, **common
            )
            for name, words, env in (
                ("web", (), {"VERSION": str(self.version)}),
                ("deaf", ("--ignore-term",), {}),
                ("forker", ("--orphan",), {}),
            )
        ]
        again = "{ delay = 0.3, max_delay = 0.3, limit = 0 }"
        engines.append(self.daemon.engine("crasher", "crash.py", "1", "crashing", restart=again))
        leave = '["/bin/sh", "-c", "setsid sleep 1000 & sleep 0.1; exit 3"]'
        engines.append(
            f'[engines.daemoniser]\nkind = "exec"\ncommand = {leave}\nautostart = true\nrestart = {again}\n'
        )
        self.daemon.configure("\n".join(engines))

    # --- Mishaps ---

    def mishaps(self) -> list[Callable[[], str]]:
        """What may happen, the more often named the likelier."""
        return [
            *[self.kill_daemon] * 4,
            *[self.kill_zygote] * 2,
            *[self.kill_shim] * 3,
            *[self.kill_engine] * 3,
            self.stop_shim,
            self.freeze_engine,
            self.kill_all_of_one,
            self.remove_files,
            *[self.ask_stop] * 2,
            *[self.ask_start] * 3,
            self.ask_restart,
            *[self.reload] * 2,
        ]

    def one(self, names: tuple[str, ...] = ENGINES) -> str:
        return self.random.choice(names)

    def kill_daemon(self) -> str:
        self.daemon.kill()
        self.kills += 1
        more = ""
        if self.random.random() < 0.3:  # and something dies while nobody looks
            more = " then " + self.random.choice([self.kill_engine, self.kill_shim])()
        self.daemon.start()
        return f"kill the daemon{more}, start another"

    def kill_zygote(self) -> str:
        for pid in self.daemon.children_of_daemon():
            if _title(pid).startswith(b"sagectl-zygote"):
                kill(pid)
        return "kill the zygote"

    def kill_shim(self) -> str:
        name = self.one()
        kill(*self.daemon.shims(name))
        return f"kill the shim of {name}"

    def kill_engine(self) -> str:
        name = self.one()
        tree = self.daemon.tree(name)
        kill(*self.random.sample(tree, k=min(1, len(tree))))
        return f"kill a process of {name}"

    def kill_all_of_one(self) -> str:
        name = self.one()
        kill(*self.daemon.shims(name), *self.daemon.tree(name))
        return f"kill shim and engine {name} at once"

    def stop_shim(self) -> str:
        name = self.one()
        for pid in self.daemon.shims(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return f"SIGSTOP the shim of {name}"

    def freeze_engine(self) -> str:
        name = self.one(SERVERS)
        for pid in self.daemon.tree(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return f"SIGSTOP {name}"

    def remove_files(self) -> str:
        name = self.one()
        directory = self.daemon.home / "run" / "engines" / name
        what = self.random.choice(["the directory", "the socket"])
        if what == "the directory":
            shutil.rmtree(directory, ignore_errors=True)
        else:
            (directory / "shim.sock").unlink(missing_ok=True)
        return f"remove {what} of {name}"

    def ask_stop(self) -> str:
        name = self.one()
        self.daemon.client.stop(name)
        self.wanted[name] = False
        return f"stop {name}"

    def ask_start(self) -> str:
        stopped = tuple(name for name, wanted in self.wanted.items() if not wanted)
        name = self.one(stopped or ENGINES)
        self.daemon.client.start(name)
        self.wanted[name] = True
        return f"start {name}"

    def ask_restart(self) -> str:
        name = self.one()
        self.daemon.client.restart(name)
        self.wanted[name] = True
        return f"restart {name}"

    def reload(self) -> str:
        self.version += 1
        self.configure()
        self.daemon.client.reload()
        return "reload with another environment for web"

    # --- What must hold ---

    def run(self, steps: int) -> None:
        for number in range(steps):
            if number and number % 100 == 0:
                print(f"{number} of {steps} steps, {self.kills} daemons killed", flush=True)
            mishap = self.random.choice(self.mishaps())
            self.steps.append(f"{number}: {mishap.__name__}")
            self.steps[-1] = f"{number}: {mishap()}"
            if self.random.random() < 0.7:  # else the next one comes while this one is dealt with
                self.settle()
        self.settle()

    def settle(self) -> None:
        """Wait until everything is as desired, and nothing too much."""
        end = time.monotonic() + DEADLINE
        wrong = self.wrong()
        while wrong:
            assert time.monotonic() < end, f"{wrong}\n{self.story()}"
            time.sleep(0.05)  # processes outside of the daemon's sight are looked at too
            wrong = self.wrong()

    def story(self) -> str:
        return "\n".join(["steps:", *self.steps])

    def wrong(self) -> str:
        for name, wanted in self.wanted.items():
            engine = self.daemon.show(name)
            tree, mine = self.daemon.tree(name), self.daemon.shims(name)
            if len(mine) > 1:
                return f"{name} has the shims {mine}"
            if not wanted:
                if engine["state"] not in ("inactive", "failed") or tree:
                    return f"{name} should be down, is {engine['state']} with {tree}"
            elif name in SERVERS:
                if engine["substate"] != "ready" or engine["pid"] not in tree:
                    return f"{name} should be ready, is {engine['substate']} ({engine['pid']} of {tree})"
                if len(tree) > (2 if name == "forker" else 1):
                    return f"{name} is doubled: {tree}"
                try:
                    if get(self.ports[name], timeout=2) != b"%d" % engine["pid"]:
                        return f"another process answers for {name}"
                except (OSError, AssertionError) as error:
                    return f"{name} does not answer: {error}"
            elif engine["state"] not in ("activating", "active", "deactivating") or len(tree) > 3:
                return f"{name} should be restarting, is {engine['state']} with {tree}"
        return ""

    def descriptors(self) -> int:
        assert self.daemon.process is not None
        return len(os.listdir(f"/proc/{self.daemon.process.pid}/fd"))

    def end(self) -> None:
        """Stop all that crashes by itself, count descriptors over some rounds, and leave."""
        for name in CRASHERS:
            self.daemon.client.stop(name)
            self.wanted[name] = False
        self.settle()
        counts = []
        for _ in range(4):
            for verb in (self.daemon.client.stop, self.daemon.client.start):
                for name in SERVERS:
                    verb(name, wait=DEADLINE)
                    self.wanted[name] = verb == self.daemon.client.start
                self.settle()
            counts.append(self.descriptors())
        assert counts[-1] <= counts[0], f"descriptors leak: {counts}\n{self.story()}"
        left = [pid for name in ENGINES for pid in (*self.daemon.tree(name), *self.daemon.shims(name))]
        assert self.daemon.terminate() == 0
        for pid in left:
            print(f"awaiting the end of {pid}: {_title(pid)!r}")
            await_end(pid)
        assert not [pid for name in ENGINES for pid in self.daemon.tree(name) if is_alive(pid)]


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("seed", SEEDS)
def test_engines_outlive_everything(daemon: Daemon, seed: int) -> None:
    """Scenario 15.1: engines that serve, crash, fork, daemonise and ignore signals, under random mishaps.

    Result: after each of them, within the deadline: what is wanted serves, once; what is not wanted has no
    process; at the end nothing is left, and the daemon holds no more descriptors than before.
    """
    chaos = Chaos(daemon, seed)
    print(f"seed {seed}")
    try:
        chaos.run(STEPS)
        chaos.end()
    finally:
        print(chaos.story())
