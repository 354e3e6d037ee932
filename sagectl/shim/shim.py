"""The loop of a shim. It never waits for the daemon, and decides nothing: it starts, watches, tells.

Its working directory is RUN/engines/NAME. The daemon's requests are the `op_` methods; every message
that concerns a start carries its generation. The first message on a connection is the shim's hello.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time

from sagectl.shim import tree
from sagectl.shim.channel import Channel, Loop, packed
from sagectl.shim.engine import IDENTITY, VERSION, Engine
from sagectl.shim.files import lock_alone
from sagectl.shim.group import Group
from sagectl.shim.launch import CAUGHT
from sagectl.shim.log import Log
from sagectl.shim.orders import context_of, generation_of, number_of, signal_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 65536  # larger reads of a pipe are slower
CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
ADDRESS_MAX = 107  # bytes of a Unix socket's path


class Shim:
    """Everything around one engine: its log, its sockets, the daemon."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.name: str = order["name"]
        self.directory: str = order["dir"]
        self.ending = False
        os.umask(0o022)
        self._lock()
        self.loop = Loop()
        self.channel = Channel(self.loop)
        self.send = self.channel.send
        self.log = Log(**order["log"])
        self.log.report = lambda text: self.send(op="log-trouble", text=text, dropped=self.log.dropped)
        group = Group(order.get("group"), self.name)
        self.engine = Engine(self.name, self.directory, self.loop, self.log, self.send, group)
        self.engine.drain = self._on_output
        self.fifos: list[int] = []
        self._open_fifo()
        self._open_sockets()
        self._catch_signals()
        if order["mode"] == "adopt":
            self.engine.adopt()
            self._follow_main()

    def _lock(self) -> None:
        self.lock = lock_alone("shim.lock", wait=2.0)
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, f"{os.getpid()} {tree.start_time(os.getpid())}\n".encode(), 0)

    def _open_fifo(self) -> None:
        if not os.path.exists("log.fifo"):
            os.mkfifo("log.fifo", 0o600)
        self._follow_fifo("log.fifo")

    def _follow_fifo(self, path: str) -> None:
        # O_RDWR: it never ends for us; and an engine that outlives us blocks when it is full, no SIGPIPE
        fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.fifos.append(fifo)
        self.loop.watch(fifo, self._on_output)

    def _follow_main(self) -> None:
        """An adopted engine writes into the FIFO that it began with, even where that was removed since."""
        for number in (1, 2):
            path = f"/proc/{self.engine.main}/fd/{number}"
            with contextlib.suppress(OSError):
                known = {os.fstat(fifo).st_ino for fifo in self.fifos}
                ours = os.readlink(path).startswith(f"{self.directory}/log.fifo")
                if ours and os.stat(path).st_ino not in known:
                    self._follow_fifo(path)

    def _open_sockets(self) -> None:
        self.listener = bound(socket.SOCK_STREAM, "shim.sock", 0o600)
        self.listener.listen(8)
        self.loop.watch(self.listener.fileno(), self._on_connect)
        self.notify_path = f"{self.directory}/notify.sock"
        address = "notify.sock"
        if len(os.fsencode(self.notify_path)) > ADDRESS_MAX:  # an abstract address, then
            here = os.stat(".")
            self.notify_path = f"@sagectl/{here.st_dev:x}-{here.st_ino:x}"
            address = "\0" + self.notify_path[1:]
        self.notify = bound(socket.SOCK_DGRAM, address, 0o666)  # `_trusts` decides
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.loop.watch(self.notify.fileno(), self._on_notify)

    def close_sockets(self) -> None:
        """Stop listening."""
        for sock in (self.listener, self.notify):
            self.loop.unwatch(sock.fileno())
            sock.close()

    def _catch_signals(self) -> None:
        self.wake, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in CAUGHT:  # caught, not ignored: the engine would inherit that
            signal.signal(number, lambda number, frame: None)
        self.loop.watch(self.wake, self._on_signal)

    def run(self, connection: socket.socket) -> None:
        """Serve this daemon, and whoever connects after it, until told to end."""
        self.attach(connection)
        engine = self.engine
        while not self.ending:
            self.loop.turn(None if engine.next_look is None else engine.next_look - time.monotonic())
            if engine.next_look is not None and time.monotonic() >= engine.next_look:
                engine.next_look = None
                engine.kill_round()

    def _on_signal(self) -> None:
        caught = b""
        with contextlib.suppress(BlockingIOError):
            caught = os.read(self.wake, 4096)
        if signal.SIGHUP in caught:
            self.move_in()
        self.engine.look()

    # --- Output and notifications ---

    def _on_output(self) -> None:
        self.engine.remember()
        for fifo in self.fifos:
            for _ in range(16):  # then let others have a turn
                try:
                    data = os.read(fifo, CHUNK)
                except BlockingIOError:
                    break
                self.log.write(data)

    def _on_notify(self) -> None:
        try:
            data, ancillary, _, _ = self.notify.recvmsg(CHUNK, socket.CMSG_SPACE(CREDENTIALS.size))
        except OSError:
            return
        senders = [
            CREDENTIALS.unpack(value[: CREDENTIALS.size])
            for _, kind, value in ancillary
            if kind == socket.SCM_CREDENTIALS
        ]
        if not self.engine.main or not any(self._trusts(pid, uid) for pid, uid, _ in senders):
            return
        lines = data.decode(errors="replace").splitlines()
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        if fields.get("READY") == "1" or fields.get("STOPPING") == "1":
            self.engine.ready = "STOPPING" not in fields
            self.engine.note(ready=self.engine.ready)
        self.send(op="notify", generation=self.engine.generation, fields=fields)

    def _trusts(self, pid: int, uid: int) -> bool:
        """A process of the tree; one that has ended meanwhile (systemd-notify) counts by its user."""
        if tree.process_stat(pid) is None:
            return uid == self.engine.started.get("uid")
        return self.engine.contains(pid)

    # --- The daemon ---

    def _hello(self) -> dict[str, Any]:
        engine = self.engine
        return {
            "op": "hello",
            "v": VERSION,
            "name": self.name,
            "shim_pid": os.getpid(),
            "generation": engine.generation,
            "engine": {key: engine.started[key] for key in IDENTITY} if engine.main else None,
            "exit": engine.exit,
            "left": max(1, len(engine.members())) if engine.occupied and not engine.main else 0,
            "ready": engine.ready,
            "log": {"written": self.log.written, "dropped": self.log.dropped, "trouble": self.log.trouble},
            "adopted": engine.adopted,
        }

    def _on_connect(self) -> None:
        with contextlib.suppress(OSError):
            self.attach(self.listener.accept()[0])

    def attach(self, connection: socket.socket) -> None:
        """Serve the daemon on this connection from now on."""
        self.channel.attach(connection, self._on_message)
        self.send(**self._hello())

    def _on_message(self) -> None:
        for message in self.channel.receive():
            handler = getattr(self, "op_" + str(message.get("op")).replace("-", "_"), None)
            if handler:  # a newer daemon may know more than we do
                try:
                    handler(message)
                except ValueError:
                    self.channel.close()  # its mistake must not end us
                    return

    def op_launch(self, message: dict[str, Any]) -> None:
        """→ started or refused; later exited."""
        if not os.path.exists("log.fifo"):
            self.move_in()
        self.engine.launch(message, self.notify_path)

    def op_signal(self, message: dict[str, Any]) -> None:
        """Signals the main process alone."""
        self.engine.signal(generation_of(message), signal_of(message))

    def op_kill_tree(self, message: dict[str, Any]) -> None:
        """→ exited if the main process lived, stubborn each second, at last tree-empty."""
        self.engine.kill_tree(generation_of(message))

    def op_context(self, message: dict[str, Any]) -> None:
        """Replaces what started.json keeps for the daemon."""
        self.engine.note(context=context_of(message))
        self.engine.note_shared()  # sent when its state changes: it is ready now, say
        self.engine.members()

    def op_measure(self, message: dict[str, Any]) -> None:
        """→ measured: what the whole tree uses."""
        number, members = number_of(message), self.engine.members()
        facts: dict[str, Any] = {**tree.usage(members), "processes": len(members)}
        facts["log_written"] = self.log.written + self.log.dropped
        self.send(op="measured", id=number, generation=self.engine.generation, **facts)

    def op_pids(self, message: dict[str, Any]) -> None:
        """→ pids: who lives in the tree."""
        self.send(op="pids", id=number_of(message), pids=sorted(self.engine.members()))

    def op_renew(self, message: dict[str, Any]) -> None:
        """Somebody removed the runtime directory."""
        self.move_in()

    def move_in(self) -> None:
        """Put back what is missing of our files: without them no other daemon would find us.

        Asked for by SIGHUP too, as that needs no file.
        """
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            os.chdir(self.directory)
            if not os.path.exists("shim.lock"):
                os.close(self.lock)
                self._lock()
            if not os.path.exists("log.fifo"):
                self._open_fifo()
            if not os.path.exists("shim.sock"):
                self.close_sockets()
                self._open_sockets()
            self.engine.write_records()
        except OSError as error:
            self.log.report(f"cannot make {self.directory} again: {error.strerror}")

    def op_end(self, message: dict[str, Any]) -> None:
        """Leaves, taking the directory along, if nothing lives in the tree."""
        self.engine.look()
        if self.engine.occupied:
            self.engine.refuse(self.engine.generation, "processes are alive", None)
            return
        self._on_output()
        self.engine.group.leave()
        with contextlib.suppress(OSError):
            for entry in sorted(os.listdir("."), key="shim.lock".__eq__):  # our lock last
                os.unlink(entry)
            os.rmdir(self.directory)
        self.ending = True


def bound(kind: int, address: str, mode: int) -> socket.socket:
    """A non-blocking Unix socket at `address`, in place of whatever was there."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.setblocking(False)
    if address[0] == "\0":
        sock.bind(address)
        return sock
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)
    sock.bind(address)
    os.chmod(address, mode)
    return sock


def main(order: dict[str, Any], connection: socket.socket) -> None:
    """Be the shim of one engine, in a process made for it."""
    try:
        os.makedirs(order["dir"], mode=0o700, exist_ok=True)
        os.chdir(order["dir"])
        shim = Shim(order)
    except BlockingIOError:
        fatal(connection, "another shim is alive")
    except OSError as error:
        fatal(connection, f"its shim cannot use {error.filename or order['dir']}: {error.strerror}")
    else:
        shim.run(connection)


def fatal(connection: socket.socket, text: str) -> None:
    """Tell why there will be no shim."""
    connection.setblocking(True)
    connection.sendall(packed({"op": "fatal", "text": text}))
