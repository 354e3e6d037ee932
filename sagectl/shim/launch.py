"""From fork to exec: what happens in the engine's own process before its program runs."""

from __future__ import annotations

import os
import resource
import signal
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

LIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
IGNORED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGPIPE,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
RESTORED = (*IGNORED, signal.SIGCHLD, signal.SIGXFSZ, signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP)


def become_engine(
    order: dict[str, Any], env: dict[str, str], sync: socket.socket, out: int, lock: int
) -> NoReturn:
    """Wait for the parent's word on `sync`, then become the engine, or write `ERRNO STEP` there and end.

    The parent has noted who we are before it gives its word: no engine runs that nobody knows of.
    """
    step = "start the process"
    try:
        os.setsid()
        _reset_signals()
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.set_inheritable(lock, True)
        os.umask(0o022)
        step = "set its limits"
        _set_limits(order)
        step = "change to its user"
        _change_user(order.get("user"))
        step = f"enter the working directory {order['cwd']}"
        os.chdir(order["cwd"])
        if sync.recv(1) == b"g":
            step = f"run {order['argv'][0]}"
            os.execvpe(order["argv"][0], order["argv"], env)
    except OSError as error:
        sync.sendall(f"{error.errno} {step}".encode(errors="replace"))
    except (ValueError, TypeError, KeyError) as error:  # a null byte in an argument, an unknown limit
        sync.sendall(f"22 {step} ({error})".encode(errors="replace"))
    finally:
        os._exit(127)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in RESTORED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _set_limits(order: dict[str, Any]) -> None:
    for name, (soft, hard) in (order.get("rlimits") or {}).items():
        resource.setrlimit(LIMITS[name], (soft, hard))
    if order.get("oom_score_adjust") is not None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(order["oom_score_adjust"]))
    if order.get("nice") is not None:
        os.setpriority(os.PRIO_PROCESS, 0, order["nice"])


def _change_user(user: list[Any] | None) -> None:
    if user is None:
        return
    uid, gid, groups = user
    if (os.geteuid(), os.getegid()) != (uid, gid) or os.geteuid() == 0:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
