"""Make the Debian tree that the boot tests start, with systemd and all that sagectl depends on.

Stdlib only. Prints the tree's path; progress goes to stderr. The tree is made once and used again while what
it was made from stays the same; the tests write into an overlay above it. Needs root, debootstrap and
systemd-nspawn, and says so where they are missing (exit code 3).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from envs import CONSTRAINTS, ROOT, environments, held, run, say

SUITES = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian's releases that can be booted here, with their Python. systemd 252 and 257."""
PACKAGES = ("systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3", "python3-venv")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
CANNOT = 3


def missing() -> list[str]:
    """What keeps this machine from making and booting a tree."""
    programs = [name for name in ("debootstrap", "systemd-nspawn", "nsenter") if shutil.which(name) is None]
    found = [f"{name} (Debian: apt-get install {_package(name)})" for name in programs]
    return [*found, *(["root"] if os.geteuid() != 0 else [])]


def _package(program: str) -> str:
    return {"systemd-nspawn": "systemd-container", "nsenter": "util-linux"}.get(program, program)


def mirror() -> str:
    """SAGECTL_DEBIAN_MIRROR, or Debian's own."""
    return os.environ.get("SAGECTL_DEBIAN_MIRROR", "http://deb.debian.org/debian")


def suite() -> str:
    """SAGECTL_BOOT_SUITE, or the oldest that sagectl supports."""
    wanted = os.environ.get("SAGECTL_BOOT_SUITE", "bookworm")
    if wanted not in SUITES:
        raise SystemExit(f"SAGECTL_BOOT_SUITE={wanted}: write one of {', '.join(SUITES)}")
    return wanted


def tree() -> Path:
    """The tree, made if need be."""
    release = suite()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed: list[str] = declared["project"]["dependencies"]
    parts = (release, *PACKAGES, *needed, CONSTRAINTS.read_text(encoding="utf-8"))
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    home = environments()
    with held(home):
        path = home / f"boot-{name}"
        if (path / ".made").exists():
            return path / "tree"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        root = path / "tree"
        say(f"making {root}: Debian {release} with systemd (about a minute)")
        include = f"--include={','.join(PACKAGES)}"
        run("debootstrap", "--variant=minbase", include, release, root, mirror())
        _install(root, needed, SUITES[release])
        (path / ".made").touch()
    return root


def _install(root: Path, needed: list[str], python: str) -> None:
    """sagectl's dependencies in /opt/sagectl; itself comes with each session, from the checkout."""
    with tempfile.TemporaryDirectory(dir=root / "opt") as wheels:
        chosen = [word for platform in PLATFORMS for word in ("--platform", platform)]
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "-d", wheels]
        run(*download, "--python-version", python, *chosen, "-c", CONSTRAINTS, *needed)
        inside = f"/{Path(wheels).relative_to(root)}"
        run("chroot", root, "python3", "-m", "venv", "/opt/sagectl")
        find = ("--no-index", "--find-links", inside)
        run("chroot", root, "/opt/sagectl/bin/pip", "install", "--quiet", *find, *needed)
    for name in ("sagectl", "sagectld"):
        (root / "usr/local/bin" / name).symlink_to(f"/opt/sagectl/bin/{name}")


def main() -> None:
    """Print the tree's path, or say what is missing."""
    lacking = missing()
    if lacking:
        say(f"no machine can be booted here; missing: {', '.join(lacking)}")
        sys.exit(CANNOT)
    sys.stdout.write(f"{tree()}\n")


if __name__ == "__main__":
    try:
        main()
    except subprocess.SubprocessError as error:
        raise SystemExit(str(error)) from error
