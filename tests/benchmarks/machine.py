"""systemd: a machine of its own in a container, with the system's programs and its own configuration."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.lab import PATIENCE, Supervisor, descendants, eventually, parent_of, sized, words_of

INIT = "/usr/lib/systemd/systemd"
TARGET = "bench.target"


class Systemd(Supervisor):
    """The system manager of a container that boots the engines and nothing else but journald.

    Its processes are seen from outside, where only their numbers differ. The engines' directory and the
    interpreter have the same path inside.
    """

    name = "systemd"

    def __init__(self) -> None:
        super().__init__()
        self.tree = Path(tempfile.mkdtemp(prefix="sgbench-tree"))
        for folder in ("usr", "etc/systemd/system", "proc", "sys", "dev", "run", "tmp", "var", "root"):
            (self.tree / folder).mkdir(parents=True)
        for folder in ("bin", "sbin", "lib", "lib64"):
            (self.tree / folder).symlink_to(f"usr/{folder}")
        shutil.copy("/etc/os-release", self.tree / "etc")
        (self.tree / "etc" / "machine-id").write_text(uuid.uuid4().hex + "\n")
        self.groups: list[Path] = []
        self.units = self.tree / "etc" / "systemd" / "system"
        self.units.joinpath(TARGET).write_text("[Unit]\nRequires=basic.target\nAfter=basic.target\n")

    @classmethod
    def missing(cls) -> str:
        lacking = [tool for tool in ("systemd-nspawn", "nsenter", INIT) if shutil.which(tool) is None]
        if lacking:
            return f"no {', '.join(lacking)} here; `apt-get install systemd-container` brings it"
        return "only root may boot a container" if os.geteuid() else _boots()

    def command(self) -> list[str]:
        shown = [str(path) for path in {sys.prefix, sys.base_prefix} if not Path(path).is_relative_to("/usr")]
        alone = ["--keep-unit"] if self.groups else []
        return [
            *(
                "sh",
                "-ec",
                'for each in $SGBENCH_GROUPS; do echo $$ >"$each/cgroup.procs"; done; exec "$@"',
                "sh",
            ),
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.tree}", "--bind-ro=/usr"),
            *(f"--bind-ro={path}" for path in shown),
            *(f"--bind={self.home}", "--private-network", "--register=no", *alone),
            *(f"--machine=sgbench-{os.getpid()}", "--link-journal=no", "--console=pipe"),
            f"systemd.unit={TARGET}",
        ]

    def declare(self, commands: Mapping[str, Sequence[str]]) -> None:
        wants = self.units / f"{TARGET}.wants"
        wants.mkdir()
        for name, words in commands.items():
            unit = self.units / f"{name}.service"
            unit.write_text(
                "[Unit]\nStartLimitIntervalSec=0\n"
                f"[Service]\nExecStart={shlex.join(words)}\nRestart=always\nRestartSec=0\n"
                f"TimeoutStopSec={sized(5, 1)}\n"
            )
            (wants / unit.name).symlink_to(f"../{unit.name}")

    def start(self) -> float:
        """Boot, or where it runs already (it cannot be killed) have it execute itself anew."""
        if self.process is not None:
            begin = time.monotonic()
            assert self.inside("systemctl", "daemon-reexec")
            return begin
        if not Path("/run/systemd/system").exists():  # which would give it a scope
            self.groups = _groups(self.tree.name)
        self.environ["SGBENCH_GROUPS"] = " ".join(map(str, self.groups))
        self.environ["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"
        return super().start()

    def inside(self, *command: str) -> bool:
        """Run something in the container; whether that succeeded."""
        return self.call("nsenter", "-t", str(self.root), "-a", *command)

    @property
    def root(self) -> int:
        """The container's process 1, as it is numbered outside."""
        return descendants(self.pid)[1]

    def settle(self, count: int) -> None:
        eventually(lambda: self.inside("systemctl", "is-active", TARGET), pause=0.05)

    def kill(self, pids: Sequence[int]) -> None:
        """As from inside: the kernel drops what is sent to process 1, whoever sends it there."""
        root = self.root
        if root in pids:
            self.inside("kill", "-KILL", "1")
        super().kill([pid for pid in pids if pid != root])

    def stop(self, name: str) -> bool:
        return self.inside("systemctl", "stop", name)

    def reader(self, pid: int) -> int:
        [found] = [
            each
            for each in descendants(self.root)
            if parent_of(each) == self.root and words_of(each)[0].endswith("/systemd-journald")
        ]
        return found

    def output(self, name: str) -> bytes:
        """What journald kept."""
        command = ["nsenter", "-t", str(self.root), "-a", "journalctl", "-o", "cat", "-u", name]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout

    def overhead(self) -> list[int]:
        return [pid for pid in super().overhead() if pid != self.pid]  # nspawn is the lab's

    def close(self) -> None:
        """End the machine as a whole."""
        if self.process is not None:
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(self.root, signal.SIGKILL)  # from outside it is obeyed
            self.process.wait(PATIENCE)
        super().close()
        mounted = Path("/proc/self/mountinfo").read_text()
        assert str(self.tree) not in mounted, f"{self.tree} is still mounted somewhere"
        shutil.rmtree(self.tree)
        for group in self.groups:
            eventually(lambda group=group: _removed(group))


def _groups(name: str) -> list[Path]:
    """Make control groups where systemd wants some: two containers in the same would meet in them."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            path = own.get("" if kind == "cgroup2" else "name=systemd", "/")
            found.append(Path(where, path.lstrip("/"), name))
            found[-1].mkdir()
    return found


def _removed(group: Path) -> bool:
    for folder, _, _ in os.walk(group, topdown=False):
        Path(folder).rmdir()
    return True


@functools.cache
def _boots() -> str:
    """Why no container comes up here; empty if one does."""
    with Systemd() as machine:
        machine.declare({"began": machine.engines.command()})
        try:
            machine.start()
        except OSError as error:  # control groups that cannot be written
            return f"no container boots here: {error}"
        assert machine.process is not None
        deadline = time.monotonic() + 10
        while not machine.engines.any_began(0.1):
            if machine.process.poll() is not None or time.monotonic() > deadline:
                said = (machine.home / "output").read_text(errors="replace").strip().splitlines()
                return f"no container boots here: {said[-1] if said else 'it says nothing'}"
    return ""
