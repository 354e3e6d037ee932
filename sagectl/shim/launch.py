"""Starting an engine's main process.

With posix_spawn: a fork of the shim copies its page tables and then page after page, which takes
longer than everything else in a launch together. What posix_spawn cannot set for its child alone
(directory, user, groups), the shim, which has one thread, takes on itself for that moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# The shim catches these, so that they do not end it; they are the default again for the engine.
CAUGHT = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGPIPE,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCHLD,
)
DEFAULTS = (*CAUGHT, signal.SIGXFSZ, signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP, signal.SIGCONT)
LIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}


class LaunchError(Exception):
    """No process came to be: `text` says why, `number` is the errno."""

    def __init__(self, text: str, number: int | None) -> None:
        super().__init__(text)
        self.text, self.number = text, number


def start(order: dict[str, Any], env: dict[str, str], out: int, lock: int) -> int:
    """Start `order`'s argv in a session of its own and return its pid. Raises LaunchError.

    out: becomes its stdout and stderr. lock: stays open in it under the same number.
    """
    step = "work in the directory of its shim"
    home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        step = f"enter the working directory {order['cwd']}"
        os.chdir(order["cwd"])
        step = f"run {order['argv'][0]}"
        path = find_program(order["argv"][0], env.get("PATH", os.defpath))
        os.set_inheritable(lock, True)
        user = order.get("user") if os.geteuid() == 0 else None
        step, program = "set its limits", step
        with _open_files(order), _real_user(user):
            step = program
            pid = os.posix_spawn(
                path,
                order["argv"],
                env,
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out, 1),
                    (os.POSIX_SPAWN_DUP2, out, 2),
                ),
                setsid=True,
                setsigmask=(),
                setsigdef=DEFAULTS,
                resetids=user is not None,
            )
    except OSError as error:
        raise LaunchError(f"cannot {step}: {error.strerror}", error.errno) from error
    except (ValueError, TypeError) as error:  # a null byte in an argument, say
        raise LaunchError(f"cannot {step}: {error}", None) from error
    finally:
        os.fchdir(home)
        os.close(home)
    _adjust(order, pid)
    return pid


def find_program(name: str, path: str) -> str:
    """Where execvp would find it."""
    if "/" in name:
        return name
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)} on its PATH")


@contextlib.contextmanager
def _open_files(order: dict[str, Any]) -> Iterator[None]:
    """Make its limit of open files ours for a moment: many programs read theirs as soon as they start."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (order.get("rlimits") or {}).get("nofile", before)
    if (soft, hard) == before:
        yield
        return
    # Without privileges, a hard limit that was lowered could not be raised again: `_adjust` does that part.
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, before[1])))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def _real_user(user: list[Any] | None) -> Iterator[None]:
    """Make this our real user for a moment; the child of a spawn with `resetids` is then that user alone."""
    if user is None:
        yield
        return
    uid, gid, groups = user
    before = os.getuid(), os.getgid(), os.getgroups()
    try:
        os.setgroups(groups)
        os.setresgid(gid, -1, -1)
        os.setresuid(uid, -1, -1)
        yield
    finally:
        os.setresuid(before[0], -1, -1)
        os.setresgid(before[1], -1, -1)
        os.setgroups(before[2])


def _adjust(order: dict[str, Any], pid: int) -> None:
    """What may as well reach the engine an instant after its start; a refusal here stops nothing."""
    try:
        for name, (soft, hard) in (order.get("rlimits") or {}).items():
            resource.prlimit(pid, LIMITS[name], (soft, hard))
        if order.get("oom_score_adjust") is not None:
            with open(f"/proc/{pid}/oom_score_adj", "w") as file:
                file.write(str(order["oom_score_adjust"]))
        if order.get("nice") is not None:
            os.setpriority(os.PRIO_PROCESS, pid, order["nice"])
    except (OSError, KeyError, ValueError):
        return
