"""The loop of a shim. It never waits for the daemon, and decides nothing: it starts, watches, tells.

The working directory is RUN/engines/NAME. Messages from and to the daemon are JSON objects, each
after its length in 4 bytes (big-endian); every message that concerns a start carries its generation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time

from sagectl.shim import tree
from sagectl.shim.channel import Channel, Loop, packed
from sagectl.shim.files import read_json, write_json
from sagectl.shim.launch import IGNORED, become_engine
from sagectl.shim.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
CHUNK = 65536  # larger reads of a pipe are slower
CREDENTIALS = struct.Struct("iII")
IDENTITY = ("pid", "starttime", "boot_id", "started", "started_wall", "log_position")


class Shim:
    """Everything about one engine's processes. Made in the shim's own process; `run` never returns."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.name: str = order["name"]
        self.directory: str = order["dir"]
        self.mark = f":{self.directory}".encode(errors="surrogateescape")
        self.boot_id = tree.boot_id()
        self.loop = Loop()
        self.channel = Channel(self.loop)
        self.send = self.channel.send
        self.generation = 0
        self.started: dict[str, Any] = {}  # started.json of the current generation
        self.exit: dict[str, Any] | None = None
        self.main = self.main_since = 0  # the living main process and when it began; 0: none
        self.main_fd = -1
        self.sync: socket.socket | None = None  # open while the fork has not become the engine yet
        self.occupied = False  # processes of the tree may be alive
        self.adopted = False  # the tree is not, or not only, made of our descendants
        self.known: dict[int, int] = {}  # members of an adopted tree, as they were last seen
        self.killing = self.signalled_kill = self.ready = self.ending = False
        self.kill_generation, self.kill_pause = 0, 0.0
        self.next_round: float | None = None
        self.next_complaint = 0.0
        self.oom_before = 0
        self._open_files(order["log"])
        if order["mode"] == "adopt":
            self._adopt()

    # --- Start and end of the shim ---

    def _open_files(self, log: dict[str, Any]) -> None:
        self.shim_lock = lock_alone("shim.lock", wait=2.0)
        text = f"{os.getpid()} {tree.start_time(os.getpid())}\n".encode()
        os.ftruncate(self.shim_lock, 0)
        os.pwrite(self.shim_lock, text, 0)
        if not os.path.exists("log.fifo"):
            os.mkfifo("log.fifo", 0o600)
        # O_RDWR: never at its end, and an engine that outlives us keeps a reader (itself)
        self.fifo = os.open("log.fifo", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.log = Log(log["path"], log["max_bytes"], log["keep"])
        self.log.report = lambda text: self.send(op="log-trouble", text=text, dropped=self.log.dropped)
        self.listener = bound(socket.SOCK_STREAM, "shim.sock", "shim.sock", 0o600)
        self.listener.listen(8)
        path = f"{self.directory}/notify.sock"
        if len(os.fsencode(path)) > 107:  # longer than a Unix socket's address may be
            path = f"\0sagectl/{os.stat('.').st_dev:x}-{os.stat('.').st_ino:x}"
        self.notify_address = path.replace("\0", "@")
        address = path if path[0] == "\0" else "notify.sock"
        self.notify = bound(socket.SOCK_DGRAM, "notify.sock", address, 0o666)
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        self.wake = wake_read
        self.loop.watch(wake_read, self._on_children)
        self.loop.watch(self.fifo, self._on_output)
        self.loop.watch(self.notify.fileno(), self._on_notify)
        self.loop.watch(self.listener.fileno(), self._on_connect)

    def run(self, connection: socket.socket) -> None:
        """Serve this daemon, and whoever connects after it, until told to end."""
        self._attach(connection)
        while not self.ending:
            self.loop.turn(None if self.next_round is None else self.next_round - time.monotonic())
            if self.next_round is not None and time.monotonic() >= self.next_round:
                self.next_round = None
                self._round()

    def op_end(self, message: dict[str, Any]) -> None:
        """Leave, taking the directory along, if nothing lives in the tree."""
        self._on_children()
        if self.occupied:
            self.send(op="refused", generation=self.generation, text="processes are alive", errno=None)
            return
        self._on_output()
        with contextlib.suppress(OSError):
            for entry in sorted(os.listdir("."), key="shim.lock".__eq__):  # our lock last
                os.unlink(entry)
            os.rmdir(self.directory)
        self.ending = True

    # --- The daemon ---

    def _hello(self) -> dict[str, Any]:
        running = self.main and not self.sync
        return {
            "op": "hello",
            "v": VERSION,
            "name": self.name,
            "shim_pid": os.getpid(),
            "shim_starttime": tree.start_time(os.getpid()),
            "generation": self.generation,
            "engine": {key: self.started[key] for key in IDENTITY} if running else None,
            "launching": self.sync is not None,
            "exit": self.exit,
            "left": max(1, len(self._members())) if self.occupied and not self.main else 0,
            "ready": self.ready,
            "log": {"written": self.log.written, "dropped": self.log.dropped, "trouble": self.log.trouble},
            "adopted": self.adopted,
        }

    def _on_connect(self) -> None:
        with contextlib.suppress(OSError):
            self._attach(self.listener.accept()[0])

    def _attach(self, connection: socket.socket) -> None:
        self.channel.attach(connection, self._on_message)
        self.send(**self._hello())

    def _on_message(self) -> None:
        for message in self.channel.receive():
            handler = getattr(self, "op_" + str(message.get("op")).replace("-", "_"), None)
            if handler:  # a newer daemon may know more than we do
                try:
                    handler(message)
                except (KeyError, TypeError, ValueError):
                    self.channel.close()  # its mistake must not end us
                    return

    # --- Launching ---

    def op_launch(self, order: dict[str, Any]) -> None:
        """Start the engine, unless anything of the last one lives: the guard against doubles is here."""
        generation = order["generation"]
        self._on_children()
        if self.generation == generation:
            return  # asked again by a daemon that lost its connection: hello told it
        if self.main or self.sync or self.occupied:
            self._refuse(generation, "busy: processes of the last start are alive", errno.EBUSY)
            return
        try:
            lock = lock_alone("tree.lock")
        except OSError:
            self._refuse(generation, "busy: a process holds tree.lock", errno.EBUSY)
            return
        try:
            self._fork(order, lock)
        except OSError as error:
            self._refuse(generation, f"cannot start a process: {error.strerror}", error.errno)
        finally:
            os.close(lock)

    def _refuse(self, generation: int, text: str, number: int | None) -> None:
        self.send(op="refused", generation=generation, text=text, errno=number)

    def _fork(self, order: dict[str, Any], lock: int) -> None:
        env = dict(order["env"])
        env["NOTIFY_SOCKET"] = self.notify_address
        env[tree.MARKER] = f"{self.name}:{order['generation']}:{self.directory}"
        if order.get("user"):
            os.chmod(".", 0o711)
            os.chown("log.fifo", order["user"][0], -1)
        out = os.open("log.fifo", os.O_RDWR | os.O_CLOEXEC)  # its own: the engine may set O_NONBLOCK on it
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                become_engine(order, env, theirs, out, lock)
        finally:
            os.close(out)
            theirs.close()
        try:
            self._note_start(order, pid)
            ours.sendall(b"g")
        except OSError:
            ours.close()  # the fork ends without our word
            os.waitpid(pid, 0)
            raise
        self.generation, self.sync, self.exit = order["generation"], ours, None
        self.main, self.main_since = pid, self.started["starttime"]
        self.main_fd = os.pidfd_open(pid)
        self.occupied = True
        self.ready = self.killing = self.signalled_kill = False
        self.loop.watch(ours.fileno(), self._on_exec)

    def _note_start(self, order: dict[str, Any], pid: int) -> None:
        self.started = {
            "v": VERSION,
            "generation": order["generation"],
            "pid": pid,
            "starttime": tree.start_time(pid),
            "boot_id": self.boot_id,
            "started": time.monotonic(),
            "started_wall": time.time(),
            "log_position": self.log.written,
            "shim_pid": os.getpid(),
            "uid": order["user"][0] if order.get("user") else os.geteuid(),
            "ready": False,
            "context": order.get("context"),
        }
        write_json("started.json", self.started)
        self._write_pid(pid)

    def _write_pid(self, pid: int) -> None:
        temporary = f"pid.{self.name}"
        with open(temporary, "w") as file:
            file.write(f"{pid}\n")
        os.rename(temporary, f"../{self.name}.pid")

    def _on_exec(self) -> None:
        """The fork became the engine (its end closed with exec), or said why it could not."""
        assert self.sync
        try:
            problem = self.sync.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            problem = b""
        self.loop.unwatch(self.sync.fileno())
        self.sync.close()
        self.sync = None
        if not problem:
            identity = {key: self.started[key] for key in IDENTITY}
            self.send(op="started", generation=self.generation, **identity)
            self.oom_before = tree.oom_kills()
            return
        number, _, step = problem.decode(errors="replace").partition(" ")
        os.waitpid(self.main, 0)
        text = f"cannot {step}: {os.strerror(int(number))}"
        self._forget_main({"code": None, "signal": None, "oom": False, "error": text})
        self._refuse(self.generation, text, int(number))
        self._empty(tell=self.killing)

    def op_context(self, message: dict[str, Any]) -> None:
        """Replace what started.json carries for the daemon."""
        if self.started:
            self.started["context"] = message["context"]
            self._save_started()

    def _save_started(self) -> None:
        try:
            write_json("started.json", self.started)
        except OSError as error:
            self.log.report(f"cannot write {self.directory}/started.json: {error.strerror}")

    # --- Output and notifications ---

    def _on_output(self) -> None:
        for _ in range(16):  # then let others have a turn
            try:
                data = os.read(self.fifo, CHUNK)
            except BlockingIOError:
                return
            self.log.write(data)

    def _on_notify(self) -> None:
        try:
            data, ancillary, _, _ = self.notify.recvmsg(CHUNK, socket.CMSG_SPACE(CREDENTIALS.size))
        except OSError:
            return
        if not self.main or not any(
            self._trusts(*CREDENTIALS.unpack(value[: CREDENTIALS.size]))
            for _, kind, value in ancillary
            if kind == socket.SCM_CREDENTIALS
        ):
            return
        lines = data.decode(errors="replace").splitlines()
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        if fields.get("READY") == "1" or fields.get("STOPPING") == "1":
            self.ready = "STOPPING" not in fields
            self.started["ready"] = self.ready
            self._save_started()
        self.send(op="notify", generation=self.generation, fields=fields)

    def _trusts(self, pid: int, uid: int, gid: int) -> bool:
        """A process of the tree; one that has ended meanwhile (systemd-notify) counts by its user."""
        ancestor: int | None = pid
        while ancestor and ancestor > 1:
            if ancestor in (self.main, os.getpid()):
                return True
            fields = tree.process_stat(ancestor)
            if fields is None and ancestor == pid:
                return uid == self.started.get("uid")
            ancestor = int(fields[1]) if fields else None
        return self.adopted and pid in self._members()

    # --- The tree, its exit and its end ---

    def _adopt(self) -> None:
        """Take over from a shim that was killed: find the engine again by its verified identity."""
        self.started = read_json("started.json")
        if self.started.get("boot_id") != self.boot_id or "generation" not in self.started:
            self.started = {}
            return  # nothing of this boot: an empty tree
        self.generation = self.started["generation"]
        self.ready = bool(self.started.get("ready"))
        self.occupied = self.adopted = True
        pid, since = self.started["pid"], self.started["starttime"]
        self.main_since = since
        try:
            pidfd = os.pidfd_open(pid)  # first open, then verify: from here on it cannot be another
        except OSError:
            pidfd = -1
        if pidfd >= 0 and tree.start_time(pid) == since:
            self.main, self.main_fd = pid, pidfd
            self.loop.watch(pidfd, self._on_children)
        elif pidfd >= 0:
            os.close(pidfd)
        noted = read_json("exit.json")
        self.oom_before = tree.oom_kills()
        if noted.get("generation") == self.generation:
            self.exit = noted
        elif not self.main:
            self._main_ended(None, childless=True)
        self._on_children()

    def _members(self) -> dict[int, int]:
        """The living processes of the tree as {pid: starttime}."""
        found = tree.living(tree.children(os.getpid()))
        if self.adopted:
            roots = tree.marked(self.mark, self.started["pid"], self.main_since)
            roots += [pid for pid, since in self.known.items() if tree.start_time(pid) == since]
            found |= tree.living(roots)
            found.pop(os.getpid(), None)
            self.known = found
        return found

    def _on_children(self) -> None:
        """Reap, and see what that means for the main process and the tree."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, 4096)
        if self.sync:
            self._on_exec()  # if it came to that, its start is told before its end
        status, childless = self._reap()
        if self.adopted and self.main and ended(self.main_fd):
            self._main_ended(tree.foreign_status(self.main, self.main_since, self.main_fd), childless)
        elif status is not None:
            self._main_ended(status, childless)
        elif self.occupied and not self.main:
            self._look_for_life(childless, tell=True)

    def _reap(self) -> tuple[int | None, bool]:
        """The main process's wait status if it was among the dead, and whether no child is left.

        Being their subreaper, we have no child exactly when nothing of the tree is left, however
        its processes forked, and whatever sessions they made.
        """
        status = None
        try:
            while True:
                pid, result = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return status, False
                if pid == self.main:
                    status = result
        except ChildProcessError:
            return status, True

    def _look_for_life(self, childless: bool, *, tell: bool) -> int:
        """How many processes the tree still has; with none, it is closed."""
        left = 0 if childless and not self.adopted else len(self._members())
        if not left and childless:
            self._empty(tell=tell)
            return 0
        if self.adopted and self.next_round is None:
            self.next_round = time.monotonic() + 0.25  # nobody tells us of the end of strangers
        return max(1, left)

    def _main_ended(self, status: int | None, childless: bool) -> None:
        code = number = None
        oom = False
        if status is not None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            oom = number == signal.SIGKILL and not self.signalled_kill and tree.oom_kills() > self.oom_before
        elif status is not None:
            code = os.waitstatus_to_exitcode(status)
        how = {"code": code, "signal": number, "oom": oom}
        self._on_output()  # its last words are in the file when the daemon hears of its end
        self._forget_main(how)
        left = self._look_for_life(childless, tell=False)
        self.send(op="exited", generation=self.generation, left=left, **how)
        if self.killing and not left:
            self._tell_empty()

    def _forget_main(self, how: dict[str, Any]) -> None:
        if self.main_fd >= 0:
            self.loop.unwatch(self.main_fd)
            os.close(self.main_fd)
        self.main, self.main_fd, self.ready = 0, -1, False
        self.exit = {"v": VERSION, "generation": self.generation, "pid": self.started["pid"], **how}
        try:
            write_json("exit.json", {**self.exit, "at": time.time()})
        except OSError as error:
            self.log.report(f"cannot write {self.directory}/exit.json: {error.strerror}")

    def _empty(self, *, tell: bool) -> None:
        self.occupied = self.adopted = False
        self.known = {}
        self.next_round = None
        with contextlib.suppress(OSError):
            os.unlink(f"../{self.name}.pid")
        if tell:
            self._tell_empty()

    def _tell_empty(self) -> None:
        generation = self.kill_generation if self.killing else self.generation
        self.killing = False
        self.send(op="tree-empty", generation=generation)

    def op_signal(self, message: dict[str, Any]) -> None:
        """Signal the main process alone."""
        if message["generation"] == self.generation and self.main:
            self.signalled_kill |= message["signal"] == signal.SIGKILL
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.main_fd, message["signal"])

    def op_kill_tree(self, message: dict[str, Any]) -> None:
        """SIGKILL everything in the tree until nothing is left."""
        if not self.occupied:
            self.send(op="tree-empty", generation=message["generation"])
        elif message["generation"] >= self.generation and not self.killing:
            self.kill_generation = message["generation"]  # a later one: its launch was refused as busy
            self.killing = self.signalled_kill = True
            self.kill_pause = 0.002
            self.next_complaint = time.monotonic() + 1.0
            self._round()

    def _round(self) -> None:
        """Kill whoever lives, and look again soon: they may have forked in between."""
        if self.killing:
            for pid, since in self._members().items():
                tree.kill_verified(pid, since, signal.SIGKILL)
        self._on_children()
        if not self.killing or not self.occupied:
            return
        now = time.monotonic()
        if now >= self.next_complaint:
            self.next_complaint = now + 1.0
            self.send(op="stubborn", generation=self.generation, pids=sorted(self._members()))
        self.next_round = now + self.kill_pause
        self.kill_pause = min(self.kill_pause * 1.5, 0.1)

    def op_measure(self, message: dict[str, Any]) -> None:
        """What the whole tree uses."""
        members = self._members() if self.occupied else {}
        measured = tree.usage(members)
        written = self.log.written + self.log.dropped
        self.send(op="measured", id=message.get("id"), generation=self.generation, log_written=written,
                  processes=len(members), **measured)  # fmt: skip

    def op_pids(self, message: dict[str, Any]) -> None:
        """Who lives in the tree."""
        pids = sorted(self._members()) if self.occupied else []
        self.send(op="pids", id=message.get("id"), pids=pids)


def ended(pidfd: int) -> bool:
    """Whether the process is over (all of its threads)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def lock_alone(path: str, wait: float = 0.0) -> int:
    """A descriptor of `path` that holds its lock. Raises BlockingIOError where another keeps it."""
    deadline = time.monotonic() + wait
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise
            time.sleep(0.005)
        except FileNotFoundError:
            pass  # its last owner has just removed it
        os.close(fd)


def bound(kind: int, path: str, address: str, mode: int) -> socket.socket:
    """A non-blocking Unix socket at `address`, in place of whatever was at `path`."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.setblocking(False)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock.bind(address)
    if address == path:
        os.chmod(path, mode)
    return sock


def main(order: dict[str, Any], connection: socket.socket) -> None:
    """Be the shim of one engine, in a process made for it."""
    try:
        os.makedirs(order["dir"], mode=0o700, exist_ok=True)
        os.chdir(order["dir"])
        shim = Shim(order)
    except BlockingIOError:
        fatal(connection, "locked", "another shim is alive")
    except OSError as error:
        fatal(connection, "failed", f"{error.filename or order['dir']}: {error.strerror}")
    else:
        shim.run(connection)


def fatal(connection: socket.socket, kind: str, text: str) -> None:
    """Tell why there will be no shim."""
    connection.setblocking(True)
    connection.sendall(packed({"op": "fatal", "kind": kind, "text": text}))
