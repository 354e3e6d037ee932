"""What the end of a process means."""

from __future__ import annotations

from signal import Signals

from sagectl.core.engine import Outcome, Sub
from sagectl.plugin import Diagnosis, ExitStatus, Mode


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
    detail = f" ({status.oom_detail})" if status.oom_detail else ""
    if status.oom_kill and (status.unknown or status.signal == Signals.SIGKILL):
        killed = "killed" if detail else "killed, as it seems,"  # without the kernel's log it is a guess
        return f"{killed} by the kernel: out of memory{detail}"
    after = f" after the kernel had killed a process of it: out of memory{detail}" if status.oom_kill else ""
    if status.signal is not None:
        return f"ended by signal {status.signal} ({_signal_name(status.signal)}){after}"
    if status.code is not None:
        return f"exited with code {status.code}{after}"
    return "ended with an unknown status: nobody saw it end"


def out_of_memory(status: ExitStatus) -> Diagnosis | None:
    """The diagnosis of a kill for memory, for kinds that have none of their own."""
    if not status.oom_kill:
        return None
    text = describe(status)
    return Diagnosis(
        text[0].upper() + text[1:],
        "Let it need less memory, or give it more: the machine, or where a control group is named that "
        "(a container's limit, MemoryMax= of a unit).",
    )


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal
        return "unknown"
