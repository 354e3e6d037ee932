"""What the answers of probes, and measurements of a load, come to."""

from __future__ import annotations

import pytest

from sagectl.core.engine import ProbePolicy
from sagectl.core.events import ProbeFailed, ProbeRole, ProbeSucceeded
from sagectl.core.probe import GROWTH, Measurement, advance, progress_interval, verdict

YES = ProbeSucceeded(1, ProbeRole.LIVENESS)
NO = ProbeFailed(1, ProbeRole.LIVENESS, "no")
LATE = ProbeFailed(1, ProbeRole.LIVENESS, "late", timed_out=True)
BUSY = ProbeFailed(1, ProbeRole.LIVENESS, "late", timed_out=True, advancing=True)
WRONG_WHILE_BUSY = ProbeFailed(1, ProbeRole.LIVENESS, "503", advancing=True)


@pytest.mark.parametrize(
    ("before", "answer", "after", "tripped"),
    [
        (0, YES, 0, False),
        (2, YES, 0, False),
        (0, NO, 1, False),
        (1, LATE, 2, False),
        (2, NO, 3, True),
        (2, LATE, 3, True),
        (2, BUSY, 0, False),
        (2, WRONG_WHILE_BUSY, 3, True),
        (7, NO, 8, True),
    ],
)
def test_failures_in_a_row_trip_and_a_busy_engine_is_forgiven(before, answer, after, tripped):
    assert verdict(ProbePolicy(failures=3), before, answer) == (after, tripped)


def test_one_failure_can_be_enough():
    assert verdict(ProbePolicy(failures=1), 0, NO) == (1, True)


@pytest.mark.parametrize(("timeout", "seconds"), [(600.0, 30.0), (60.0, 15.0), (1.0, 0.25), (0.0, 0.05)])
def test_a_load_is_looked_at_often_enough(timeout, seconds):
    assert progress_interval(ProbePolicy(startup_timeout=timeout)) == seconds


BEFORE = Measurement(log_written=10, rss_bytes=100 * GROWTH, read_bytes=100 * GROWTH)


@pytest.mark.parametrize(
    ("now", "how"),
    [
        (BEFORE, None),
        (Measurement(11, 100 * GROWTH, 100 * GROWTH), "logged"),
        (Measurement(10, 101 * GROWTH, 100 * GROWTH), "grew"),
        (Measurement(10, 100 * GROWTH, 101 * GROWTH), "read"),
        (Measurement(10, 100 * GROWTH + 4096, 100 * GROWTH + 4096), None),
        (Measurement(10, 50 * GROWTH, 100 * GROWTH), None),
    ],
)
def test_a_load_advances_by_logging_growing_or_reading(now, how):
    assert advance(BEFORE, now) == how


def test_the_first_measurement_counts_as_an_advance():
    assert advance(None, BEFORE) == "started"
