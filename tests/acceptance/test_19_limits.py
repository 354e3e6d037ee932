"""Scenario 19: what an engine may have of the machine; and what is said when the machine's memory ends it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sagectl.system import groups
from tests.acceptance.harness import Daemon, free_port, get, kill
from tests.cgroups import MemoryGroup, log_is_readable, memory_group

__all__ = ["memory_group"]

CPUS = sorted(os.sched_getaffinity(0))
MOST_FILES = int(Path("/proc/sys/fs/nr_open").read_text())
OOM_SCORE = int(Path("/proc/self/oom_score_adj").read_text())
NICE = os.getpriority(os.PRIO_PROCESS, 0)
readable = pytest.mark.skipif(not log_is_readable(), reason="the kernel's log cannot be read here")


def given(pid: int | None) -> dict[str, object]:
    """What the kernel says of a process."""
    assert pid is not None
    limits = {}
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]:
        limits[line[:26].strip()] = tuple(line[26:].split()[:2])
    return {
        "files": limits["Max open files"],
        "core": limits["Max core file size"],
        "stack": limits["Max stack size"],
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "oom": int(Path(f"/proc/{pid}/oom_score_adj").read_text()),
        "cpus": sorted(os.sched_getaffinity(pid)),
    }


def test_an_engine_gets_what_its_definition_says(daemon: Daemon) -> None:
    """Scenario 19.1: an engine with limits, nice, an OOM score and a CPU gets SIGKILL, then the daemon
    does, then a reload finds nothing new, and another one a different nice.

    Result: the process has all that at each start; `cat`, `show` and the API list it; the reload of a
    different nice restarts the engine with it.
    """
    port = free_port()

    def configure(nice: int) -> None:
        daemon.configure(
            daemon.web_engine(
                "web",
                port,
                limits='{ nofile = [64, 256], core = 0, stack = "1MiB" }',
                nice=nice,
                oom_score_adjust=OOM_SCORE + 1,
                cpu_affinity=f'"{CPUS[-1]}"',
            )
        )

    wanted = {
        "files": ("64", "256"),
        "core": ("0", "0"),
        "stack": ("1048576", "1048576"),
        "nice": NICE + 3,
        "oom": OOM_SCORE + 1,
        "cpus": CPUS[-1:],
    }
    configure(NICE + 3)
    daemon.start()
    [first] = daemon.until_ready("web")
    assert given(first["pid"]) == wanted
    assert first["limits"] == {"nofile": [64, 256], "core": 0, "stack": 1 << 20}
    assert (first["nice"], first["cpu_affinity"]) == (NICE + 3, CPUS[-1:])
    shown = daemon.cli("show", "web").stdout.splitlines()
    assert f"oom_score_adjust: {OOM_SCORE + 1}" in shown
    listed = daemon.cli("cat", "web").stdout
    for line in ("limits.nofile = [64, 256]", f"nice = {NICE + 3}", f"cpu_affinity = [{CPUS[-1]}]"):
        assert f"\n{line} " in listed

    kill(first["pid"] or 0)
    second = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != first["pid"])
    assert given(second["pid"]) == wanted

    daemon.kill()
    daemon.start()
    assert daemon.show("web")["pid"] == second["pid"]
    assert daemon.client.reload()["unchanged"] == 1
    configure(NICE + 4)
    assert daemon.client.reload()["restarts"] == [{"name": "web", "keys": ["nice"]}]
    third = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != second["pid"])
    assert given(third["pid"]) == {**wanted, "nice": NICE + 4}


def test_what_cannot_be_given_is_refused_before_anything_runs(daemon: Daemon) -> None:
    """Scenario 19.2: one engine wants a CPU that is not there, one more open files than the kernel gives
    anybody; one that runs gets such a number by a reload.

    Result: `check` warns of the CPU; the two fail in preflight with reason and remedy, at once and for
    good; the reload keeps the running engine as it is and says why.
    """
    port = free_port()
    others = daemon.engine("cpu", cpu_affinity='"0,8000"') + daemon.engine(
        "files", limits=f"{{ nofile = {MOST_FILES + 1} }}"
    )
    daemon.configure(daemon.web_engine("web", port) + others)
    checked = daemon.cli("check")
    assert checked.returncode == 0
    assert "engines.cpu.cpu_affinity: names a CPU that this machine does not have: 8000" in checked.stdout
    daemon.start()
    [web] = daemon.until_ready("web")
    cpu = daemon.until_state("cpu", "failed")
    assert (cpu["substate"], cpu["restart_count"], cpu["pid"]) == ("preflight", 0, None)
    assert cpu["reason"] == "cpu_affinity names a CPU that sagectld cannot use here: 8000"
    assert cpu["diagnosis"] is not None
    assert cpu["diagnosis"]["remedy"].startswith("correct engines.cpu.cpu_affinity: ")
    started = daemon.cli("start", "files")
    assert started.returncode == 1
    assert f"limits.nofile asks for {MOST_FILES + 1}, and the kernel gives no process more" in started.stderr
    assert "lower engines.files.limits.nofile" in started.stderr

    daemon.configure(daemon.web_engine("web", port, limits=f"{{ nofile = {MOST_FILES + 1} }}") + others)
    said = daemon.cli("reload")
    assert "limits.nofile" in said.stdout + said.stderr
    assert daemon.show("web")["pid"] == web["pid"]
    assert get(port) == b"%d" % (web["pid"] or 0)


def test_a_transient_engine_has_limits_too(daemon: Daemon) -> None:
    """Scenario 19.3: an engine is defined on the command line with limits, and with wrong ones.

    Result: its process has them; the wrong ones are named with their keys.
    """
    daemon.configure("")
    daemon.start()
    words = ("engine", "start", "--engine-kind", "exec", "--name", "sleep", "-o", "limits.nofile=[32, 64]")
    words += ("-o", f"nice={NICE + 2}", "-o", f"cpu_affinity={CPUS[0]}")
    made = daemon.cli(*words, "--", "/bin/sleep", "1000")
    assert made.returncode == 0, made.stderr
    found = given(daemon.show("sleep")["pid"])
    assert (found["files"], found["nice"], found["cpus"]) == (("32", "64"), NICE + 2, CPUS[:1])
    wrong = daemon.cli(
        *("engine", "start", "--engine-kind", "exec", "-o", "limits.nofile=lots", "-o", "nice=77"),
        *("--", "/bin/sleep", "1000"),
    )
    assert wrong.returncode == 1
    assert 'limits.nofile: "lots" is not a number' in wrong.stderr
    assert "nice: must be at most 19, not 77" in wrong.stderr


def test_an_engine_that_the_kernel_kills_for_memory_says_so(
    daemon: Daemon, memory_group: MemoryGroup
) -> None:
    """Scenario 19.4: an engine grows past the limit of its memory control group.

    Result: failed (oom-kill); the reason names the process and what it held, the remedy what to do; the
    events and `status` say it too.
    """
    go = daemon.home / "go"
    daemon.configure(
        daemon.engine("hog", "hog.py", str(go), probe="{ notify = true }", restart='{ policy = "no" }')
    )
    daemon.start()
    [hog] = daemon.until_ready("hog")
    memory_group.add(hog["pid"] or 0)
    go.touch()
    ended = daemon.until_state("hog", "failed")
    assert ended["substate"] == "oom-kill"
    assert ended["last_exit"] == {"code": None, "signal": 9, "oom_kill": True}
    assert "by the kernel: out of memory" in ended["reason"]
    assert ended["diagnosis"] is not None
    assert "memory" in ended["diagnosis"]["remedy"]
    if log_is_readable():
        assert f"(process {hog['pid']} (python" in ended["reason"]
        assert "iB, the limit of its control group)" in ended["reason"]
    status = daemon.cli("status", "hog").stdout
    assert "oom-kill" in status
    assert "out of memory" in status
    assert "out of memory" in daemon.expect_event("exited", "hog")["text"]


@readable
def test_a_worker_that_the_kernel_killed_is_named_as_the_reason(
    daemon: Daemon, memory_group: MemoryGroup
) -> None:
    """Scenario 19.5: the kernel kills a worker of an engine for memory; the engine notices, reaps it, and
    ends with code 3, twice, since it is restarted.

    Result: oom-kill and not exit-code; the reason names the worker by its pid and what it held.
    """
    go = daemon.home / "go"
    daemon.configure(
        daemon.engine(
            "hog",
            *("hog.py", str(go), "--worker"),
            probe="{ notify = true }",
            restart="{ delay = 0, limit = 1 }",
        )
    )
    daemon.start()
    for _ in range(2):
        worker = int(daemon.mailbox.expect("grower"))
        daemon.until_ready("hog")
        memory_group.add(worker)
        go.touch()
        text = daemon.expect_event("exited", "hog")["text"]
        go.unlink()
        begin = "exited with code 3 after the kernel had killed a process of it: out of memory"
        assert text.startswith(f"{begin} (process {worker} (python")
    ended = daemon.until_state("hog", "failed")
    assert ended["substate"] == "start-limit"
    assert f"(process {worker} (python" in ended["reason"]
    assert ended["last_exit"] == {"code": 3, "signal": None, "oom_kill": True}
    assert "exit code 3 (out of memory)" in daemon.cli("status", "hog").stdout


def test_a_limit_that_nobody_can_hold_here_is_said(daemon: Daemon) -> None:
    """Scenario 19.6: an engine has `memory_max` and `cpu_weight`; `sagectl status`.

    Result: where the machine has the controllers, the engine's group holds both; where not, the engine runs
    all the same, an event names each key that nobody enforces, and the status says what tracks processes.
    """
    daemon.configure(daemon.web_engine("web", free_port(), memory_max='"1GiB"', cpu_weight=50))
    daemon.start()
    [web] = daemon.until_ready("web")
    tracking = daemon.client.status()["control_plane"]["process_tracking"]
    for key, controller, file, value in (
        ("memory_max", "memory", "memory.max", str(1 << 30)),
        ("cpu_weight", "cpu", "cpu.weight", "50"),
    ):
        if controller in tracking["controllers"]:
            group = groups.own_group(web["pid"] or 0, groups.mount() or Path())
            assert group is not None
            assert (group / file).read_text().strip() == value
        else:
            said = daemon.expect_event("not-enforced", "web")["text"]
            assert said == (
                f"{key} is not enforced: there is no control group with the controller {controller} here"
            )
