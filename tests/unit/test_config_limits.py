"""What an engine may be given of the machine: limits, nice, oom_score_adjust, cpu_affinity."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from sagectl.config.limits import UNLIMITED, cpus_in_words, parse_cpus, shown
from sagectl.config.load import load
from sagectl.config.schema import LimitsTable
from sagectl.core.engine import EngineSpec
from sagectl.errors import InvalidConfig
from tests.unit.sample_kinds import KINDS

MAIN = Path("/c/sagectl.toml")
ENGINE = '[engines.a]\nkind = "exec"\ncommand = ["x"]\n'
NO_EFFECT = {"rss", "ofile"}
"""Linux ignores the first; the second is another name of nofile."""


def one(text: str, before: str = "") -> EngineSpec:
    (spec,) = load(MAIN, None, KINDS, texts={MAIN: before + ENGINE + text}).specs
    return spec


def mistakes(text: str) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        one(text)
    return [str(problem).partition(" engines.a.")[2] for problem in caught.value.problems]


def test_every_limit_of_the_machine_has_a_key() -> None:
    kernel = {name[7:].lower() for name in dir(resource) if name.startswith("RLIMIT_")} - NO_EFFECT
    assert {field.alias or name for name, field in LimitsTable.model_fields.items()} == kernel


def test_nothing_is_limited_where_nothing_is_said() -> None:
    spec = one("")
    assert (spec.limits, spec.nice, spec.oom_score_adjust, spec.cpu_affinity) == ({}, None, None, None)


@pytest.mark.parametrize(
    ("written", "pair"),
    [
        ("nofile = 65536", (65536, 65536)),
        ("nofile = [1024, 65536]", (1024, 65536)),
        ('nofile = [1024, "unlimited"]', (1024, UNLIMITED)),
        ('memlock = "unlimited"', (UNLIMITED, UNLIMITED)),
        ("core = 0", (0, 0)),
        ('as = "32GiB"', (32 << 30, 32 << 30)),
        ('stack = ["8MiB", "64MiB"]', (8 << 20, 64 << 20)),
        ("data = 1000", (1000, 1000)),
        ('cpu = "1h"', (3600, 3600)),
        ("cpu = 90", (90, 90)),
        ('cpu = "1500ms"', (2, 2)),
        ('rttime = "1ms"', (1000, 1000)),
        ("rttime = 20", (20, 20)),
        ("nice = 40", (40, 40)),
        ("rtprio = 99", (99, 99)),
        ("nproc = 4096", (4096, 4096)),
    ],
)
def test_a_limit_is_a_number_a_size_unlimited_or_two_of_them(written: str, pair: tuple[int, int]) -> None:
    name = written.partition(" ")[0]
    assert one(f"limits = {{ {written} }}").limits == {name: pair}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("nofile = '64k'", 'nofile: "64k" is not a number (write a number such as 65536, "unlimited"'),
        ("nofile = -1", 'nofile: -1 is not a number (write a number such as 65536, "unlimited"'),
        ("nofile = true", "nofile: true is not a number"),
        ("nofile = 1e40", "nofile: 1e+40 is not a number"),
        (f"nofile = {10**20}", f"nofile: {10**20} is more than any limit"),
        ("nofile = [1]", "nofile: an array of limits has two: the soft and the hard one"),
        ("nofile = []", "nofile: an array of limits has two: the soft and the hard one"),
        ("nofile = [1, [2, 3]]", "nofile: an array is not a number"),
        ("nofile = [2000, 1000]", "nofile: the soft limit of 2000 is above the hard one of 1000"),
        ("nofile = ['unlimited', 7]", "nofile: the soft limit of unlimited is above the hard one of 7"),
        ("as = '32 GB!'", 'as: "32 GB!" is not a size (write a size such as "20GiB" or "500MB"'),
        ("as = 'infinity'", 'as: "infinity" is not a size'),
        ("cpu = 'long'", 'cpu: "long" is not a duration'),
        ("nice = 41", "nice: 41 is not one from 0 to 40"),
        ("rtprio = 100", "rtprio: 100 is not one from 0 to 99"),
        ("nofiles = 7", 'nofiles: unknown key (did you mean "nofile"?)'),
        ("as_ = 7", 'as_: unknown key (did you mean "as"?)'),
        ("rss = 7", "rss: unknown key"),
    ],
)
def test_a_wrong_limit_is_named_with_its_key(written: str, expected: str) -> None:
    (found,) = mistakes(f"limits = {{ {written} }}")
    assert found.startswith("limits." + expected)


def test_all_wrong_limits_are_named_at_once() -> None:
    assert len(mistakes("limits = { nofile = -1, as = '7', huge = 1 }\nnice = 20\ncpu_affinity = []")) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limits = 7", "limits: must be a table, not 7"),
        ("nice = 20", "nice: must be at most 19, not 20"),
        ("nice = -21", "nice: must be at least -20, not -21"),
        ("nice = 'low'", 'nice: must be a whole number, not "low"'),
        ("nice = 1.5", "nice: must be a whole number, not 1.5"),
        ("oom_score_adjust = 1001", "oom_score_adjust: must be at most 1000, not 1001"),
        ("oom_score_adjust = -1001", "oom_score_adjust: must be at least -1000, not -1001"),
        ("oom_score_adj = 7", "oom_score_adj: unknown key"),
    ],
)
def test_what_is_out_of_range_is_named(text: str, expected: str) -> None:
    (found,) = mistakes(text)
    assert found.startswith(expected)


def test_nice_and_oom_score_adjust_arrive() -> None:
    spec = one("nice = -20\noom_score_adjust = 1000")
    assert (spec.nice, spec.oom_score_adjust) == (-20, 1000)
    spec = one("nice = 0\noom_score_adjust = 0")
    assert (spec.nice, spec.oom_score_adjust) == (0, 0)


@pytest.mark.parametrize(
    ("written", "cpus"),
    [
        ([0, 1], (0, 1)),
        ([3, 1, 3], (1, 3)),
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("0-3 8", (0, 1, 2, 3, 8)),
        (" 5 , 1-1 ", (1, 5)),
        ("7", (7,)),
        (7, (7,)),
        ("0-2,1-4", (0, 1, 2, 3, 4)),
    ],
)
def test_cpus_are_a_list_or_ranges(written: Any, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(written) == cpus


@pytest.mark.parametrize(
    "written",
    [
        "[]", "''", "' , '", "'3-1'", "'0-99999999999'", "'a'", "'1-'", "'-1'", "[-1]", "[8192]", "[true]",
        "[1.5]", "['1']", "true", "1.5", "{}", "'0-3:2'", "[[0]]", f"[{10**30}]",
    ],
)  # fmt: skip
def test_what_names_no_cpus_is_refused_with_what_does(written: str) -> None:
    (found,) = mistakes(f"cpu_affinity = {written}")
    assert found.startswith("cpu_affinity: ")
    assert found.endswith('(write CPUs such as [0, 1] or "0-3,8")')


def test_cpus_in_words_are_as_one_would_write_them() -> None:
    assert [cpus_in_words(cpus) for cpus in [(3,), (0, 1), (0, 1, 2, 3, 8), (1, 3, 5, 6)]] == [
        "3",
        "0-1",
        "0-3,8",
        "1,3,5-6",
    ]


def test_an_engines_limits_lie_over_those_of_its_kind() -> None:
    defaults = "[defaults.exec]\nlimits = { nofile = 7, core = 0 }\nnice = 5\n"
    spec = one("limits = { nofile = 9 }", defaults)
    assert spec.limits == {"nofile": (9, 9), "core": (0, 0)}
    assert spec.nice == 5


def test_limits_are_shown_as_one_would_write_them() -> None:
    limits = {
        "nofile": (7, 7),
        "memlock": (UNLIMITED, UNLIMITED),
        "stack": (8 << 20, UNLIMITED),
        "core": (0, 5),
    }
    assert shown(limits) == {
        "nofile": 7,
        "memlock": "unlimited",
        "stack": [8 << 20, "unlimited"],
        "core": [0, 5],
    }
