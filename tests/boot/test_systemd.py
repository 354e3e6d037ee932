"""sagectl under a real systemd. The tests share one machine and go through its days in their order."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.boot.machine import Machine

pytestmark = pytest.mark.boot

UNIT = "sagectld.service"
SCOPE = "sagectld-engines.scope"
NOTES = "/var/notes/{name}"
ENGINE = """
[engines.{name}]
kind = "exec"
command = ["/usr/bin/python3", "-I", "-S", "/opt/server.py", "{{port}}", "/var/notes/{name}"]
port = {port}
autostart = true
probe = {{ http = "/", interval = 1 }}
restart = {{ delay = 0 }}
stop = {{ drain = {drain}, timeout = 5 }}
"""
ENGINES = {"one": 8501, "two": 8502}
ASK = "import urllib.request as u, sys; sys.stdout.write(u.urlopen(sys.argv[1], timeout=60).read().decode())"


def configure(machine: Machine, *, drain: float = 0) -> None:
    text = "".join(ENGINE.format(name=name, port=port, drain=drain) for name, port in ENGINES.items())
    machine.write("/etc/sagectl/sagectl.toml", text)


def engines(machine: Machine) -> dict[str, dict[str, Any]]:
    listed = json.loads(machine.run("sagectl", "--json", "list").stdout)
    return {engine["name"]: engine for engine in listed["engines"]}


def pids(machine: Machine) -> dict[str, int]:
    """The engines' processes, once all of them are ready."""

    def ready() -> bool:
        done = machine.run("sagectl", "--json", "list", check=False)
        if done.returncode != 0:
            return False
        found = json.loads(done.stdout)["engines"]
        return len(found) == len(ENGINES) and all(engine["substate"] == "ready" for engine in found)

    machine.until("all engines ready", ready)
    return {name: engine["pid"] for name, engine in engines(machine).items()}


def main_pid(machine: Machine) -> int:
    return int(machine.property(UNIT, "MainPID"))


def alive(machine: Machine, pid: int) -> bool:
    return machine.run("test", "-e", f"/proc/{pid}", check=False).returncode == 0


def ask(machine: Machine, port: int, target: str = "/") -> str:
    return machine.run("python3", "-c", ASK, f"http://127.0.0.1:{port}{target}").stdout


def begin_to_ask(machine: Machine, port: int, seconds: float) -> subprocess.Popen[str]:
    """A request that takes a while; returns when the engine has it."""
    slow = machine.start("python3", "-c", ASK, f"http://127.0.0.1:{port}/slow?{seconds}")
    machine.until(
        "the request has arrived",
        lambda: f":{port:04X} " in _established(machine),
    )
    return slow


def _established(machine: Machine) -> str:
    """Local addresses of established connections, as /proc/net/tcp has them."""
    lines = machine.run("cat", "/proc/net/tcp").stdout.splitlines()[1:]
    fields = [line.split() for line in lines]
    return " ".join(f"{field[1]} " for field in fields if field[3] == "01")


def drop_in(machine: Machine, text: str, unit: str = UNIT) -> None:
    """As `systemctl edit` would; "" takes it away."""
    path = f"/etc/systemd/system/{unit}.d/test.conf"
    if text:
        machine.write(path, text)
    else:
        (machine.root / path.lstrip("/")).unlink()
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", unit)  # five starts a minute are the unit's limit


def test_the_files_are_as_systemd_wants_them(machine: Machine) -> None:
    """`systemd-analyze verify` of all units, `systemd-sysusers`, `systemd-tmpfiles`.

    Result: nothing to say; user, group and directories are there; the exposure is printed.
    """
    for unit in ("sagectld.service", "sagectld.socket", "../user/sagectld.service"):
        verified = machine.run("systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{unit}")
        assert verified.stderr == ""
    machine.run("systemd-sysusers")
    machine.run("systemd-tmpfiles", "--create")
    assert machine.run("id", "-gn", "sagectl").stdout == "sagectl\n"
    assert machine.run("stat", "-c", "%a %U", "/var/lib/sagectl").stdout == "711 root\n"
    print(machine.run("systemd-analyze", "security", "--no-pager", "sagectld.service", check=False).stdout)


def test_enable_now_starts_the_engines(machine: Machine) -> None:
    """`systemctl enable --now sagectld`.

    Result: active, engines up, each answers; they live in a scope of their own beside the service.
    """
    configure(machine)
    machine.run("systemctl", "enable", "--now", UNIT)
    found = pids(machine)
    assert {ask(machine, port) for port in ENGINES.values()} == {str(pid) for pid in found.values()}
    for pid in found.values():
        assert f"/sagectl.slice/{SCOPE}" in machine.run("cat", f"/proc/{pid}/cgroup").stdout
    machine.until("the status", lambda: machine.property(UNIT, "StatusText") == "2 engines: 2 active")


