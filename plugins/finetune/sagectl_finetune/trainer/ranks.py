"""One process for each GPU, with the variables of torchrun.

torchrun itself kills its processes 30 s after a SIGTERM, which a checkpoint of a large model outlasts, and
hides their exit codes. So this program starts them itself: it passes signals on and ends as they end.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer.checkpoints import Checkpoint
from sagectl_finetune.trainer.settings import COMPLETED, STOPPED
from sagectl_finetune.trainer.stopping import Stop

_BEGIN = "SAGECTL_FINETUNE_BEGIN"
_LAUNCHER = "SAGECTL_FINETUNE_LAUNCHER"
_PR_SET_PDEATHSIG = 1
LEAVE = 30
"""Seconds after one stopped within which the others have to: what they had to save is saved by then."""


def is_one() -> bool:
    """Whether this process is one of several that train together."""
    return _BEGIN in os.environ


def tie() -> None:
    """End this process when the one that started it ends, however that is killed."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(os.environ[_LAUNCHER]):  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def is_first() -> bool:
    """Whether this process writes the files."""
    return os.environ.get("RANK", "0") == "0"


def given() -> Checkpoint | None:
    """The checkpoint that the processes were told to begin with."""
    found: Any = json.loads(os.environ[_BEGIN])
    return None if found is None else Checkpoint(Path(found["path"]), found["step"], found["made_with"])


def variables(rank: int, count: int, port: int, begin: Checkpoint | None) -> dict[str, str]:
    """What one process is told."""
    told = None
    if begin is not None:
        told = {"path": str(begin.path), "step": begin.step, "made_with": dict(begin.made_with)}
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
        **{"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{_BEGIN: json.dumps(told), _LAUNCHER: str(os.getpid())},
    }


def run(count: int, begin: Checkpoint | None, stop: Stop) -> int:
    """Start them and wait; the exit code of the first that failed, else 0.

    Where one fails the others, which would wait for it forever, are ended.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stop.enter("done")  # theirs is what has to be saved
    command = [sys.executable, *sys.orig_argv[1:]]
    made = [
        subprocess.Popen(command, env={**os.environ, **variables(rank, count, port, begin)})
        for rank in range(count)
    ]
    by_pid = {process.pid: process for process in made}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: _pass_on(received, by_pid))
    signal.signal(signal.SIGALRM, lambda *_: _pass_on(signal.SIGKILL, by_pid))
    if stop.requested:
        _pass_on(signal.SIGTERM, by_pid)
    code = COMPLETED
    while by_pid:
        pid, status = os.wait()
        ended = by_pid.pop(pid, None)
        if ended is None:
            continue
        ended.returncode = os.waitstatus_to_exitcode(status)
        if ended.returncode != COMPLETED and code == COMPLETED:
            code = ended.returncode if ended.returncode > 0 else 128 - ended.returncode
            if ended.returncode == STOPPED:
                signal.alarm(LEAVE)  # stopped while it loaded, it leaves others waiting for it
            else:
                _pass_on(signal.SIGKILL, by_pid)
    return code


def _pass_on(number: int, processes: dict[int, subprocess.Popen[bytes]]) -> None:
    for pid in processes:
        os.kill(pid, number)
