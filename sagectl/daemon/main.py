"""`sagectld`: puts the parts together, runs until it is told to end, and takes them apart."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

import sagectl
from sagectl.config.paths import Paths, prepare, resolve
from sagectl.errors import DaemonRefusal, InvalidConfig, SagectlError
from sagectl.system import requirements
from sagectl.system.start_zygote import start_zygote
from sagectl.system.unit import FIRST_DESCRIPTOR, HANDOVER, this_unit

log = logging.getLogger("sagectld")

FAILURE = 1
REFUSED = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration; engines.d/*.toml beside it is read too.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what the daemon itself does in detail.")
@click.version_option(sagectl.__version__, prog_name="sagectld")
def main(config_file: Path | None, verbose: bool) -> None:
    """Keep the engines of the configuration running. In the foreground; SIGTERM stops them and ends it."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.INFO)
    try:
        lacking = requirements.check()
        if lacking:
            raise DaemonRefusal("; ".join(lacking), remedy="run sagectld on a newer Linux")
        paths = resolve(os.environ, os.geteuid(), config_file=config_file)
        prepare(paths)
        # Two locks: the runtime directory may be removed under us, and that must not let a second one in.
        with locked(paths, paths.lock), locked(paths, paths.state / "sagectl.lock"):
            unit = this_unit()
            zygote = start_zygote(paths.runtime, unit)
            # Only now, so that these large imports and the zygote's own run side by side.
            import asyncio

            from sagectl.daemon.runtime import serve

            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            handover = asyncio.run(serve(paths, zygote, unit, explicit=config_file is not None))
            if handover is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)  # engines get what we were started with
                become(handover)
    except InvalidConfig as error:
        for problem in error.problems:
            click.echo(f"{problem.severity}: {problem}", err=True)
        sys.exit(FAILURE)
    except DaemonRefusal as error:
        click.echo(f"sagectld: {error}", err=True)
        sys.exit(REFUSED)
    except SagectlError as error:
        click.echo(f"sagectld: {error}", err=True)
        sys.exit(FAILURE)


def become(listening: int) -> NoReturn:
    """Replace this process's code by what is installed now; its id, and so its place in systemd, stays.

    Args:
        listening: the API's socket, on which clients wait meanwhile.
    """
    os.dup2(listening, FIRST_DESCRIPTOR)
    os.set_inheritable(FIRST_DESCRIPTOR, True)  # dup2 does nothing where it has this number already
    given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": HANDOVER}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | given)


@contextlib.contextmanager
def locked(paths: Paths, lock: Path) -> Iterator[None]:
    """Hold a lock of the home: two daemons on one directory would start everything twice.

    The lock belongs to the open file, so it ends with the process, however that ends.

    Raises:
        DaemonRefusal: another daemon holds it; names its process. Or the lock cannot be made.
    """
    import fcntl

    file = _open_lock(lock, needed=lock == paths.lock)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(paths, lock) from None
        # The number is for people. Where the disk is full or read-only, the lock holds without it.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(file)


def _open_lock(lock: Path, *, needed: bool) -> int:
    """A descriptor to lock. Of the directory where the file cannot be written, and is not needed."""
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if needed:
            raise DaemonRefusal(
                f"cannot make {lock}: {error.strerror}",
                remedy="see to the owner and the mode of its directory, and to its file system",
            ) from error
    return os.open(lock if lock.is_file() else lock.parent, os.O_RDONLY | os.O_CLOEXEC)


def _taken(paths: Paths, lock: Path) -> DaemonRefusal:
    pid = lock.read_text(errors="replace").strip() if lock.is_file() else ""
    return DaemonRefusal(
        f"another sagectld (process {pid or 'unknown'}) runs on {paths.runtime}",
        remedy="talk to that one with `sagectl`, end it with `sagectl shutdown`, "
        "or set SAGECTL_HOME to another directory",
        facts={"pid": pid or "unknown"},
    )