def test_after_a_reboot_they_are_up_again(machine: Machine) -> None:
    """`systemctl reboot`.

    Result: enabled means up, with new processes that were never restarted.
    """
    machine.reboot()
    pids(machine)
    assert {engine["restart_count"] for engine in engines(machine).values()} == {0}


def test_sigkill_of_the_daemon_leaves_the_same_engines(machine: Machine) -> None:
    """`systemctl kill -s KILL` of the main process.

    Result: systemd starts another daemon, which adopts the very same processes.
    """
    before, daemon = pids(machine), main_pid(machine)
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)
    machine.until("another daemon", lambda: main_pid(machine) not in (0, daemon))
    assert pids(machine) == before


@pytest.mark.parametrize("verb", ["restart", "try-restart"])
def test_restart_keeps_the_engines(machine: Machine, verb: str) -> None:
    """`systemctl restart sagectld`, as an upgrade of the package does it.

    Result: another daemon, the same engines; systemd has nothing to complain about.
    """
    before, daemon = pids(machine), main_pid(machine)
    told = len(machine.journal(UNIT))
    machine.run("systemctl", verb, UNIT)
    assert main_pid(machine) not in (0, daemon)
    assert pids(machine) == before
    journal = machine.journal(UNIT)[told:]
    assert "left-over process" not in journal
    assert "Failed" not in journal


def test_daemon_reexec_keeps_daemon_and_engines(machine: Machine) -> None:
    """`sagectl daemon-reexec`.

    Result: the main process has the same id, and systemd notices nothing.
    """
    before, daemon = pids(machine), main_pid(machine)
    machine.run("sagectl", "daemon-reexec")
    assert (main_pid(machine), pids(machine)) == (daemon, before)
    assert machine.property(UNIT, "NRestarts") in ("0", "1")
    assert machine.property(UNIT, "ActiveState") == "active"


def test_stop_waits_for_requests_longer_than_the_timeout_says(machine: Machine) -> None:
    """A drop-in says TimeoutStopSec=2; an engine drains for 20 s; a request takes 5 s; `systemctl stop`.

    Result: the request is answered, the stop succeeds after it, and nothing of the engines is left.
    """
    drop_in(machine, "[Service]\nTimeoutStopSec=2\n")
    configure(machine, drain=20)
    machine.run("systemctl", "reload", UNIT)
    before = pids(machine)
    slow = begin_to_ask(machine, ENGINES["one"], 5)
    machine.run("systemctl", "stop", UNIT)
    assert slow.communicate(timeout=10)[0] == str(before["one"])
    assert machine.property(UNIT, "Result") == "success"
    assert not any(alive(machine, pid) for pid in before.values())
    assert machine.property(SCOPE, "ActiveState") == "inactive"
    drop_in(machine, "")
    machine.run("systemctl", "start", UNIT)
    pids(machine)


def test_a_shutdown_drains_before_it_kills(machine: Machine) -> None:
    """A request takes 4 s; `systemctl reboot` meanwhile.

    Result: the engine answers it first and gets SIGTERM after: systemd stops the daemon before the scope.
    """
    pids(machine)
    notes = NOTES.format(name="one")
    (machine.root / notes.lstrip("/")).write_text("")
    slow = begin_to_ask(machine, ENGINES["one"], 4)
    machine.reboot()
    slow.kill()
    slow.communicate()
    assert machine.read(notes).splitlines() == ["answered", "SIGTERM", "started"]


def test_a_daemon_that_hangs_is_replaced(machine: Machine) -> None:
    """A drop-in says WatchdogSec=2; the daemon gets SIGSTOP.

    Result: systemd kills it and starts another one, which adopts the same engines.
    """
    drop_in(machine, "[Service]\nWatchdogSec=2\n")
    machine.run("systemctl", "restart", UNIT)
    before, daemon = pids(machine), main_pid(machine)
    machine.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", UNIT)
    machine.until("another daemon", lambda: main_pid(machine) not in (0, daemon))
    assert pids(machine) == before
    assert "Watchdog timeout" in machine.journal(UNIT)
    drop_in(machine, "")


def test_reload_applies_a_right_configuration_and_refuses_a_wrong_one(machine: Machine) -> None:
    """`systemctl reload` with a changed `drain`, then with a syntax error.

    Result: the first succeeds; the second fails, says why in the journal, and service and engines go on.
    """
    configure(machine, drain=1)
    machine.run("systemctl", "reload", UNIT)
    before = pids(machine)
    machine.write("/etc/sagectl/sagectl.toml", "[engines.one\n")
    assert machine.run("systemctl", "reload", UNIT, check=False).returncode != 0
    assert machine.property(UNIT, "ActiveState") == "active"
    assert "/etc/sagectl/sagectl.toml:1: is not valid TOML" in machine.journal(UNIT)
    assert pids(machine) == before
    configure(machine)
    machine.run("systemctl", "reload", UNIT)


