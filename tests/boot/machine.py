"""A machine that boots: systemd-nspawn on an overlay above the tree of etc/make/boot.py."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NSPAWN = ("systemd-nspawn", "-b", "--register=no", "--keep-unit", "--private-network", "--console=pipe")
REBOOTED = 133
"""With this systemd-nspawn ends where the machine wants to be booted again."""


class Machine:
    """One machine. Commands run in it as root, by nsenter; it has a loopback device and no other network."""

    def __init__(self, tree: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sagectl-boot-"))
        self.root = self._folder / "root"
        for name in ("root", "upper", "work"):
            (self._folder / name).mkdir()
        options = f"lowerdir={tree},upperdir={self._folder}/upper,workdir={self._folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True)
        self._console = (self._folder / "console").open("wb")
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    # --- Before it boots ---

    def write(self, path: str, text: str) -> None:
        """A file in the machine, booted or not."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def read(self, path: str) -> str:
        """A file of the machine; "" where it is not there."""
        try:
            return (self.root / path.lstrip("/")).read_text()
        except FileNotFoundError:
            return ""

    def install(self) -> None:
        """The checkout's wheel and its unit files, as a package would put them."""
        wheels = self.root / "opt" / "wheels"
        wheels.mkdir()
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "-w", wheels, ROOT], check=True)
        (wheel,) = wheels.glob("sagectl-*.whl")
        pip = ["chroot", self.root, "/opt/sagectl/bin/pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, f"/opt/wheels/{wheel.name}"], check=True)
        for source, target in {
            "sagectld.service": "usr/lib/systemd/system/sagectld.service",
            "sagectld.socket": "usr/lib/systemd/system/sagectld.socket",
            "user/sagectld.service": "usr/lib/systemd/user/sagectld.service",
            "sagectl.sysusers": "usr/lib/sysusers.d/sagectl.conf",
            "sagectl.tmpfiles": "usr/lib/tmpfiles.d/sagectl.conf",
        }.items():
            shutil.copy(ROOT / "systemd" / source, self.root / target)
        shutil.copy(Path(__file__).parent / "programs" / "server.py", self.root / "opt" / "server.py")
        (self.root / "var" / "notes").mkdir()
        (self.root / "var" / "notes").chmod(0o777)  # engines run as the user sagectl

    # --- Up and down ---

    def boot(self) -> None:
        """Return when systemd says that it has booted."""
        name = f"sagectl-{os.getpid()}"
        self._nspawn = subprocess.Popen(
            [*NSPAWN, "-D", self.root, "-M", name],
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + PATIENCE
        state = ""
        while state not in ("running", "degraded"):
            assert self._nspawn.poll() is None, self.console()
            assert time.monotonic() < end, self.console()
            self._leader = self._child(self._nspawn.pid)
            asked = ["systemctl", "is-system-running", "--wait"]
            state = self.run(*asked, check=False).stdout.strip() if self._leader else ""
            time.sleep(0.05)  # nothing tells from outside when it can be asked

    @staticmethod
    def _child(pid: int) -> int:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return 0
        return int(children[0]) if children else 0

    def reboot(self) -> None:
        """`systemctl reboot`, until it has booted again."""
        assert self._nspawn is not None
        self.run("systemctl", "reboot")
        assert self._nspawn.wait(PATIENCE) == REBOOTED, self.console()
        self.boot()

    def close(self) -> None:
        """Switch it off and throw it away."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            self.run("systemctl", "poweroff", check=False)
            try:
                self._nspawn.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        self._console.close()
        subprocess.run(["umount", self.root], check=True)
        shutil.rmtree(self._folder)

    def console(self) -> str:
        """What it printed while booting."""
        return (self._folder / "console").read_text(errors="replace")[-4000:]

    # --- Inside ---

    def command(self, *words: str) -> list[str]:
        """What to run here to have it run there."""
        return ["nsenter", "-t", str(self._leader), "-a", *words]

    def run(
        self, *words: str, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=timeout, check=False,
            stdin=subprocess.DEVNULL, env={"PATH": PATH},
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin a command in the machine."""
        return subprocess.Popen(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            env={"PATH": PATH},
        )  # fmt: skip

    def property(self, unit: str, name: str, *manager: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", *manager, "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """What this boot's journal has of a unit."""
        return self.run("journalctl", "--no-pager", "-b", "-u", unit).stdout

    def until(self, what: str, holds: Callable[[], object], timeout: float = PATIENCE) -> None:
        """Wait until `holds()` is true."""
        end = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < end, self.story(what)
            select.select([], [], [], 0.1)  # the machine's changes can only be asked for

    def story(self, what: str) -> str:
        """What is known where something did not come about."""
        told = [self.journal("sagectld")]
        told += [self.run("sagectl", *verb, check=False).stdout for verb in (["status"], ["events"])]
        return "\n".join([f"{what} did not come about", *told])
