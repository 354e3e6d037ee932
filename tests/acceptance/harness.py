"""A real `sagectld` in a directory of its own, and what the scenarios ask of it.

Nothing here polls: a daemon is ready when it says READY=1 on the socket that it is given, an engine's
change is awaited on the daemon's event stream, a process's end on its pidfd, and programs that the
scenarios start report to a mailbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sagectl.client import Client, Engine, Event
from sagectl.system import groups
from tests.acceptance.listening import PATIENCE, Follower, Mailbox

BIN = Path(sys.executable).parent
PROGRAMS = Path(__file__).parent / "programs"
PORTS = range(20000, 32000)  # below the ephemeral range, so that no client's own port is one of them
_reserved: list[socket.socket] = []


def free_port(count: int = 1) -> int:
    """A port (the first of `count` consecutive ones) that nobody has, kept for this test session.

    Sessions and xdist's workers agree by binding abstract Unix sockets, which end with the process.
    """
    start = PORTS.start + os.getpid() * 61 % (len(PORTS) - 100)
    first: int
    for first in (*range(start, PORTS.stop - count), *range(PORTS.start, start)):
        held = [_reserve(port) for port in range(first, first + count)]
        if all(held):
            _reserved.extend(sock for sock in held if sock)
            return first
        for sock in filter(None, held):
            sock.close()
    raise AssertionError("no port is free")


def _reserve(port: int) -> socket.socket | None:
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0sagectl-acceptance-port-{port}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        mark.close()
        return None
    return mark


def server_command(*words: str) -> list[str]:
    """The command of an HTTP engine."""
    return [sys.executable, "-I", "-S", str(PROGRAMS / "server.py"), "--port", "{port}", *words]


def get(port: int, path: str = "/", timeout: float = PATIENCE) -> bytes:
    """Ask an engine; the body of its 200. Raises OSError, AssertionError for another status."""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer
    return body


# --- Processes ---------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """It runs, or could: a zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def await_end(pid: int, timeout: float = PATIENCE) -> None:
    """Return when the process has ended, zombies included."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(timeout * 1000), f"process {pid} is still alive after {timeout:g} s"
    finally:
        os.close(descriptor)


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Signal processes, all before any of them is awaited, and with SIGKILL await their ends."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if number == signal.SIGKILL:
        for pid in pids:
            await_end(pid)


def all_pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


# --- The daemon --------------------------------------------------------------------------------


class Daemon:
    """One SAGECTL_HOME and the daemons that run on it one after the other."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="sg", dir="/tmp"))
        self.etc = self.home / "etc"
        self.etc.mkdir()
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SAGECTL", "XDG_", "SAGE_"))},
            "SAGECTL_HOME": str(self.home),
            **(environ or {}),
        }
        self.mailbox = Mailbox(self.home / "mail")
        self.notified: list[str] = []
        self.events: list[Event] = []
        self._taken: set[int | None] = set()
        self.program = [str(BIN / "sagectld")]
        """How `sagectld` is run."""
        self.places = contextlib.ExitStack()
        """What else is to be undone once nothing of ours runs any more."""
        self.process: subprocess.Popen[bytes] | None = None
        self.client = Client(self.home / "run" / "sagectl.sock")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.home / "notify"))
        self._follower: Follower | None = None
        self._log = (self.home / "daemon.log").open("ab")

    # --- Up and down ---

    def configure(self, text: str, file: str = "sagectl.toml") -> Path:
        """Write the configuration; `{mail}` … are not filled in, use an f-string."""
        path = self.etc / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def engine(self, name: str, program: str = "server.py", *words: str, **keys: Any) -> str:
        """TOML of an exec engine that runs one of the scenarios' programs.

        keys: strings are TOML values as they are; others are written as TOML.
        """
        command = [sys.executable, "-I", "-S", str(PROGRAMS / program), *words]
        lines = [f"[engines.{name}]", 'kind = "exec"', f"command = {json.dumps(command)}"]
        env = {"MAIL": str(self.mailbox.path), **keys.pop("env", {})}
        lines.append("env = { " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in env.items()) + " }")
        keys.setdefault("stop", "{ drain = 0, timeout = 10 }")
        keys.setdefault("autostart", True)
        lines += [f"{k} = {v if isinstance(v, str) else json.dumps(v)}" for k, v in keys.items()]
        return "\n".join(lines) + "\n"

    def launch(self, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start `sagectld` and return at once."""
        self.process = subprocess.Popen(
            [*self.program, *arguments],
            env={**self.environ, "NOTIFY_SOCKET": str(self.home / "notify"), **environ},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd="/",
        )
        return self.process

    def start(self, *arguments: str, **environ: str) -> int:
        """Start `sagectld`, wait until it is ready; returns its pid."""
        process = self.launch(*arguments, **environ)
        self.expect_notification("READY=1")
        self.follow()
        return process.pid

    def follow(self) -> None:
        """Go on with the events of the daemon that is there now."""
        self._follower = Follower(self.client, self.last_event)

    def expect_notification(self, field: str, timeout: float = PATIENCE) -> str:
        """Wait until the daemon says this to systemd; fail with its log where it ends before.

        Returns the whole datagram. Each is looked at once.
        """
        assert self.process is not None
        descriptor = os.pidfd_open(self.process.pid)
        poll = select.poll()
        poll.register(self._notify, select.POLLIN)
        poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + timeout
        try:
            while True:
                ready = dict(poll.poll(max(0.0, end - time.monotonic()) * 1000))
                assert ready, f"sagectld did not say {field}; it said {self.notified}\n{self.daemon_log()}"
                if self._notify.fileno() not in ready:
                    raise AssertionError(f"sagectld ended with {self.process.wait()}\n{self.daemon_log()}")
                message = self._notify.recv(65536).decode()
                self.notified.append(message)
                if field in message.splitlines() or any(
                    field.endswith("=") and line.startswith(field) for line in message.splitlines()
                ):
                    return message
        finally:
            os.close(descriptor)

    def kill(self) -> None:
        """SIGKILL the daemon."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Have the daemon end, and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def daemon_log(self) -> str:
        """What the daemons wrote to their standard error."""
        return (self.home / "daemon.log").read_text()

    def close(self) -> None:
        """End everything that was started on this directory, and remove it."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        left = self.pids(lambda pid: self.is_ours(pid))
        while left:  # whoever forks while we look is found by the next look
            kill(*left)
            left = self.pids(lambda pid: self.is_ours(pid))
        if (root := groups.mount()) is not None:
            groups.remove(root / groups.name_of(self.home / "run" / "engines"))
        self.mailbox.close()
        self._notify.close()
        self._log.close()
        for event in self.events:
            print(event["id"], event["at"], event["engine"], event["kind"], event["text"])
        print(self.daemon_log())
        self.places.close()
        shutil.rmtree(self.home, ignore_errors=True)

    # --- Looking at processes ---

    def pids(self, wanted: Callable[[int], bool]) -> list[int]:
        """The living processes, ourselves left out, of which this holds."""
        return [pid for pid in all_pids() if pid != os.getpid() and is_alive(pid) and wanted(pid)]

    def is_ours(self, pid: int) -> bool:
        """It is an engine, a shim or a zygote of this directory, or was left by one."""
        return bool(self._mark(pid)) or self._cwd(pid).startswith(f"{self.home}/")

    def _cwd(self, pid: int) -> str:
        try:
            return os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            return ""

    def _mark(self, pid: int) -> str:
        """NAME of the engine whose tree the process is of, by its environment."""
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return ""
        for variable in variables:
            if variable.startswith(b"SAGECTL_ENGINE=") and f":{self.home}/".encode() in variable:
                return variable.partition(b"=")[2].partition(b":")[0].decode()
        return ""

    def web(self, name: str = "web", *words: str, **keys: Any) -> int:
        """Configure one HTTP engine, alone, that restarts without delay; returns its port."""
        port = free_port()
        self.configure(self.web_engine(name, port, *words, **keys))
        return port

    def web_engine(self, name: str, port: int, *words: str, **keys: Any) -> str:
        """TOML of an HTTP engine that is probed quickly and restarts without delay."""
        keys.setdefault("probe", '{ http = "/health", interval = 0.2, timeout = 2 }')
        keys.setdefault("restart", "{ delay = 0, limit = 0 }")
        return self.engine(name, "server.py", "--port", "{port}", *words, port=port, **keys)

    def tree(self, name: str) -> list[int]:
        """The living processes that carry the engine's mark: every instance, wherever it came from."""
        return self.pids(lambda pid: self._mark(pid) == name)

    def shim(self, name: str) -> int:
        """The pid of the engine's shim."""
        directory = str(self.home / "run" / "engines" / name)
        found = self.pids(lambda pid: self._cwd(pid) == directory and not self._mark(pid))
        assert len(found) == 1, found
        return found[0]

    def shims(self, name: str) -> list[int]:
        """The living shims of an engine, also where their directory is gone."""
        title = f"sagectl-shim {name}\0".encode()

        def is_shim(pid: int) -> bool:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                return False
            return command.startswith(title) and self._cwd(pid).startswith(f"{self.home}/")

        return self.pids(is_shim)

    def children_of_daemon(self) -> list[int]:
        """The daemon's own living children."""
        assert self.process is not None
        parent = str(self.process.pid)

        def is_child(pid: int) -> bool:
            try:
                return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1] == parent
            except OSError:
                return False

        return self.pids(is_child)

    # --- Asking ---

    def cli(self, *words: str, timeout: float = 60.0, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `sagectl`."""
        return subprocess.run(
            [BIN / "sagectl", *words],
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def json(self, *words: str) -> Any:
        """What `sagectl --json` prints."""
        answer = self.cli("--json", *words)
        return json.loads(answer.stdout or answer.stderr)

    def show(self, name: str) -> Engine:
        """The engine now."""
        return self.client.engine(name)

    @property
    def last_event(self) -> int | None:
        """The id of the newest event that was seen."""
        return max((event["id"] or 0 for event in self.events), default=None)

    def _next_event(self, end: float, wanted: str) -> Event:
        assert self._follower is not None, "no daemon was started"
        try:
            event = self._follower.queue.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            event = None
        if event is None:
            said = "\n".join(f"{e['engine']} {e['kind']}: {e['text']}" for e in self.events)
            pytest.fail(f"{wanted} did not come about; events:\n{said}\n{self.daemon_log()}", pytrace=True)
        self.events.append(event)
        return event

    def until(
        self, name: str, holds: Callable[[Engine], bool], what: str = "", timeout: float = PATIENCE
    ) -> Engine:
        """Wait until something holds of an engine; it is looked at once and after each of its events."""
        end = time.monotonic() + timeout
        while True:
            engine = self.show(name)
            if holds(engine):
                return engine
            told = f"{what or 'what was awaited'} of {name}, which is {engine}"
            while self._next_event(end, told)["engine"] != name:
                pass

    def until_state(self, name: str, *words: str, timeout: float = PATIENCE) -> Engine:
        """Wait for one of these states or substates."""
        return self.until(
            name, lambda e: e["state"] in words or e["substate"] in words, " or ".join(words), timeout
        )

    def until_ready(self, *names: str) -> list[Engine]:
        """Wait until all of them are ready (a job: running)."""
        return [self.until_state(name, "ready", "running") for name in names]

    def expect_event(self, kind: str, name: str | None = None, timeout: float = PATIENCE) -> Event:
        """The next event of this kind (and engine), each returned once; one that has come already counts."""
        end = time.monotonic() + timeout
        unread = iter(self.events[:])
        while True:
            event = next(unread, None) or self._next_event(end, f"the event {kind} of {name}")
            if event["kind"] == kind and name in (None, event["engine"]) and event["id"] not in self._taken:
                self._taken.add(event["id"])
                return event