def test_a_drop_in_changes_the_daemon(machine: Machine) -> None:
    """A drop-in sets LimitNOFILE; `systemctl restart`; a new start of an engine.

    Result: the engine is born with that limit.
    """
    drop_in(machine, "[Service]\nLimitNOFILE=12345\n")
    machine.run("systemctl", "restart", UNIT)
    machine.run("sagectl", "restart", "one")
    limits = machine.run("cat", f"/proc/{pids(machine)['one']}/limits").stdout
    files = next(line for line in limits.splitlines() if "open files" in line)
    assert files.split()[3] == "12345"  # the hard one of another user's process takes CAP_SYS_RESOURCE
    drop_in(machine, "")
    machine.run("systemctl", "restart", UNIT)


@pytest.mark.parametrize("how", ["absent", "failing"])
def test_without_a_scope_the_engines_survive_in_the_services_own_group(machine: Machine, how: str) -> None:
    """`systemd-run` is not installed, or fails; `systemctl start`, `systemctl restart`, `systemctl stop`.

    Result: the engines come up in the service's group, which nobody divides, so that the restart succeeds and
    keeps them; the stop ends them.
    """
    machine.run("systemctl", "stop", UNIT)
    machine.run("mv", "/usr/bin/systemd-run", "/usr/bin/systemd-run.away")
    if how == "failing":
        machine.run("ln", "-s", "/bin/false", "/usr/bin/systemd-run")
    machine.run("systemctl", "start", UNIT)
    before = pids(machine)
    for pid in before.values():
        assert f"0::/system.slice/{UNIT}\n" in machine.run("cat", f"/proc/{pid}/cgroup").stdout
    machine.run("systemctl", "restart", UNIT)
    assert pids(machine) == before
    machine.run("systemctl", "stop", UNIT)
    assert not any(alive(machine, pid) for pid in before.values())
    machine.run("mv", "/usr/bin/systemd-run.away", "/usr/bin/systemd-run")
    machine.run("systemctl", "reset-failed", UNIT, check=False)  # starts are counted
    machine.run("systemctl", "start", UNIT)


def test_the_socket_starts_the_daemon_and_lets_clients_wait(machine: Machine) -> None:
    """`systemctl enable --now sagectld.socket` with the service stopped; `sagectl list`; a restart meanwhile.

    Result: the first client starts the daemon; clients during a restart wait for their answer.
    """
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "enable", "--now", "sagectld.socket")
    assert machine.run("stat", "-c", "%a %G", "/run/sagectl/sagectl.sock").stdout == "660 sagectl\n"
    assert main_pid(machine) == 0
    before = pids(machine)
    assert main_pid(machine) != 0
    loop = "for i in 1 2 3 4 5 6 7 8 9 10; do sagectl --json list >/dev/null || exit 1; done"
    asking = machine.start("sh", "-c", loop)
    machine.run("systemctl", "restart", UNIT)
    asking.communicate(timeout=60)
    assert asking.returncode == 0
    assert pids(machine) == before
    machine.run("sagectl", "daemon-reexec")
    assert pids(machine) == before


def test_a_users_own_daemon_lingers(machine: Machine) -> None:
    """A user without a session, with lingering, and the user unit.

    Result: the daemon runs in the user's manager, its engine in a scope there; a restart keeps the engine.
    """
    machine.run("useradd", "--create-home", "ada")
    machine.run("loginctl", "enable-linger", "ada")
    uid = machine.run("id", "-u", "ada").stdout.strip()
    machine.until(
        "the user's manager", lambda: machine.property(f"user@{uid}.service", "SubState") == "running"
    )
    notes = "/home/ada/notes"
    text = ENGINE.format(name="own", port=8600, drain=0).replace(NOTES.format(name="own"), notes)
    machine.write("/home/ada/.config/sagectl/sagectl.toml", text)
    machine.run("chown", "-R", "ada:", "/home/ada/.config")

    def as_ada(*words: str) -> str:
        runtime = f"XDG_RUNTIME_DIR=/run/user/{uid}"
        return machine.run("runuser", "-u", "ada", "--", "env", runtime, "HOME=/home/ada", *words).stdout

    def own() -> dict[str, Any]:
        (engine,) = json.loads(as_ada("sagectl", "--json", "list"))["engines"]
        found: dict[str, Any] = engine
        return found

    as_ada("systemctl", "--user", "enable", "--now", "sagectld")
    machine.until("the user's engine", lambda: own()["substate"] == "ready")
    pid = own()["pid"]
    assert machine.run("stat", "-c", "%U", f"/proc/{pid}").stdout == "ada\n"
    assert f"user@{uid}.service/sagectl.slice/{SCOPE}" in machine.run("cat", f"/proc/{pid}/cgroup").stdout
    as_ada("systemctl", "--user", "restart", "sagectld")
    assert own()["pid"] == pid
    as_ada("systemctl", "--user", "stop", "sagectld")
    assert not alive(machine, pid)
