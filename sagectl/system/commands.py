"""Runs a short command and takes its output: for exec probes and for questions to interpreters."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended.

    code: its exit code, `-n` for signal n, None where it could not be run or was killed for its time.
    output: the last bytes of stdout and stderr together, decoded.
    error: why it could not be run, None where it could; `errno` is the system's number for it.
    """

    code: int | None
    output: str = ""
    error: str | None = None
    errno: int | None = None
    timed_out: bool = False


async def run_command(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    user: tuple[int, int, Sequence[int]] | None = None,
    timeout: float,
    keep: int = _CHUNK,
) -> CommandResult:
    """Run `argv` without a shell in a session of its own, its stdin empty.

    It ends with its main process; whatever that left behind in its session's first process group is
    killed, as is everything when `timeout` seconds are over or the caller is cancelled.

    Args:
        env: the complete environment; its PATH finds the program.
        user: uid, gid and supplementary groups to run as.
        keep: how many bytes of the output's end to return.
    """
    try:
        running = _Running(_spawn(argv, env, cwd, user), keep)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        number = error.errno if isinstance(error, OSError) else None
        return CommandResult(None, error=_why(argv, cwd, error), errno=number)
    return await running.result(timeout)


def _spawn(
    argv: Sequence[str], env: Mapping[str, str], cwd: str | None, user: tuple[int, int, Sequence[int]] | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*argv],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=user[0] if user else None,
        group=user[1] if user else None,
        extra_groups=user[2] if user else None,
    )


def _why(argv: Sequence[str], cwd: str | None, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and cwd is not None and not os.path.isdir(cwd):
        return f"there is no directory {cwd}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot run {argv[0] if argv else 'an empty command'}: {reason}"


class _Running:
    """asyncio's own subprocesses cost a thread each in 3.11 and wait for whoever holds the pipe."""

    def __init__(self, process: subprocess.Popen[bytes], keep: int) -> None:
        self._process = process
        self._keep = keep
        self._output = bytearray()
        self._loop = asyncio.get_running_loop()
        assert process.stdout is not None
        self._pipe = process.stdout.fileno()
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.stdout.close()
            process.kill()
            process.wait()
            raise
        os.set_blocking(self._pipe, False)

    async def result(self, timeout: float) -> CommandResult:
        exited = self._loop.create_future()

        def ended() -> None:
            # The pidfd stays readable until somebody waits: say it once.
            self._loop.remove_reader(self._pidfd)
            exited.set_result(None)

        self._loop.add_reader(self._pipe, self._read)
        self._loop.add_reader(self._pidfd, ended)
        done = False
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(exited)
            done = True
        except TimeoutError:
            done = exited.done()
        finally:
            self._loop.remove_reader(self._pidfd)
            self._read()
            self._finish()
        code = self._process.returncode if done else None
        return CommandResult(code, self._output.decode(errors="replace"), timed_out=not done)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while chunk := os.read(self._pipe, _CHUNK):
                self._output += chunk
                del self._output[: -self._keep]
                if len(chunk) < _CHUNK:
                    return
            self._loop.remove_reader(self._pipe)

    def _finish(self) -> None:
        self._loop.remove_reader(self._pipe)
        assert self._process.stdout is not None
        self._process.stdout.close()
        # Its number is not free before it is reaped, so the group cannot be a stranger's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if not self._reap():
            self._loop.add_reader(self._pidfd, self._reap_later)

    def _reap_later(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._reap()

    def _reap(self) -> bool:
        """Take the exit status if there is one. False: it is not dead yet (in uninterruptible sleep, say)."""
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            status = None
            self._process.returncode = -signal.SIGKILL
        else:
            if status is None:
                # `Popen` must not wait for it when it is collected, nor warn.
                self._process.returncode = -signal.SIGKILL
                return False
        if status is not None:
            exited = status.si_code == os.CLD_EXITED
            self._process.returncode = status.si_status if exited else -status.si_status
        os.close(self._pidfd)
        return True
