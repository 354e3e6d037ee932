"""The loss over the steps, as a line of marks."""

from __future__ import annotations

from sagectl.cli import curve
from sagectl.cli.curve import Curve


def falling(count: int) -> Curve:
    return Curve({"step": step, "loss": float(count - step)} for step in range(count))


def test_each_step_has_its_mark_until_there_are_more_than_columns() -> None:
    assert falling(3).drawn(80, unicode=True) == "3 █▅▁ 1"
    assert falling(3).drawn(80, unicode=False) == "3 @+_ 1"
    assert falling(1000).drawn(13, unicode=True) == "1000 █▇▅▄▂▁ 1"


def test_it_never_takes_more_than_its_columns() -> None:
    many = falling(5000)
    for columns in range(8, 200):
        assert len(many.drawn(columns, unicode=True)) <= min(columns, curve.MOST_COLUMNS + 8)
    assert many.drawn(8, unicode=True) == "5000 to…"


def test_a_mark_is_the_mean_of_its_steps() -> None:
    steps = [{"step": n, "loss": 4.0 if n % 2 else 2.0} for n in range(100)]
    assert Curve(steps).drawn(9, unicode=True) in ("2 ▁▁▁▁▁ 4", "2 █████ 4")


def test_too_little_draws_nothing() -> None:
    assert Curve().drawn(80, unicode=True) == ""
    assert Curve([{"step": 1, "loss": 2.0}, {"step": 2}]).drawn(80, unicode=True) == ""


def test_steps_that_are_done_again_replace_what_was() -> None:
    one = falling(5)
    one.add(2, 9.0)
    assert one.drawn(80, unicode=True) == "5 ▂▁█ 9"
    one.add(2, 9.0)
    assert one.drawn(80, unicode=True) == "5 ▂▁█ 9"


def test_what_is_no_number_is_seen() -> None:
    words = ({"step": 1, "loss": 1.0}, {"step": 2, "loss": "nan"}, {"step": 3, "loss": "inf"})
    assert Curve(words).drawn(80, unicode=True) == "1 ▁!! inf"


def test_it_remembers_a_bounded_number_and_both_ends() -> None:
    long = falling(50_000)
    assert len(long._losses) <= curve.KEPT
    assert long.drawn(80, unicode=True).startswith("5e+04 █")
    assert long.drawn(80, unicode=True).endswith("▁ 1")
