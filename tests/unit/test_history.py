"""The steps of a job's past: read from a file of any length, and thinned."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sagectl.daemon import history
from sagectl.plugin import Point
from sagectl.system.samples import read_lines
from tests.unit.sample_kinds import KINDS, SampleKind


class Steps(SampleKind):
    """A kind whose history has a number a line."""

    def history(self, text: str) -> list[Point]:
        return [Point(int(line)) for line in text.splitlines()]


KIND = Steps("job", KINDS["job"].options, None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def test_a_short_file_is_read_whole_but_for_a_line_that_is_being_written(file: Path) -> None:
    file.write_bytes(b"one\ntwo\nthr")
    assert read_lines(str(file)) == "one\ntwo\n"
    file.write_bytes(b"")
    assert read_lines(str(file)) == ""
    file.write_bytes(b"on")
    assert read_lines(str(file)) == ""


def test_of_a_long_file_lines_from_all_along_it_are_read(file: Path) -> None:
    file.write_text("".join(f"{number:09}\n" for number in range(100_000)))
    text = read_lines(str(file), most=100_000)
    numbers = [int(line) for line in text.splitlines()]
    assert len(text) <= 100_000
    assert numbers[0] == 0
    assert numbers[-1] == 99_999
    assert numbers == sorted(set(numbers))
    assert max(later - former for former, later in itertools.pairwise(numbers)) < 200


def test_what_is_no_file_of_its_own_is_not_read(tmp_path: Path, file: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    file.symlink_to(tmp_path / "secret")
    assert read_lines(str(file)) == ""
    file.unlink()
    os.mkfifo(file)  # opening it would wait for a writer
    assert read_lines(str(file)) == ""
    assert read_lines(str(tmp_path)) == ""
    assert read_lines(str(tmp_path / "missing")) == ""
    assert read_lines("a\0b") == ""


def test_the_kind_reads_them_and_at_most_so_many_are_given(file: Path) -> None:
    file.write_text("".join(f"{number}\n" for number in range(1000)))
    assert len(history.read(KIND, str(file), 1000)) == 1000
    found = history.read(KIND, str(file), 10)
    assert [point.step for point in found] == [0, 124, 249, 374, 499, 623, 748, 873, 998, 999]
    assert history.read(KIND, str(file), 2) == [Point(0), Point(999)]
    assert history.read(KIND, str(file), 1) == [Point(999)]
    assert history.read(KIND, str(file), 0) == []


def test_a_kind_without_a_history_or_with_a_broken_one_has_none(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("no number\n")
    assert history.read(KINDS["job"], str(file), 9) == ()
    assert not caplog.records
    assert history.read(KIND, str(file), 9) == ()
    assert "failed to read" in caplog.text


def test_steps_that_say_more_than_others_stay(tmp_path: Path) -> None:
    def point(step: int) -> Point:
        values: dict[str, Any] = {"loss": 1.0} | ({"eval_loss": 2.0} if step % 100 == 0 else {})
        return Point(step, None, values)

    points = [point(step) for step in range(1, 1001)]
    found = history.thinned(points, 41)
    assert len(found) == 41
    assert [one.step for one in found if "eval_loss" in one.values] == list(range(100, 1001, 100))
    assert [one.step for one in found] == sorted(one.step for one in found)
    assert json.dumps(found[0].values) == '{"loss": 1.0}'
