"""Scenario 7: a reload applies what changed and nothing else; a bad configuration changes nothing."""

from __future__ import annotations

import os
import signal

from tests.acceptance.harness import Daemon, await_end, free_port, get


def test_reload_adds_removes_changes_in_place_and_restarts(daemon: Daemon) -> None:
    """Scenario 7.1: of five engines one is removed, one is new, one gets another priority, one another
    variable in its environment, one stays.

    Result: --dry-run prints this and does nothing; the reload prints it too; the removed one is gone with
    its process, the new one runs, the one changed in place keeps its pid, the restarted one has a new pid
    under its old id and port, the last is untouched.
    """
    ports = {name: free_port() for name in ("gone", "new", "place", "launch", "same")}

    def engine(name: str, **keys: object) -> str:
        return daemon.web_engine(name, ports[name], **keys)

    daemon.configure("".join(engine(name) for name in ("gone", "place", "launch", "same")))
    daemon.start()
    before = {e["name"]: e for e in daemon.until_ready("gone", "place", "launch", "same")}
    daemon.configure(
        engine("new")
        + engine("place", priority='"high"')
        + engine("launch", env={"EXTRA": "1"})
        + engine("same")
    )
    dry = daemon.cli("reload", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "Nothing was changed" in dry.stdout
    assert [e["pid"] for e in daemon.client.engines()] == [before[n]["pid"] for n in sorted(before)]

    plan = daemon.json("reload")
    assert (plan["added"], plan["removed"], plan["unchanged"]) == (["new"], ["gone"], 1)
    assert plan["in_place"] == [{"name": "place", "keys": ["priority"]}]
    assert plan["restarts"] == [{"name": "launch", "keys": ["env.EXTRA"]}]
    daemon.until_ready("new")
    daemon.expect_event("removed", "gone")
    after = {
        "launch": daemon.until(
            "launch", lambda e: e["substate"] == "ready" and e["pid"] != before["launch"]["pid"]
        ),
        "place": daemon.show("place"),
        "same": daemon.show("same"),
    }
    assert after["place"]["priority"] == "high"
    assert [after[name]["pid"] for name in ("place", "same")] == [
        before[name]["pid"] for name in ("place", "same")
    ]
    for name in after:
        assert after[name]["engine_id"] == before[name]["engine_id"]
        assert after[name]["restart_count"] == 0
    assert after["launch"]["port"] == before["launch"]["port"]
    await_end(before["gone"]["pid"] or 0)
    assert daemon.tree("gone") == []
    assert daemon.cli("status", "gone").returncode == 4
    assert "Nothing changes (4 unchanged)" in daemon.cli("reload").stdout


def test_a_bad_configuration_changes_nothing_and_all_its_errors_are_named(daemon: Daemon) -> None:
    """Scenario 7.2: the new file has an unknown key, a wrong type, a port used twice and a cycle; another
    in engines.d declares the same engine again.

    Result: `check` and `reload` exit 1 and name file, line and key of each and the remedy; the engines
    run on as they were, and so after SIGHUP, of which an event tells.
    """
    port = daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    good = (daemon.etc / "sagectl.toml").read_text()
    main = daemon.configure(
        f"{good}autostrat = true\n"
        '[engines.a]\nkind = "exec"\ncommand = ["true"]\nautostart = "yes"\n'
        f'[engines.b]\nkind = "exec"\ncommand = ["true"]\nport = {port}\n'
        '[engines.c]\nkind = "exec"\ncommand = ["true"]\ndepends_on = ["d"]\n'
        '[engines.d]\nkind = "exec"\ncommand = ["true"]\ndepends_on = ["c"]\n'
    )
    other = daemon.configure('[engines.web]\nkind = "exec"\ncommand = ["true"]\n', "engines.d/again.toml")
    lines = main.read_text().splitlines()

    def line(text: str) -> int:
        return next(number for number, found in enumerate(lines, 1) if found.startswith(text))

    wrong_type = line('autostart = "yes"')
    for verb in ("check", "reload"):
        answer = daemon.cli(verb)
        assert answer.returncode == 1
        said = answer.stdout + answer.stderr
        assert f"{main}:{line('autostrat')}: engines.web.autostrat" in said
        assert "autostart" in said.partition("engines.web.autostrat")[2].splitlines()[0]
        assert f"{main}:{wrong_type}: engines.a.autostart" in said
        assert str(port) in said
        assert str(other) in said
    os.kill(daemon.process.pid if daemon.process else 0, signal.SIGHUP)
    daemon.expect_event("reload-refused")
    after = daemon.show("web")
    assert (after["pid"], after["state"]) == (before["pid"], "active")
    assert [e["name"] for e in daemon.client.engines()] == ["web"]
    assert get(port) == b"%d" % (before["pid"] or 0)
    other.unlink()
    daemon.configure(good)
    assert daemon.cli("check").returncode == 0
    assert daemon.cli("reload").returncode == 0


def test_a_changed_launch_that_would_not_start_leaves_the_old_one_running(daemon: Daemon) -> None:
    """Scenario 7.3: the engine's command is changed to a program that does not exist. Reload.

    Result: an event says why it would not start; the old process runs on, marked needs_restart; when the
    table is corrected, the next reload restarts it.
    """
    port = daemon.web()
    good = (daemon.etc / "sagectl.toml").read_text()
    daemon.start()
    [before] = daemon.until_ready("web")
    bad = '[engines.web]\nkind = "exec"\ncommand = ["/nowhere/server", "{port}"]\n'
    daemon.configure(f"{bad}port = {port}\n")
    assert daemon.cli("reload").returncode == 0
    event = daemon.expect_event("restart-refused", "web")
    assert "/nowhere/server" in event["text"]
    assert "runs on as it was" in event["text"]
    now = daemon.show("web")
    assert (now["pid"], now["state"], now["needs_restart"]) == (before["pid"], "active", True)
    assert get(port) == b"%d" % (before["pid"] or 0)
    daemon.configure(good + "labels = { a = 'b' }\n")
    daemon.client.reload()
    after = daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"])
    assert (after["needs_restart"], after["engine_id"]) == (False, before["engine_id"])


def test_sighup_reloads(daemon: Daemon) -> None:
    """Scenario 7.4: an engine is added, the daemon gets SIGHUP.

    Result: it runs.
    """
    daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    daemon.configure(daemon.web_engine("more", free_port()), "engines.d/more.toml")
    os.kill(daemon.process.pid if daemon.process else 0, signal.SIGHUP)
    daemon.expect_event("reloaded")
    daemon.until_ready("more")
    assert daemon.show("web")["pid"] == before["pid"]


def test_no_restart_marks_what_needs_one(daemon: Daemon) -> None:
    """Scenario 7.5: a launch changes; `reload --no-restart`; the daemon gets SIGKILL; then a restart.

    Result: needs_restart is true with the old process and survives the daemon; `sagectl restart` brings
    the new declaration and clears it.
    """
    port = daemon.web()
    daemon.start()
    [before] = daemon.until_ready("web")
    daemon.configure(daemon.web_engine("web", port, env={"EXTRA": "1"}))
    plan = daemon.json("reload", "--no-restart")
    assert plan["needs_restart"] == [{"name": "web", "keys": ["env.EXTRA"]}]
    assert (daemon.show("web")["pid"], daemon.show("web")["needs_restart"]) == (before["pid"], True)
    daemon.kill()
    daemon.start()
    assert (daemon.show("web")["pid"], daemon.show("web")["needs_restart"]) == (before["pid"], True)
    assert daemon.cli("restart", "web").returncode == 0
    after = daemon.show("web")
    assert (after["needs_restart"], after["state"], after["restart_count"]) == (False, "active", 0)
    with open(f"/proc/{after['pid']}/environ", "rb") as environ:
        assert b"EXTRA=1" in environ.read().split(b"\0")


def test_a_configuration_changed_while_there_was_no_daemon_restarts_nothing(daemon: Daemon) -> None:
    """Scenario 7.6: the daemon gets SIGKILL, a launch changes, another engine's table is removed and one
    is new; the next daemon starts.

    Result: the first runs on as needs_restart, the second is stopped, the third runs.
    """
    port, gone = free_port(), daemon.web_engine("gone", free_port())
    daemon.configure(daemon.web_engine("web", port) + gone)
    daemon.start()
    before = {e["name"]: e for e in daemon.until_ready("web", "gone")}
    daemon.kill()
    daemon.configure(
        daemon.web_engine("web", port, env={"EXTRA": "1"}) + daemon.web_engine("new", free_port())
    )
    daemon.start()
    daemon.until_ready("new")
    now = daemon.show("web")
    assert (now["pid"], now["needs_restart"]) == (before["web"]["pid"], True)
    await_end(before["gone"]["pid"] or 0)


def test_a_broken_configuration_does_not_hurt_engines_that_run(daemon: Daemon) -> None:
    """Scenario 7.7: the daemon gets SIGKILL and the configuration is broken before the next one starts.

    Result: the next daemon runs, adopts the engine, reports the mistake in `status` and lets the engine
    be stopped; a reload of a mended file works.
    """
    daemon.web()
    good = (daemon.etc / "sagectl.toml").read_text()
    daemon.start()
    [before] = daemon.until_ready("web")
    daemon.kill()
    daemon.configure(good + "autostrat = true\n")
    daemon.start()
    assert daemon.show("web")["pid"] == before["pid"]
    assert "autostrat" in daemon.cli("status").stdout
    daemon.configure(good)
    assert daemon.cli("reload").returncode == 0
    assert daemon.show("web")["pid"] == before["pid"]
    assert "autostrat" not in daemon.cli("status").stdout
    assert daemon.cli("stop", "web").returncode == 0


def test_enable_and_disable_override_the_configuration(daemon: Daemon) -> None:
    """Scenario 7.8: autostart is false; `enable`; the daemon is ended in order and started. `disable`; again.

    Result: `cat` names the override as the origin; autostart holds it after a reload and a restart of the
    daemon; neither verb starts or stops anything by itself.
    """
    daemon.web(autostart=False)
    daemon.start()
    assert daemon.cli("enable", "web").returncode == 0
    assert daemon.show("web")["state"] == "inactive"
    shown = daemon.json("cat", "web")
    assert "sagectl enable" in str(shown["autostart"])
    assert "sagectl enable" in daemon.cli("cat", "web").stdout
    assert daemon.cli("reload").returncode == 0
    assert daemon.show("web")["autostart"] is True
    assert daemon.terminate() == 0
    daemon.start()
    assert daemon.show("web")["autostart"] is True
    assert daemon.cli("disable", "web").returncode == 0
    assert "sagectl disable" in str(daemon.json("cat", "web")["autostart"])
    assert daemon.terminate() == 0
    daemon.start()
    assert daemon.show("web")["autostart"] is False
