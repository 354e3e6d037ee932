"""Bars, sparklines and words of a job's progress."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl.cli import progress
from sagectl.cli.render import Style
from sagectl.client import Engine


def steps(done: float = 120, total: float | None = 320, **changes: Any) -> dict[str, Any]:
    found = {"done": done, "total": total, "unit": "steps", "eta_seconds": 250.0, "details": {}}
    return found | changes


def job(found: dict[str, Any] | None, state: str = "active", substate: str = "running") -> Engine:
    return cast("Engine", {"progress": found, "state": state, "substate": substate})


def test_the_headline_tells_share_step_and_time_left() -> None:
    assert progress.headline(steps()) == "37% step 120/320, 4m 10s left"
    assert progress.headline(steps(), running=False) == "37% step 120/320"
    assert progress.headline(steps(total=None, eta_seconds=None)) == "step 120"
    assert progress.headline(steps(unit="numbers", done=2, total=3, eta_seconds=None)) == "66% 2/3 numbers"
    assert progress.headline(None) == ""


def test_only_what_is_complete_has_all_its_percents() -> None:
    assert progress.percent(steps(999, 1000)) == 99
    assert progress.percent(steps(1000, 1000)) == 100
    assert progress.percent(steps(1200, 1000)) == 100
    assert progress.percent(steps(-3, 1000)) == 0


def test_what_it_does_before_its_first_step_is_told_instead() -> None:
    loading = steps(0, None, eta_seconds=None, details={"phase": "loading the model"})
    assert progress.headline(loading) == "loading the model"
    assert progress.headline(steps(details={"phase": "training"})) == progress.headline(steps())
    saving = steps(details={"phase": "saving"})
    assert progress.headline(saving) == "37% step 120/320, saving, 4m 10s left"


def test_details_are_in_words() -> None:
    details = {
        **{"epoch": 0.4231, "loss": 1.23456, "learning_rate": 9.1e-05, "tokens_per_second": 1234.5},
        **{
            "trained_tokens": 1_234_567,
            "memory_gb": 3.21,
            "batch_size": 4,
            "packed": True,
            "grad_norm": None,
        },
        **{"phase": "training", "event": "NaN"},
    }
    assert progress.details(steps(details=details)) == (
        "epoch 0.4231, loss 1.235, learning rate 9.1e-05, 1,234 tokens/s, 1,234,567 tokens trained, "
        "3.2 GiB of memory, batch size 4, packed yes"
    )


def test_a_bar_is_full_when_it_is_complete_and_not_before() -> None:
    assert progress.bar(steps(50, 100), unicode=True, width=10) == "█████░░░░░"
    assert progress.bar(steps(50, 100), unicode=False, width=10) == "[#####-----]"
    assert progress.bar(steps(999, 1000), unicode=True, width=10) == "█████████░"
    assert progress.bar(steps(1000, 1000), unicode=True, width=10) == "█" * 10
    assert progress.bar(steps(1, None), unicode=True) == ""


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert progress.sparkline([4, 3, 2, 1], unicode=True) == "█▆▃▁"
    assert progress.sparkline([4, 3, 2, 1], unicode=False) == "@*-_"
    assert progress.sparkline([2, 2], unicode=True) == "▁▁"
    assert progress.sparkline([1, math.nan, 2], unicode=True) == "▁!█"
    assert progress.sparkline([], unicode=True) == ""


@given(st.lists(st.floats(width=32)), st.booleans())
def test_a_sparkline_has_a_column_for_every_value(values: list[float], unicode: bool) -> None:
    assert len(progress.sparkline(values, unicode=unicode)) == len(values)


def test_a_list_tells_nothing_of_what_is_complete() -> None:
    assert progress.in_list(job(steps(320), "inactive", "completed")) == ""
    assert progress.in_list(job(None)) == ""
    assert progress.in_list(job(steps(), "inactive", "stopped")) == "37% step 120/320"


def test_status_shows_the_event_of_a_job() -> None:
    found = steps(details={"loss": "nan", "event": "the loss is no number at step 120"})
    assert progress.lines(job(found), Style()) == [
        "████████░░░░░░░░░░░░░░░░ 37% step 120/320, 4m 10s left",
        "loss nan",
        "the loss is no number at step 120",
    ]


@pytest.mark.parametrize(("told", "loss"), [(1.5, 1.5), (2, 2.0), ("x", None), (None, None), (True, None)])
def test_the_loss_is_a_number_or_nothing(told: Any, loss: float | None) -> None:
    assert progress.loss(job(steps(details={"loss": told}))) == loss


def test_a_loss_that_is_no_number_is_one_of_its_kind() -> None:
    found = progress.loss(job(steps(details={"loss": "nan"})))
    assert found is not None
    assert math.isnan(found)
