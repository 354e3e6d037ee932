"""Collects the benchmarks' figures and prints them together at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.lab import FULL, Figures, Table
from tests.benchmarks.supervisors import Sagectl

_figures = Figures()
_table = Table()


@pytest.fixture
def figures() -> Figures:
    """Where figures go."""
    return _figures


@pytest.fixture
def table() -> Table:
    """Where figures of several supervisors go."""
    return _table


@pytest.fixture
def sagectl() -> Iterator[Sagectl]:
    """A directory on which no daemon runs yet."""
    with Sagectl() as one:
        yield one


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured."""
    if not _figures.rows and not _table.rows:
        return
    terminalreporter.section("figures" if FULL else "figures of a short run; measure with `make bench`")
    for line in [*_figures.lines(), *(_table.lines() if _table.rows else [])]:
        terminalreporter.write_line(line)
