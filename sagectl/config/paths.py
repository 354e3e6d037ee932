"""Where sagectl keeps its files. Standard library only: the command line imports this at each call."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagectl.errors import DaemonRefusal


@dataclass(frozen=True, slots=True)
class Paths:
    """The places of one daemon.

    engines: PID files and the shims' own files. engine_state: what engines keep over restarts, a
    directory each. models: models and checkpoints.
    """

    config: Path
    config_file: Path
    engines_d: Path
    runtime: Path
    socket: Path
    lock: Path
    engines: Path
    state: Path
    database: Path
    engine_state: Path
    log: Path
    models: Path


def resolve(environ: Mapping[str, str], uid: int, *, config_file: Path | None = None) -> Paths:
    """The places for this user and environment. Touches no file.

    Args:
        config_file: named with `--config`; `engines.d` is then looked for beside it.
    """
    home = environ.get("SAGECTL_HOME")
    if home:
        root = Path(os.path.abspath(home))
        places = (root / "etc", root / "run", root / "state", root / "log", root / "models")
    elif uid == 0:
        places = (
            Path("/etc/sagectl"),
            Path("/run/sagectl"),
            Path("/var/lib/sagectl"),
            Path("/var/log/sagectl"),
            Path("/var/lib/sagectl/models"),
        )
    else:
        places = _user_places(environ, uid)
    config, runtime, state, log, models = places
    file = config / "sagectl.toml" if config_file is None else Path(os.path.abspath(config_file))
    return Paths(
        config=file.parent,
        config_file=file,
        engines_d=file.parent / "engines.d",
        runtime=runtime,
        socket=runtime / "sagectl.sock",
        lock=runtime / "sagectl.lock",
        engines=runtime / "engines",
        state=state,
        database=state / "sagectl.db",
        engine_state=state / "engines",
        log=log,
        models=models,
    )


def _user_places(environ: Mapping[str, str], uid: int) -> tuple[Path, Path, Path, Path, Path]:
    home = Path(environ.get("HOME") or _home_of(uid))

    def xdg(variable: str, default: str) -> Path:
        # The XDG specification: a relative path is invalid and to be ignored.
        value = environ.get(variable, "")
        return (Path(value) if value.startswith("/") else home / default) / "sagectl"

    given = environ.get("XDG_RUNTIME_DIR", "")
    runtime = Path(given) / "sagectl" if given.startswith("/") else Path(f"/tmp/sagectl-{uid}")
    state = xdg("XDG_STATE_HOME", ".local/state")
    models = xdg("XDG_DATA_HOME", ".local/share") / "models"
    return xdg("XDG_CONFIG_HOME", ".config"), runtime, state, state / "log", models


def _home_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return f"/tmp/sagectl-{uid}"


def prepare(paths: Paths) -> None:
    """Make the daemon's directories, readable by nobody who need not.

    An engine may run as another user, so that root's directories can be traversed; what lies in
    them has modes of its own.

    Raises:
        DaemonRefusal: a place belongs to somebody else, is no directory, or cannot be made.
    """
    uid = os.geteuid()
    traversable = 0o755 if uid == 0 else 0o700
    modes = {
        paths.runtime: traversable,
        paths.engines: traversable,
        paths.state: 0o711 if uid == 0 else 0o700,
        paths.engine_state: 0o711 if uid == 0 else 0o700,
        paths.log: 0o750,
        paths.models: 0o755,
    }
    for directory, mode in modes.items():
        _make(directory, mode, uid)


def _make(directory: Path, mode: int, uid: int) -> None:
    try:
        if os.path.lexists(directory):
            _inspect(directory, uid)
        else:
            directory.parent.mkdir(parents=True, exist_ok=True)
            directory.mkdir(mode=mode)
    except OSError as error:
        raise DaemonRefusal(
            f"cannot make the directory {directory}: {error.strerror}",
            remedy="make it yourself, or set SAGECTL_HOME to a directory that you may write to",
        ) from error


def _inspect(directory: Path, uid: int) -> None:
    """Refuse an existing place that somebody else could put files into."""
    # In /tmp anybody can lay a symbolic link; elsewhere a link is an administrator's choice.
    found = directory.lstat() if directory.parent == Path("/tmp") else directory.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise DaemonRefusal(f"{directory} is not a directory", remedy="move it out of the way")
    if found.st_uid != uid:
        raise DaemonRefusal(
            f"{directory} belongs to user {found.st_uid}, and this daemon runs as user {uid}",
            remedy=f"run it as user {found.st_uid}, or set SAGECTL_HOME to a directory of its own",
        )
    if found.st_mode & stat.S_IWOTH:
        raise DaemonRefusal(
            f"{directory} can be written by everybody", remedy=f"take that right away: chmod o-w {directory}"
        )
