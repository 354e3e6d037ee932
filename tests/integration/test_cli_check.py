"""`check`: every mistake, without a daemon."""

from __future__ import annotations

import json
import os
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
    (home / "sagectl.toml").write_text(RIGHT + 'idle_stop = "1h"\n')
    assert main.run(["check"]) == 0
    assert capsys.readouterr().out.startswith(f"warning: {home}/sagectl.toml:4: engines.web.idle_stop: ")


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


def test_a_pipe_or_a_device_is_no_configuration(tmp_path: Path, capsys: Out) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for file, words in (
        (tmp_path / "pipe.toml", "is not a file (name a plain file)"),
        (Path("/dev/zero"), "is not a file (name a plain file)"),
        (tmp_path, "is a directory (name a file)"),
    ):
        assert main.run(["check", str(file)]) == 1
        assert capsys.readouterr().out == f"{file}: {words}\n"


def test_what_this_machine_lacks_is_a_warning(home: Path, capsys: Out) -> None:
    os.mkfifo(home / "pipe.env")
    (home / "broken.env").write_text("no equals sign here\n")
    (home / "sagectl.toml").write_text(
        '[daemon]\ngroup = "no-such-group"\n'
        '[engines.web]\nkind = "exec"\ncommand = ["server"]\nuser = "no-such-user"\nenv_file = "absent.env"\n'
        'replicas = 2\n[engines.pipe]\nkind = "exec"\ncommand = ["server"]\nenv_file = "pipe.env"\n'
        '[engines.broken]\nkind = "exec"\ncommand = ["server"]\nenv_file = "broken.env"\n'
    )
    assert main.run(["check"]) == 0
    *warnings, last = capsys.readouterr().out.splitlines()
    told = "\n".join(warnings)
    assert last.startswith("No mistakes: 4 engines")
    assert len(warnings) == 5
    assert 'daemon.group: this machine has no group "no-such-group"' in told
    assert f'{home}/sagectl.toml:6: engines.web.user: this machine has no user "no-such-user"' in told
    assert "absent.env cannot be read: no such file or directory" in told
    assert "pipe.env cannot be used: it is not a file" in told
    assert "broken.env cannot be used: line 1 is not NAME=VALUE" in told


def test_cpus_that_this_machine_lacks_are_a_warning(home: Path, capsys: Out) -> None:
    (home / "sagectl.toml").write_text(
        '[engines.web]\nkind = "exec"\ncommand = ["server"]\ncpu_affinity = "0,8000-8001"\n'
    )
    assert main.run(["check"]) == 0
    warning, _ = capsys.readouterr().out.splitlines()
    key = f"{home}/sagectl.toml:4: engines.web.cpu_affinity"
    assert f"{key}: names CPUs that this machine does not have: 8000-8001 (it has CPUs 0" in warning
