"""One engine's main process and the tree below it: start, signal, exit, and the end of the last one."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time

from sagectl.shim import oom, shared, tree
from sagectl.shim.channel import Loop
from sagectl.shim.files import lock_alone, read_json, sound, write_file, write_json
from sagectl.shim.group import Group
from sagectl.shim.launch import LaunchError, start
from sagectl.shim.log import Log
from sagectl.shim.orders import check_launch, generation_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VERSION = 1
IDENTITY = ("pid", "starttime", "boot_id", "started", "started_wall", "log_position")
STARTED: dict[str, tuple[type, ...]] = {  # what a record must have to be of use
    **{key: (int,) for key in ("generation", "pid", "starttime", "log_position")},
    "boot_id": (str,),
    "started": (int, float),
    "started_wall": (int, float),
}
EXIT: dict[str, tuple[type, ...]] = {
    "generation": (int,),
    "boot_id": (str,),
    "code": (int, type(None)),
    "signal": (int, type(None)),
    "oom": (bool,),
}
LATEST = 1e11  # seconds; a time beyond it is none
STRANGERS = 0.25  # seconds between looks at a tree whose ends nobody tells us
REMEMBER = 5.0  # seconds between looks at who is of a tree that does something
REMEMBERED = 10000
TRACKED = 2.0  # seconds that Python's resource trackers are given to clean up after what we kill


class Engine:
    """What the shim knows of its engine. Its working directory is RUN/engines/NAME.

    tell: sends the daemon a message. drain: puts what the engine has written into the log.
    """

    def __init__(
        self, name: str, directory: str, loop: Loop, log: Log, tell: Callable[..., None], group: Group
    ) -> None:
        self.name, self.directory, self.loop, self.log, self.tell = name, directory, loop, log, tell
        self.group = group
        self.group_kills = 0  # for memory, in its group, when it started
        self.drain: Callable[[], None] = lambda: None
        self.boot_id = tree.boot_id()
        self.generation = 0
        self.started: dict[str, Any] = {}  # started.json of this generation
        self.exit: dict[str, Any] | None = None
        self.main = self.main_since = 0  # the living main process and when it began; 0: none
        self.main_fd = -1
        self.occupied = False  # processes of the tree may be alive
        self.adopted = False  # and they are not, or not all, our descendants
        self.known: dict[int, int] = {}  # members of an adopted tree, as they were last seen
        self.ready = self.killing = self.kill_sent = False
        self.kill_generation, self.kill_pause, self.next_complaint = 0, 0.0, 0.0
        self.next_look: float | None = None  # when `look` is to be called (monotonic)
        self.oom_before = 0  # kills for memory, on the whole machine, when it started
        self.oom_lately = (0, 0)  # and at the last two looks
        self.seen: set[int] = set()  # whoever was of its tree
        self.next_memory = 0.0
        self.shared: dict[bytes, tuple[int, int]] = {}  # files in /dev/shm that the tree was seen to map
        self.spare_until = 0.0

    # --- Start ---

    def launch(self, order: dict[str, Any], notify: str) -> None:
        """Start it, unless anything of the last one lives: the guard against doubles is here.

        Raises ValueError where no generation is told, which a refusal would have to name.
        """
        generation = generation_of(order)
        self.look()
        if generation == self.generation:
            return  # asked again by a daemon that lost its connection; hello has told what became of it
        if self.occupied:
            self.refuse(generation, "busy: processes of its last start are alive", errno.EBUSY)
            return
        try:
            lock = lock_alone("tree.lock")
        except OSError:
            self.refuse(generation, f"busy: a process holds {self.directory}/tree.lock", errno.EBUSY)
            return
        try:
            check_launch(order)
            self._start(order, notify, lock)
        except LaunchError as error:
            self.refuse(generation, error.text, error.number)
        finally:
            os.close(lock)

    def refuse(self, generation: int, text: str, number: int | None) -> None:
        """Nothing was started."""
        self.tell(op="refused", generation=generation, text=text, errno=number)

    def _start(self, order: dict[str, Any], notify: str, lock: int) -> None:
        env = dict(order["env"])
        env["NOTIFY_SOCKET"] = notify
        env[tree.MARKER.decode()] = f"{self.name}:{order['generation']}:{self.directory}"
        user = order.get("user")
        if user and os.geteuid() == 0:
            try:
                os.chmod(".", 0o711)
                os.chown("log.fifo", user[0], -1)
            except OSError as error:  # a user that its namespace does not know, say
                text = f"cannot give {self.directory}/log.fifo to user {user[0]}: {error.strerror}"
                raise LaunchError(text, error.errno) from error
        out = os.open("log.fifo", os.O_RDWR | os.O_CLOEXEC)  # its own: the engine may set O_NONBLOCK on it
        try:
            now, wall = time.monotonic(), time.time()
            pid = start(order, env, out, lock)
        finally:
            os.close(out)
        self.started = {
            "v": VERSION,
            "generation": order["generation"],
            "pid": pid,
            "starttime": tree.start_time(pid),
            "boot_id": self.boot_id,
            "started": now,
            "started_wall": wall,
            "log_position": self.log.written,
            "shim_pid": os.getpid(),
            "uid": user[0] if user else os.geteuid(),
            "ready": False,
            "context": order.get("context"),
        }
        try:
            write_json("started.json", self.started)
            write_file(f"../{self.name}.pid", b"%d\n" % pid, 0o644)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)  # nobody could ever find it again
            os.waitpid(pid, 0)
            text = f"cannot write {self.directory}/started.json: {error.strerror}"
            raise LaunchError(text, error.errno) from error
        self.generation, self.exit = order["generation"], None
        self.main, self.main_since, self.main_fd = pid, self.started["starttime"], os.pidfd_open(pid)
        self.occupied = True
        self.ready = self.killing = self.kill_sent = False
        self.shared, self.seen, self.next_memory = {}, set(), 0.0
        self.tell(op="started", generation=self.generation, **{key: self.started[key] for key in IDENTITY})
        self.group.join(tree.living([pid]), order)
        self.group_kills = self.group.oom_kills()
        self.oom_before = tree.oom_kills()
        self.oom_lately = self.oom_before, self.oom_before

    def note(self, **changes: Any) -> None:
        """Change what started.json says."""
        if not self.started:
            return
        self.started |= changes
        try:
            write_json("started.json", self.started)
        except OSError as error:
            self.log.report(f"cannot write {self.directory}/started.json: {error.strerror}")

    def write_records(self) -> None:
        """Write again what the directory should say of this start. Raises OSError."""
        if not self.started:
            return
        if self.started["uid"] != os.geteuid():
            os.chmod(".", 0o711)
            os.chown("log.fifo", self.started["uid"], -1)
        write_json("started.json", self.started)
        if self.exit:
            write_json("exit.json", self.exit)
        if self.main:
            write_file(f"../{self.name}.pid", b"%d\n" % self.main, 0o644)

    # --- Adoption ---

    def adopt(self) -> None:
        """Take over from a shim that is gone: find the engine again by its verified identity.

        What cannot be verified is not it. Processes that carry the mark without a record of their
        start are a tree without a main process.
        """
        started, noted = sound(read_json("started.json"), STARTED), sound(read_json("exit.json"), EXIT)
        self.occupied = self.adopted = True
        self.oom_before = -1  # it may have been killed before we came
        self.oom_lately = tree.oom_kills(), tree.oom_kills()
        times = [started.get(key, -1.0) for key in ("started", "started_wall")]
        if started.get("boot_id") == self.boot_id and all(0 <= moment < LATEST for moment in times):
            self.started, self.generation = started, started["generation"]
            self.main_since, self.ready = started["starttime"], bool(started.get("ready"))
            self._adopt_main(started["pid"])
        generations = tree.marked(self.directory, self.started.get("pid", -1), self.main_since).values()
        self.generation = max(self.generation, *generations, 0)
        if not self.generation:
            self._empty(tell=False)
        elif noted.get("generation") == self.generation and noted.get("boot_id") == self.boot_id:
            self.exit = noted
        elif not self.main or self.generation != self.started.get("generation"):
            self._main_ended(None, childless=True)
        self.look()

    def _adopt_main(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)  # first open, then verify: from here on it cannot be another
        except (OSError, OverflowError):
            return
        if tree.start_time(pid) == self.main_since:
            self.main, self.main_fd = pid, pidfd
            self.loop.watch(pidfd, self.look)
        else:
            os.close(pidfd)

    # --- Who lives ---

    def members(self) -> dict[int, int]:
        """The living processes of the tree as {pid: starttime}."""
        if not self.occupied:
            return {}
        found = tree.living(tree.children(os.getpid()))
        if self.adopted:
            roots = [*tree.marked(self.directory, self.started.get("pid", -1), self.main_since)]
            roots += [pid for pid, since in self.known.items() if tree.start_time(pid) == since]
            roots += self.group.pids()
            found |= tree.living(roots)
            found.pop(os.getpid(), None)
            self.known = found
        if len(self.seen) > REMEMBERED:
            self.seen.clear()
        self.seen.update(found)
        return found

    def remember(self) -> None:
        """Now and then see who is of the tree, while it does anything: their ends may be told by number."""
        now = time.monotonic()
        if now >= self.next_memory:
            self.next_memory = now + REMEMBER
            self.oom_lately = self.oom_lately[1], tree.oom_kills()
            self.members()

    def contains(self, pid: int) -> bool:
        """Whether the process is of the tree, by its ancestors."""
        ancestor = pid
        while ancestor > 1:
            if ancestor in (self.main, os.getpid()):
                return True
            fields = tree.process_stat(ancestor)
            ancestor = int(fields[1]) if fields else 0
        return self.adopted and pid in self.members()

    def look(self) -> None:
        """Reap, and see what that means for the main process and the tree."""
        status, childless = self._reap()
        if self.adopted and self.main and tree.has_ended(self.main_fd):
            self._main_ended(tree.foreign_status(self.main, self.main_since, self.main_fd), childless)
        elif status is not None:
            self._main_ended(status, childless)
        elif self.occupied and not self.main:
            self._count(childless, tell=True)

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
                self.seen.add(pid)
                if pid == self.main:
                    status = result
        except ChildProcessError:
            return status, True

    def _count(self, childless: bool, *, tell: bool) -> int:
        """How many processes the tree still has; with none, it is closed."""
        left = 0 if childless and not self.adopted else len(self.members())
        if not left and childless:
            self._empty(tell=tell)
            return 0
        if self.adopted and self.next_look is None:
            self.next_look = time.monotonic() + STRANGERS
        return max(1, left)

    # --- The end ---

    def _main_ended(self, status: int | None, childless: bool) -> None:
        how: dict[str, Any] = {"code": None, "signal": None, **self._for_memory(status)}
        if status is not None and os.WIFSIGNALED(status):
            how["signal"] = os.WTERMSIG(status)
        elif status is not None:
            how["code"] = os.waitstatus_to_exitcode(status)
        self.drain()  # its last words are in the file when the daemon hears of its end
        if self.main_fd >= 0:
            self.loop.unwatch(self.main_fd)
            os.close(self.main_fd)
        pid, self.main, self.main_fd, self.ready = self.main, 0, -1, False
        self.exit = {"v": VERSION, "generation": self.generation, "pid": pid, "boot_id": self.boot_id, **how}
        try:
            write_json("exit.json", {**self.exit, "at": time.time()})
        except OSError as error:
            self.log.report(f"cannot write {self.directory}/exit.json: {error.strerror}")
        left = self._count(childless, tell=False)
        self.tell(op="exited", generation=self.generation, left=left, **how)
        if self.killing and not left:
            self._tell_empty()

    def _for_memory(self, status: int | None) -> dict[str, Any]:
        """Whether it ended because the kernel killed it, or one of its tree, for memory."""
        if status == 0 or self.kill_sent:
            return {"oom": False}
        if self.group.oom_kills() > self.group_kills:
            return {"oom": True}
        count = tree.oom_kills()
        if count <= self.oom_before:
            return {"oom": False}
        killed = oom.victims()
        if killed is None:  # the log is closed to us: then this is a guess
            return {"oom": status == signal.SIGKILL and count > self.oom_lately[0]}
        main = self.main or self.started.get("pid")  # nobody saw the end of the latter
        killed = [one for one in killed if one.pid == main or (one.pid in self.seen and one.recent)]
        return {"oom": bool(killed), "oom_detail": str(killed[-1]) if killed else ""}

    def _empty(self, *, tell: bool) -> None:
        self.occupied = self.adopted = False
        self.known = {}
        self.next_look = None
        if self.shared:
            shared.remove(self.shared)
            self.shared = {}
        with contextlib.suppress(OSError):
            os.unlink(f"../{self.name}.pid")
        if tell:
            self._tell_empty()

    def _tell_empty(self) -> None:
        generation = self.kill_generation if self.killing else self.generation
        self.killing = False
        self.tell(op="tree-empty", generation=generation)

    def note_shared(self) -> None:
        """Remember what the tree has in /dev/shm, while its processes can be asked."""
        if self.occupied and self.started and shared.in_use():
            # The clock that stamps files lags behind by up to a tick.
            self.shared |= shared.mapped(self.members(), self.started["started_wall"] - 0.02)

    def signal(self, generation: int, number: int) -> None:
        """Signal the main process alone."""
        if generation == self.generation and self.main:
            self.note_shared()
            self.kill_sent |= number == signal.SIGKILL
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.main_fd, number)

    def kill_tree(self, generation: int) -> None:
        """SIGKILL everything in the tree until nothing is left. A later generation's was refused as busy."""
        if not self.occupied:
            self.tell(op="tree-empty", generation=generation)
        elif generation >= self.generation:
            self.kill_generation = generation
            if not self.killing:
                self.killing = self.kill_sent = True
                self.kill_pause = 0.002
                self.next_complaint = time.monotonic() + 1.0
                self.spare_until = time.monotonic() + TRACKED
                self.note_shared()
                self.kill_round()

    def kill_round(self) -> None:
        """If we are killing: kill whoever lives, and look again soon, they may have forked in between."""
        if self.killing:
            members = self.members()
            spared = set[int]()
            if time.monotonic() < self.spare_until:
                spared = {pid for pid in members if shared.is_tracker(pid)}
            if not spared:
                self.group.kill()
            for pid, since in members.items():
                if pid not in spared:
                    tree.kill_verified(pid, since, signal.SIGKILL)
        self.look()
        if not self.killing or not self.occupied:
            return
        now = time.monotonic()
        if now >= self.next_complaint:
            self.next_complaint = now + 1.0
            self.tell(op="stubborn", generation=self.kill_generation, pids=sorted(self.members()))
        self.next_look = now + self.kill_pause
        self.kill_pause = min(self.kill_pause * 1.5, 0.1)
