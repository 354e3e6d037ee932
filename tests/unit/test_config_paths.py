"""Where sagectl keeps its files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sagectl.config.paths import Paths, prepare, resolve
from sagectl.errors import DaemonRefusal


def test_root_uses_the_systems_directories() -> None:
    paths = resolve({"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0"}, 0)
    assert paths == Paths(
        config=Path("/etc/sagectl"),
        config_file=Path("/etc/sagectl/sagectl.toml"),
        engines_d=Path("/etc/sagectl/engines.d"),
        runtime=Path("/run/sagectl"),
        socket=Path("/run/sagectl/sagectl.sock"),
        lock=Path("/run/sagectl/sagectl.lock"),
        engines=Path("/run/sagectl/engines"),
        state=Path("/var/lib/sagectl"),
        database=Path("/var/lib/sagectl/sagectl.db"),
        engine_state=Path("/var/lib/sagectl/engines"),
        log=Path("/var/log/sagectl"),
        models=Path("/var/lib/sagectl/models"),
    )


def test_a_user_has_the_xdg_directories() -> None:
    environ = {
        "HOME": "/home/u",
        "XDG_CONFIG_HOME": "/c",
        "XDG_RUNTIME_DIR": "/r",
        "XDG_STATE_HOME": "/s",
        "XDG_DATA_HOME": "/d",
    }
    paths = resolve(environ, 1000)
    assert [str(p) for p in (paths.config_file, paths.socket, paths.database, paths.log, paths.models)] == [
        "/c/sagectl/sagectl.toml",
        "/r/sagectl/sagectl.sock",
        "/s/sagectl/sagectl.db",
        "/s/sagectl/log",
        "/d/sagectl/models",
    ]


def test_a_users_defaults_are_in_their_home_and_the_runtime_in_tmp() -> None:
    paths = resolve({"HOME": "/home/u", "XDG_STATE_HOME": "relative/is/invalid"}, 1000)
    assert str(paths.config_file) == "/home/u/.config/sagectl/sagectl.toml"
    assert str(paths.state) == "/home/u/.local/state/sagectl"
    assert str(paths.models) == "/home/u/.local/share/sagectl/models"
    assert str(paths.socket) == "/tmp/sagectl-1000/sagectl.sock"


@pytest.mark.parametrize("uid", [0, 1000])
def test_sagectl_home_comes_first_for_everybody(uid: int) -> None:
    paths = resolve({"SAGECTL_HOME": "/x/y/", "XDG_RUNTIME_DIR": "/r", "HOME": "/h"}, uid)
    assert str(paths.config_file) == "/x/y/etc/sagectl.toml"
    assert str(paths.socket) == "/x/y/run/sagectl.sock"
    assert str(paths.state) == "/x/y/state"
    assert str(paths.log) == "/x/y/log"
    assert str(paths.models) == "/x/y/models"


def test_a_named_configuration_has_its_engines_d_beside_it() -> None:
    paths = resolve({"SAGECTL_HOME": "/x"}, 0, config_file=Path("/elsewhere/my.toml"))
    assert str(paths.config_file) == "/elsewhere/my.toml"
    assert str(paths.engines_d) == "/elsewhere/engines.d"
    assert str(paths.socket) == "/x/run/sagectl.sock"


def test_the_command_line_gets_its_paths_without_heavy_imports() -> None:
    code = "import sys, sagectl.config.paths; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "tomli", "pluggy", "asyncio", "sagectl.plugin"} & set(done.stdout.split())


# --- Making them ---------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directories_are_made_with_modes_of_their_own(tmp_path: Path) -> None:
    paths = resolve({"SAGECTL_HOME": str(tmp_path / "home")}, os.geteuid())
    prepare(paths)
    prepare(paths)
    private = os.geteuid() != 0
    assert mode(paths.runtime) == mode(paths.engines) == (0o700 if private else 0o755)
    assert mode(paths.state) == (0o700 if private else 0o711)
    assert mode(paths.log) & 0o007 == 0
    assert not paths.config.exists()


def test_a_directory_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    paths = resolve({"SAGECTL_HOME": str(tmp_path)}, os.geteuid())
    paths.runtime.mkdir()
    paths.runtime.chmod(0o777)
    with pytest.raises(DaemonRefusal, match=r"can be written by everybody.*chmod o-w"):
        prepare(paths)


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    paths = resolve({"SAGECTL_HOME": str(tmp_path)}, os.geteuid())
    paths.runtime.touch()
    with pytest.raises(DaemonRefusal, match="is not a directory"):
        prepare(paths)


def test_what_cannot_be_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DaemonRefusal, match=r"cannot make the directory .*/file/run"):
        prepare(resolve({"SAGECTL_HOME": str(tmp_path / "file")}, os.geteuid()))


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = resolve({"SAGECTL_HOME": str(tmp_path)}, os.geteuid())
    prepare(paths)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(DaemonRefusal, match=f"belongs to user {owner}, and this daemon runs as"):
        prepare(paths)


def test_a_link_laid_in_tmp_is_not_followed(tmp_path: Path) -> None:
    runtime = Path(f"/tmp/sagectl-{os.getpid()}-link")
    runtime.symlink_to(tmp_path)
    try:
        environ = {"HOME": str(tmp_path / "home")}
        paths = resolve(environ, os.geteuid() or 1000)
        with pytest.raises(DaemonRefusal, match="is not a directory"):
            prepare(Paths(**{**{f: getattr(paths, f) for f in Paths.__slots__}, "runtime": runtime}))
    finally:
        runtime.unlink()
