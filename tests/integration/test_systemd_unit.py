"""The unit file, as systemd itself reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "sagectld.service"


def settings() -> dict[str, str]:
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    # It also looks for the programs, which need not be installed where the tests run.
    text = re.sub(r"^(Exec\w+)=sagectld?\b", r"\1=/bin/true", UNIT.read_text(encoding="utf-8"), flags=re.M)
    unit = tmp_path / UNIT.name
    unit.write_text(text, encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_says_when_it_is_ready_and_lets_engines_outlive_the_daemon() -> None:
    found = settings()
    assert found["Type"] == "notify"
    assert found["NotifyAccess"] == "main"
    assert found["ExecReload"] == "sagectl reload"
    assert int(found["WatchdogSec"]) > 0
    assert found["KillMode"] == "process"
    assert found["RuntimeDirectoryPreserve"] == "yes"
    assert found["OOMPolicy"] == "continue"
