"""What the daemon makes of systemd's words: its unit, its job, its control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagectl.system.groups import Groups, base_for, unenforced
from sagectl.system.systemd import job_of
from sagectl.system.unit import Unit, own_unit

ROOT = Path("/sys/fs/cgroup")
SLICE = ROOT / "sagectl.slice"
SCOPE = "sagectld-engines.scope"
SERVICE = "0::/system.slice/sagectld.service"
NAME = "sagectl-1234abcd"


@pytest.mark.parametrize(
    ("started", "cgroups", "unit"),
    [
        ("7", SERVICE, Unit("sagectld.service", user=False)),
        ("7", f"12:pids:/x\n1:name=systemd:{SERVICE[3:]}\n0::/", Unit("sagectld.service", user=False)),
        (
            "7",
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/mine.service",
            Unit("mine.service", user=True),
        ),
        ("8", SERVICE, None),  # inherited: systemd started our parent
        (None, SERVICE, None),
        ("7", "0::/user.slice/user-1000.slice/session-1.scope", None),  # a terminal
        ("7", f"4:memory:{SERVICE[3:]}\n0::/", None),
        ("7", "", None),
    ],
)
def test_the_unit_is_known_only_to_the_process_that_systemd_started(
    started: str | None, cgroups: str, unit: Unit | None
) -> None:
    environ = {} if started is None else {"SYSTEMD_EXEC_PID": started}
    assert own_unit(7, environ, cgroups) == unit


@pytest.mark.parametrize(
    ("listed", "job"),
    [
        ("186 sagectld.service restart running", "restart"),
        ("3 other.service stop waiting\n9 sagectld.service stop running\n", "stop"),
        ("3 sagectld.service.d stop running", None),
        ("3 my-sagectld.service stop running", None),
        ("sagectld.service stop", None),
        ("", None),
        ("No jobs running.", None),
    ],
)
def test_the_units_job_is_found_among_others(listed: str, job: str | None) -> None:
    assert job_of("sagectld.service", listed) == job


@pytest.mark.parametrize(
    ("group", "scope", "base"),
    [
        # systemd: the scope, whether the zygote is in it or below it, and nothing else.
        (SLICE / SCOPE, SCOPE, SLICE / SCOPE),
        (SLICE / SCOPE / "supervisor", SCOPE, SLICE / SCOPE),
        (ROOT / "system.slice" / "sagectld.service", SCOPE, None),
        (ROOT, SCOPE, None),
        (ROOT / NAME / "supervisor", SCOPE, None),
        # No systemd: below the root, and below nobody else's group.
        (ROOT, None, ROOT / NAME),
        (ROOT / NAME / "supervisor", None, ROOT / NAME),
        (ROOT / NAME, None, ROOT / NAME),
        (ROOT / "sagectl-another" / "supervisor", None, None),
        (ROOT / "user.slice" / "session-1.scope", None, None),
        (ROOT / "user.slice" / NAME, None, None),
    ],
)
def test_only_what_is_ours_is_divided(group: Path, scope: str | None, base: Path | None) -> None:
    assert base_for(group, ROOT, NAME, scope) == base


@pytest.mark.parametrize(
    ("controllers", "asked", "keys"),
    [
        (None, {"memory_max": 1, "cpu_weight": 1}, ["memory_max", "cpu_weight"]),
        (set(), {"memory_max": None, "cpu_weight": 1}, ["cpu_weight"]),
        ({"memory"}, {"memory_max": 1, "cpu_weight": 1}, ["cpu_weight"]),
        ({"memory", "cpu"}, {"memory_max": 1, "cpu_weight": 1}, []),
        (None, {"memory_max": None, "cpu_weight": None}, []),
    ],
)
def test_what_nobody_enforces_is_named(
    controllers: set[str] | None, asked: dict[str, int | None], keys: list[str]
) -> None:
    found = None if controllers is None else Groups(SLICE, frozenset(controllers))
    told = unenforced(found, asked)
    assert [line.split()[0] for line in told] == keys
    assert all(" is not enforced: there is no control group with the controller " in line for line in told)
