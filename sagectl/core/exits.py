"""What the end of a process means."""

from __future__ import annotations

from signal import Signals

from sagectl.core.engine import Outcome, Sub
from sagectl.plugin import ExitStatus, Mode


def unasked(mode: Mode, status: ExitStatus) -> Outcome:
    """What an exit that nobody asked for comes to. Code 0 is a success for jobs only."""
    if mode is Mode.RUN and status.code == 0:
        return Outcome(Sub.COMPLETED, "completed")
    if status.oom_kill:
        return Outcome(Sub.OOM_KILL, describe(status))
    if status.signal is not None:
        return Outcome(Sub.SIGNAL, describe(status))
    if status.code == 0:
        return Outcome(Sub.EXIT_CODE, "exited with code 0, although nobody asked it to")
    return Outcome(Sub.EXIT_CODE, describe(status))


def describe(status: ExitStatus) -> str:
    """An exit status in words."""
    if status.oom_kill:
        return "killed by the kernel: out of memory"
    if status.signal is not None:
        return f"ended by signal {status.signal} ({_signal_name(status.signal)})"
    if status.code is not None:
        return f"exited with code {status.code}"
    return "ended with an unknown status: nobody saw it end"


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal
        return "unknown"
