"""What the end of a process means, as a table."""

from __future__ import annotations

import pytest

from sagectl.core.engine import Outcome, Sub
from sagectl.core.exits import describe, out_of_memory, unasked
from sagectl.plugin import ExitStatus, Mode

CHILD = "process 7 (worker) held 1.0 GiB"


@pytest.mark.parametrize(
    ("mode", "status", "sub", "text"),
    [
        (Mode.RUN, ExitStatus(code=0), Sub.COMPLETED, "completed"),
        (Mode.SERVE, ExitStatus(code=0), Sub.EXIT_CODE, "exited with code 0, although nobody asked it to"),
        (Mode.RUN, ExitStatus(code=1), Sub.EXIT_CODE, "exited with code 1"),
        (Mode.SERVE, ExitStatus(code=137), Sub.EXIT_CODE, "exited with code 137"),
        (Mode.SERVE, ExitStatus(signal=11), Sub.SIGNAL, "ended by signal 11 (SIGSEGV)"),
        (Mode.RUN, ExitStatus(signal=15), Sub.SIGNAL, "ended by signal 15 (SIGTERM)"),
        (Mode.SERVE, ExitStatus(signal=42), Sub.SIGNAL, "ended by signal 42 (unknown)"),
        (
            Mode.SERVE,
            ExitStatus(signal=9, oom_kill=True),
            Sub.OOM_KILL,
            "killed, as it seems, by the kernel: out of memory",
        ),
        (
            Mode.SERVE,
            ExitStatus(signal=9, oom_kill=True, oom_detail=CHILD),
            Sub.OOM_KILL,
            f"killed by the kernel: out of memory ({CHILD})",
        ),
        (
            Mode.SERVE,
            ExitStatus(oom_kill=True, oom_detail=CHILD),
            Sub.OOM_KILL,
            f"killed by the kernel: out of memory ({CHILD})",
        ),
        (
            Mode.SERVE,
            ExitStatus(code=1, oom_kill=True, oom_detail=CHILD),
            Sub.OOM_KILL,
            f"exited with code 1 after the kernel had killed a process of it: out of memory ({CHILD})",
        ),
        (
            Mode.RUN,
            ExitStatus(signal=6, oom_kill=True, oom_detail=CHILD),
            Sub.OOM_KILL,
            "ended by signal 6 (SIGABRT) after the kernel had killed a process of it: out of memory "
            f"({CHILD})",
        ),
        (Mode.RUN, ExitStatus(code=0, oom_kill=True), Sub.COMPLETED, "completed"),
        (Mode.RUN, ExitStatus(), Sub.EXIT_CODE, "ended with an unknown status: nobody saw it end"),
    ],
)
def test_an_exit_that_nobody_asked_for(mode, status, sub, text):
    assert unasked(mode, status) == Outcome(sub, text)
    assert unasked(mode, status).failed is (sub is not Sub.COMPLETED)


def test_an_unknown_status_is_said_to_be_unknown():
    assert ExitStatus().unknown
    assert not ExitStatus(code=0).unknown
    assert "unknown" in describe(ExitStatus())


def test_a_kill_for_memory_has_a_diagnosis_of_its_own():
    assert out_of_memory(ExitStatus(signal=9)) is None
    found = out_of_memory(ExitStatus(code=1, oom_kill=True, oom_detail=CHILD))
    assert found is not None
    assert found.summary.startswith("Exited with code 1 after the kernel had killed")
    assert CHILD in found.summary
    assert "control group" in found.remedy
    assert found.retryable
