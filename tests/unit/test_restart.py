"""The arithmetic of restarts, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl.core.engine import RestartPolicy, RestartWhen
from sagectl.core.restart import LEAST_DELAY, Again, GiveUp, History, backoff, decide

POLICY = RestartPolicy()


def decision(policy=POLICY, history=None, *, now=1000.0, went_ready=True, hopeless=False):
    history = history or History()
    return decide(policy, history, now=now, chance=0.5, went_ready=went_ready, hopeless=hopeless)


@pytest.mark.parametrize(
    ("step", "seconds"),
    [(0, 1.0), (1, 2.0), (2, 4.0), (5, 32.0), (8, 256.0), (9, 300.0), (60, 300.0), (5000, 300.0)],
)
def test_delays_double_up_to_the_cap(step, seconds):
    assert backoff(POLICY, step, 0.5) == seconds


@pytest.mark.parametrize(
    ("chance", "seconds"), [(0.0, 3.6), (0.25, 3.8), (0.5, 4.0), (0.75, 4.2), (1.0, 4.4)]
)
def test_jitter_is_a_tenth_up_and_down(chance, seconds):
    assert backoff(POLICY, 2, chance) == pytest.approx(seconds)


def test_no_delay_stays_no_delay():
    assert backoff(RestartPolicy(delay=0.0), 40, 0.9) == 0.0


@given(delay=st.floats(0, 1e6), cap=st.floats(0, 1e6), step=st.integers(0, 10**6), chance=st.floats(0, 1))
def test_a_delay_is_never_negative_nor_far_over_the_cap(delay, cap, step, chance):
    policy = RestartPolicy(delay=delay, max_delay=cap)
    assert 0.0 <= backoff(policy, step, chance) <= cap * 1.1 + 1e-9


@pytest.mark.parametrize(
    ("when", "hopeless", "again"),
    [
        (RestartWhen.NO, False, False),
        (RestartWhen.NO, True, False),
        (RestartWhen.ON_FAILURE, False, True),
        (RestartWhen.ON_FAILURE, True, False),
        (RestartWhen.ALWAYS, False, True),
        (RestartWhen.ALWAYS, True, True),
    ],
)
def test_the_policy_decides_whether(when, hopeless, again):
    answer = decision(RestartPolicy(policy=when), hopeless=hopeless)
    assert isinstance(answer, Again) is again
    assert not (isinstance(answer, GiveUp) and answer.limited)


@pytest.mark.parametrize(
    ("starts", "again"),
    [
        ((), True),
        ((900.0, 910.0, 920.0, 930.0), True),
        ((900.0, 910.0, 920.0, 930.0, 940.0), False),
        ((400.0, 910.0, 920.0, 930.0, 940.0), True),  # exactly the window's 600 s ago no longer counts
        ((401.0, 910.0, 920.0, 930.0, 940.0), False),
        ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0), True),
    ],
)
def test_the_window_counts_restarts_not_starts(starts, again):
    answer = decision(history=History(starts=starts))
    assert isinstance(answer, Again) is again
    if isinstance(answer, GiveUp):
        assert answer == GiveUp("5 restarts within 600 s are the limit", limited=True)


@pytest.mark.parametrize(
    ("unready", "went_ready", "again"),
    [(4, False, True), (5, False, False), (5, True, True), (99, False, False), (99, True, True)],
)
def test_starts_that_never_worked_are_counted_without_a_window(unready, went_ready, again):
    answer = decision(history=History(unready=unready), went_ready=went_ready)
    assert isinstance(answer, Again) is again


def test_limit_0_is_no_limit():
    history = History(starts=tuple(float(n) for n in range(900, 1000)), unready=100, step=100)
    answer = decision(RestartPolicy(limit=0), history, went_ready=False)
    assert isinstance(answer, Again)
    assert answer.delay == 300.0


def test_history_goes_on_with_what_still_counts():
    answer = decision(history=History(starts=(1.0, 990.0), unready=3, step=2), went_ready=False)
    assert answer == Again(4.0, History(starts=(990.0, 1000.0), unready=4, step=3))
    answer = decision(history=History(starts=(990.0,), unready=3, step=2), went_ready=True)
    assert answer == Again(4.0, History(starts=(990.0, 1000.0), unready=1, step=3))


def test_what_never_became_ready_waits_a_little_however_short_the_delay() -> None:
    answer = decision(RestartPolicy(delay=0.0, limit=0), went_ready=False)
    assert isinstance(answer, Again)
    assert answer.delay == LEAST_DELAY
