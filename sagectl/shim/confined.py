"""Starting a main process with limits, a priority or CPUs of its own.

They hold from its first instruction, and what the kernel refuses is told. posix_spawn sets none of
them for its child alone, and not all could be taken back by a shim that took them on itself (a hard
limit; processor time and memory that it has used already). So the shim forks here, which takes
longer, and the child takes them on.
"""

from __future__ import annotations

import errno
import os
import resource
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn

LIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
LAST = ("data", "as")  # a child that is to exec needs some memory itself
KEYS = ("rlimits", "nice", "oom_score_adjust", "cpu_affinity")
REMEDY = "give less, or stop it and start it again where the daemon was allowed more since"


class Refused(Exception):
    """No program was run: the text says why, `number` is the errno."""

    def __init__(self, text: str, number: int | None) -> None:
        super().__init__(text)
        self.text, self.number = text, number


def wanted(order: dict[str, Any]) -> bool:
    """The order has anything that is for this module."""
    return bool(order.get("rlimits")) or any(order.get(key) is not None for key in KEYS[1:])


def spawn(
    order: dict[str, Any], path: str, env: dict[str, str], out: int, lock: int, reset: Iterable[int]
) -> int:
    """Start `path` with the order's argv in a session of its own; its pid. Raises OSError and Refused.

    reset: signals that are the default again.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            _become(order, path, env, out, lock, reset, write_end)
        os.close(write_end)
        write_end = -1
        told = b"".join(iter(lambda: os.read(read_end, 4096), b""))  # it ends with the exec
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    if told:
        os.waitpid(pid, 0)
        number, _, text = told.decode(errors="replace").partition(":")
        raise Refused(text, int(number) or None)
    return pid


def _become(
    order: dict[str, Any],
    path: str,
    env: dict[str, str],
    out: int,
    lock: int,
    reset: Iterable[int],
    tell: int,
) -> NoReturn:
    """In the forked process: be the engine, or tell why not."""
    step = ["start"]
    short = f"{errno.ENOMEM}:cannot run {path}: it would have less memory than a start takes".encode()
    try:
        signal.set_wakeup_fd(-1)
        for number in reset:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for standard, source in enumerate((null, out, out)):
            os.dup2(source, standard)
        os.set_inheritable(lock, True)
        _confine(order, step)
        user = order.get("user") if os.geteuid() == 0 else None
        if user is not None:
            step[0] = f"become the user {user[0]}"
            os.setgroups(user[2])
            os.setresgid(user[1], user[1], user[1])
            os.setresuid(user[0], user[0], user[0])
        step[0] = f"run {order['argv'][0]}"
        os.execve(path, order["argv"], env)
    except MemoryError:
        os.write(tell, short)
    except BaseException as error:  # whatever it is: a second shim must not come of this process
        os.write(tell, _why(order, step[0], error))
    finally:
        os._exit(127)


def _confine(order: dict[str, Any], step: list[str]) -> None:
    """Take it all on, what needs rights first. `step` says what is being done."""
    nice, score, cpus = (order.get(key) for key in KEYS[1:])
    if nice is not None:
        step[0] = f"set nice to {nice}"
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if score is not None:
        step[0] = f"set oom_score_adjust to {score}"
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))
    if cpus is not None:
        step[0] = f"set cpu_affinity to {list(cpus)}"
        os.sched_setaffinity(0, cpus)
        missing = set(cpus) - os.sched_getaffinity(0)  # the kernel leaves out silently what it cannot give
        if missing:
            raise ValueError(f"there is no CPU {min(missing)} that it may use")
    limits: dict[str, Any] = order.get("rlimits") or {}
    for name in sorted(limits, key=lambda name: LAST.index(name) if name in LAST else -1):
        soft, hard = limits[name]
        step[0] = f"set limits.{name} to {_words(soft, hard)}"
        if name not in LIMITS:
            raise ValueError("this kernel has no such limit")
        resource.setrlimit(LIMITS[name], (soft, hard))


def _words(soft: int, hard: int) -> str:
    first, second = ("unlimited" if limit == resource.RLIM_INFINITY else str(limit) for limit in (soft, hard))
    return first if soft == hard else f"[{first}, {second}]"


def _why(order: dict[str, Any], step: str, error: BaseException) -> bytes:
    number = error.errno if isinstance(error, OSError) else None
    text = error.strerror if isinstance(error, OSError) else str(error)
    if number == errno.EAGAIN and "nproc" in (order.get("rlimits") or {}):
        text = "its user has more processes than limits.nproc allows"
    elif step.startswith("set "):
        text = f"{text} ({REMEDY})"
    return f"{number or 0}:cannot {step}: {text}".encode()
