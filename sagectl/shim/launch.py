"""Starting an engine's main process.

With posix_spawn: a fork of the shim copies its page tables and then page after page, which takes
longer than everything else in a launch together. What posix_spawn cannot set for its child alone
(directory, user, groups, open files), the shim, which has one thread, takes on itself for that moment;
what it could not take back is for `confined`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal

from sagectl.shim import confined

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
        with _open_files(order.get("nofile")):
            if confined.wanted(order):
                return confined.spawn(order, path, env, out, lock, DEFAULTS)
            pid = _spawn(order, path, env, out, lock)
        _cap_files(pid, order.get("nofile"))
        return pid
    except confined.Refused as error:
        raise LaunchError(error.text, error.number) from error
    except OSError as error:
        raise LaunchError(f"cannot {step}: {error.strerror}", error.errno) from error
    except (ValueError, TypeError) as error:  # a null byte in an argument, say
        raise LaunchError(f"cannot {step}: {error}", None) from error
    finally:
        os.fchdir(home)
        os.close(home)


def _spawn(order: dict[str, Any], path: str, env: dict[str, str], out: int, lock: int) -> int:
    os.set_inheritable(lock, True)
    user = order.get("user") if os.geteuid() == 0 else None
    with _real_user(user):
        return os.posix_spawn(
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
def _open_files(wanted: list[int] | None) -> Iterator[None]:
    """For a moment have the soft limit of open files that the child is to begin with, as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    given = soft if wanted is None else _lower(wanted[0], hard)
    if given == soft:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (given, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _cap_files(pid: int, wanted: list[int] | None) -> None:
    """Give the child its hard limit too: ours, once lowered, could not be raised again."""
    if wanted is not None and resource.getrlimit(resource.RLIMIT_NOFILE)[1] != wanted[1]:
        with contextlib.suppress(OSError, ValueError):  # higher than ours, or it has ended already
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted[0], wanted[1]))


def _lower(one: int, other: int) -> int:
    if resource.RLIM_INFINITY in (one, other):
        return max(one, other)  # RLIM_INFINITY is -1
    return min(one, other)


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
