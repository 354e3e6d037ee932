"""`check`: every mistake, without a daemon."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sagectl.cli import main
from sagectl.system import plugins

Out = pytest.CaptureFixture[str]
RIGHT = '[engines.web]\nkind = "exec"\ncommand = ["server"]\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration directory of its own, and the kind exec."""
    _install(monkeypatch, exec="sagectl_exec")
    monkeypatch.setenv("SAGECTL_HOME", str(tmp_path))
    (tmp_path / "etc" / "engines.d").mkdir(parents=True)
    return tmp_path / "etc"


def _install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = [EntryPoint(name=name, value=value, group="sagectl") for name, value in points.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)


def test_a_right_configuration_exits_0(home: Path, capsys: Out) -> None:
    (home / "sagectl.toml").write_text(RIGHT)
    assert main.run(["check"]) == 0
    assert capsys.readouterr().out == f"No mistakes: 1 engine ({home}/sagectl.toml).\n"


def test_no_configuration_is_no_mistake(capsys: Out) -> None:
    assert main.run(["check"]) == 0
    assert "does not exist, which is fine" in capsys.readouterr().out


def test_every_mistake_is_told_with_file_line_key_and_remedy(home: Path, capsys: Out) -> None:
    (home / "sagectl.toml").write_text(RIGHT + "prot = 8001\n")
    (home / "engines.d" / "more.toml").write_text('[engines.x]\nkind = "exec"\ncommand = ["a"]\nport = "b"\n')
    assert main.run(["check"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{home}/sagectl.toml:4: engines.web.prot: ")
    assert first.endswith(")")
    assert second.startswith(f"{home}/engines.d/more.toml:4: engines.x.port: ")


def test_a_warning_is_shown_and_exits_0(home: Path, capsys: Out) -> None:
    (home / "sagectl.toml").write_text(RIGHT + 'gpu_memory = "4GiB"\n')
    assert main.run(["check"]) == 0
    assert capsys.readouterr().out.startswith(f"warning: {home}/sagectl.toml:4: engines.web.gpu_memory: ")


def test_a_file_can_be_named(tmp_path: Path, capsys: Out) -> None:
    file = tmp_path / "other.toml"
    assert main.run(["check", str(file)]) == 1
    file.write_text(RIGHT)
    assert main.run(["check", str(file)]) == 0


def test_a_broken_plugin_is_told_and_stops_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    _install(monkeypatch, exec="sagectl_exec", bad="no_such_module")
    (home / "sagectl.toml").write_text(RIGHT)
    assert main.run(["check"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("warning: broken plugin bad of no_such_module: ModuleNotFoundError: ")


def test_json_has_problems_files_and_engines(home: Path, capsys: Out) -> None:
    (home / "sagectl.toml").write_text(RIGHT)
    assert main.run(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "problems": [],
        "broken_plugins": [],
        "files": [f"{home}/sagectl.toml"],
        "engines": ["web"],
    }
    (home / "sagectl.toml").write_text(RIGHT + "prot = 1\n")
    assert main.run(["check", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["key"], problem["line"], problem["severity"]) == ("engines.web.prot", 4, "error")
