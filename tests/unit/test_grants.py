"""What an engine asks for of the machine against what a daemon may give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sagectl.core.engine import EngineSpec
from sagectl.daemon.grants import refusal
from sagectl.system.powers import Powers

SPEC = EngineSpec("chat@1", "exec", group="chat")
USER = Powers(
    hard={"nofile": 4096, "memlock": 8 << 20, "core": -1, "nice": 0},
    open_files=1 << 20,
    nice=0,
    nice_ceiling=0,
    oom_score_adjust=100,
    cpus=frozenset({0, 1, 4}),
)
ROOT = replace(USER, any_limit=True, any_nice=True, any_oom_score=True)


def asked(powers: Powers, **wanted: Any) -> tuple[str, str] | None:
    found = refusal(replace(SPEC, **wanted), powers)
    assert found is None or not found.retryable
    return None if found is None else (found.reason, found.remedy)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"limits": {"nofile": (4096, 4096), "memlock": (0, 8 << 20), "core": (-1, -1)}},
        {"limits": {"nofile": (10, 20)}},
        {"nice": 0},
        {"nice": 19},
        {"oom_score_adjust": 100},
        {"oom_score_adjust": 1000},
        {"cpu_affinity": (0, 4)},
    ],
)
def test_what_anybody_may_is_granted(wanted: dict[str, Any]) -> None:
    assert asked(USER, **wanted) is None


@pytest.mark.parametrize(
    "wanted",
    [
        {"limits": {"nofile": (-5 + (1 << 20),) * 2, "memlock": (-1, -1)}},
        {"nice": -20},
        {"oom_score_adjust": -1000},
    ],
)
def test_with_the_rights_more_is_granted(wanted: dict[str, Any]) -> None:
    assert asked(ROOT, **wanted) is None
    assert asked(USER, **wanted) is not None


def test_a_hard_limit_above_the_daemons_own_is_refused() -> None:
    assert asked(USER, limits={"core": (0, 0), "nofile": (1024, 65536)}) == (
        "limits.nofile asks for 65536, and sagectld itself has at most 4096",
        "lower engines.chat.limits.nofile, or give sagectld more (in its unit: LimitNOFILE=65536)",
    )
    assert asked(USER, limits={"memlock": (-1, -1)}) == (
        "limits.memlock asks for unlimited, and sagectld itself has at most 8388608",
        "lower engines.chat.limits.memlock, or give sagectld more (in its unit: LimitMEMLOCK=infinity)",
    )


@pytest.mark.parametrize("most", [(1 << 20) + 1, -1])
def test_more_open_files_than_the_kernel_gives_anybody_are_refused(most: int) -> None:
    found = asked(ROOT, limits={"nofile": (7, most)})
    assert found is not None
    assert found[0].endswith("and the kernel gives no process more than 1048576 (fs.nr_open)")
    assert found[1] == "lower engines.chat.limits.nofile, or raise that: sysctl fs.nr_open=…"


def test_a_better_priority_than_the_daemon_may_give_is_refused() -> None:
    assert asked(USER, nice=-5) == (
        "nice = -5 is below 0, the best that sagectld may give without CAP_SYS_NICE",
        "raise engines.chat.nice, or give sagectld the right (in its unit: LimitNICE=-5)",
    )
    niced = replace(USER, nice=10)
    assert asked(niced, nice=9) is not None
    assert asked(niced, nice=10) is None
    assert asked(replace(niced, nice_ceiling=25), nice=-5) is None
    assert asked(replace(niced, nice_ceiling=25), nice=-6) is not None


def test_an_oom_score_below_the_daemons_own_is_refused() -> None:
    assert asked(USER, oom_score_adjust=99) == (
        "oom_score_adjust = 99 is below sagectld's own of 100, which takes CAP_SYS_RESOURCE",
        "raise engines.chat.oom_score_adjust, or lower sagectld's own (in its unit: OOMScoreAdjust=99)",
    )


def test_cpus_that_the_machine_lacks_are_refused() -> None:
    assert asked(ROOT, cpu_affinity=(0, 2, 3, 4, 9)) == (
        "cpu_affinity names CPUs that sagectld cannot use here: 2-3,9",
        "correct engines.chat.cpu_affinity: this machine gives it CPUs 0-1,4",
    )
    assert asked(ROOT, cpu_affinity=(9,)) == (
        "cpu_affinity names a CPU that sagectld cannot use here: 9",
        "correct engines.chat.cpu_affinity: this machine gives it CPUs 0-1,4",
    )


def test_an_engine_without_a_group_is_named_itself() -> None:
    found = refusal(replace(SPEC, name="web", group="", nice=-1), USER)
    assert found is not None
    assert "engines.web.nice" in found.remedy
