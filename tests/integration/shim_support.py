"""A real shim that a test speaks to itself, byte by byte, in the daemon's place."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sagectl.shim import tree
from sagectl.shim.channel import packed
from sagectl.system.shim_link import connect
from sagectl.system.start_zygote import start_zygote

PATIENCE = 10.0  # seconds until something that should come is missed

# No letters of which the name of a program or a file could be made.
texts = st.text(alphabet="x{}[]:=%/\\\"'\n\0 é\ud800😀", max_size=5)
numbers = st.sampled_from([-1, 0, 1, 2, 64, 65, 1 << 31, 1 << 32, 1 << 63, 1 << 64, -(1 << 70)]) | st.floats()
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def mutated(draw: st.DrawFn, message: dict[str, Any], most: int = 2) -> dict[str, Any]:
    """The message with up to `most` of its parts replaced, left out or added to, at any depth."""
    changed: dict[str, Any] = json.loads(json.dumps(message))
    for _ in range(draw(st.integers(0, most))):
        holder: Any = changed
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                holder = inner
                continue
            if draw(st.integers(0, 4)):
                holder[key] = draw(values)
            else:
                del holder[key]
            break
    return changed


class Wire:
    """A connection to a shim, with the messages that come on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.data = sock, b""
        sock.setblocking(True)
        sock.settimeout(PATIENCE)

    def send(self, **message: Any) -> None:
        self.sock.sendall(packed(message))

    def say(self, *pieces: bytes) -> list[dict[str, Any]]:
        """Send raw bytes and hang up; what the shim said until it did so too, which it may do first."""
        with contextlib.suppress(OSError):
            for piece in pieces:
                self.sock.sendall(piece)
            self.sock.shutdown(socket.SHUT_WR)
        answers = []
        while message := self.receive():
            answers.append(message)
        self.close()
        return answers

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where the shim hung up."""
        while len(self.data) < 4 or len(self.data) < struct.unpack_from(">I", self.data)[0] + 4:
            try:
                more = self.sock.recv(262144)
            except ConnectionError:
                more = b""
            if not more:
                return None
            self.data += more
        size = struct.unpack_from(">I", self.data)[0] + 4
        message: dict[str, Any] = json.loads(self.data[4:size])
        self.data = self.data[size:]
        return message

    def until(self, *ops: str) -> dict[str, Any] | None:
        """The next message with one of these `op`s; None where the shim hung up before."""
        while (message := self.receive()) and message["op"] not in ops:
            pass
        return message

    def close(self) -> None:
        self.sock.close()


class LoneShim:
    """A zygote and one shim of it, without a daemon."""

    def __init__(self, home: Path, *, mode: str = "new") -> None:
        self.home, self.directory = home, home / "run" / "engines" / "chat"
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.zygote, self.control = start_zygote(home / "run")
        self.control.setblocking(True)
        self.pid = self.pidfd = -1
        self.generation = 0
        self.make(mode).close()

    def make(self, mode: str) -> Wire:
        """Have a shim made, in place of one that is gone."""
        ours, theirs = socket.socketpair()
        log = {"path": str(self.home / "chat.log"), "max_bytes": 1 << 20, "keep": 1}
        order = {"name": "chat", "dir": str(self.directory), "log": log, "mode": mode}
        socket.send_fds(self.control, [json.dumps(order).encode()], [theirs.fileno()])
        theirs.close()
        wire = Wire(ours)
        hello = wire.receive()
        assert hello, self.crash()
        assert hello["op"] == "hello", hello
        self.pid = hello["shim_pid"]
        self.pidfd = os.pidfd_open(self.pid)
        return wire

    def talk(self) -> tuple[Wire, dict[str, Any]]:
        """A new connection, which the shim prefers to the one before, and its hello."""
        wire = Wire(connect(self.directory))
        hello = wire.receive()
        assert hello, self.crash()
        return wire, hello

    def expect_alive(self) -> dict[str, Any]:
        """Its hello. Where it ended, one that takes over is made, for the examples that come after."""
        try:
            wire, hello = self.talk()
        except (AssertionError, OSError):
            crash = self.crash()
            self.make("adopt").close()
            raise AssertionError(crash) from None
        wire.close()
        return hello

    def alive(self) -> bool:
        return not tree.has_ended(self.pidfd)

    def ended(self) -> bool:
        """It has ended, or does so soon."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(PATIENCE * 1000))

    def crash(self) -> str:
        """What it left of a crash."""
        path = self.directory / "shim.crash"
        return f"the shim ended\n{path.read_text() if path.exists() else ''}"

    def launch(self, *argv: str) -> dict[str, Any]:
        """Start an engine; the shim's `started`."""
        wire, _ = self.talk()
        wire.send(**self.order(*argv))
        started = wire.until("started")
        assert started
        wire.close()
        return started

    def order(self, *argv: str) -> dict[str, Any]:
        """A launch of the next generation."""
        self.generation += 1
        return {
            "op": "launch",
            "generation": self.generation,
            "argv": list(argv),
            "env": {"PATH": "/nowhere", "LANG": "C.UTF-8"},
            "cwd": "/",
            "user": None,
            "nice": None,
            "oom_score_adjust": None,
            "rlimits": {"nofile": [1024, 4096], "core": [0, 0]},
            "context": {"engine": "x"},
        }

    def marked(self) -> dict[int, int]:
        """Living processes of the engine, whatever the shim knows of them."""
        found = tree.marked(str(self.directory), -1, 0)
        return {pid: generation for pid, generation in found.items() if pid != self.pid}

    def empty(self) -> None:
        """Kill the tree, and wait until nothing of it is left."""
        wire, hello = self.talk()
        wire.send(op="kill-tree", generation=max(hello["generation"], self.generation))
        assert wire.until("tree-empty"), self.crash()
        wire.close()

    def close(self) -> None:
        """End the engine, the shim and the zygote."""
        if self.alive():
            self.empty()
            wire, _ = self.talk()
            wire.send(op="end")
            assert self.ended()
            wire.close()
        os.close(self.pidfd)
        self.control.close()
        self.zygote.wait(PATIENCE)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no event announces."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
