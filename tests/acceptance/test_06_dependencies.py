"""Scenario 6: dependencies order starts and pull them in; a stop never cascades."""

from __future__ import annotations

from tests.acceptance.harness import Daemon, free_port


def test_what_an_engine_depends_on_is_started_and_ready_before_it(daemon: Daemon) -> None:
    """Scenario 6.1: front depends on middle, middle on base, none starts by itself; base loads slowly.
    `sagectl start front`.

    Result: all three are started; front waits as queued and says for whom; each starts after the one that
    it needs was ready. Stopping base leaves the others running.
    """
    go = daemon.home / "go"
    daemon.configure(
        daemon.web_engine("base", free_port(), "--late", str(go), autostart=False)
        + daemon.web_engine("middle", free_port(), autostart=False, depends_on=["base"])
        + daemon.web_engine("front", free_port(), autostart=False, depends_on=["middle"])
    )
    daemon.start()
    daemon.client.start("front")
    daemon.mailbox.expect("loading")
    middle = daemon.show("middle")
    assert (middle["state"], middle["substate"], middle["waiting_for"]) == ("activating", "queued", ["base"])
    assert "waiting for base (activating starting)" in middle["reason"]
    assert daemon.show("front")["waiting_for"] == ["middle"]
    assert "waiting for" in daemon.cli("explain", "front").stdout
    go.touch()
    daemon.until_ready("front")
    order = [(e["engine"], e["kind"]) for e in daemon.client.events() if e["kind"] in ("started", "ready")]
    assert order == [(name, kind) for name in ("base", "middle", "front") for kind in ("started", "ready")]

    assert daemon.cli("stop", "base").returncode == 0
    assert daemon.show("middle")["state"] == daemon.show("front")["state"] == "active"


def _broken_base(daemon: Daemon) -> str:
    """Configure front, which needs base, which crashes; returns the TOML of front alone."""
    keys = {"probe": "{ tcp = true }", "restart": '{ policy = "no" }', "port": free_port()}
    front = daemon.web_engine("front", free_port(), autostart=False, depends_on=["base"])
    daemon.configure(front + daemon.engine("base", "crash.py", "1", "no luck", autostart=False, **keys))
    daemon.start()
    return front


def test_start_says_that_a_dependency_failed(daemon: Daemon) -> None:
    """Scenario 6.2: base crashes at its start and is not restarted. `sagectl start front`.

    Result: exit 1 when base has failed, not after the time that it may wait; it names base.
    """
    _broken_base(daemon)
    started = daemon.cli("start", "front", "--timeout", "5")
    assert started.returncode == 1
    assert "base" in started.stderr
    assert "still activating" not in started.stderr


def test_an_engine_whose_dependency_failed_waits_until_that_is_mended(daemon: Daemon) -> None:
    """Scenario 6.3: as 6.2; then base's table is corrected, reloaded and started.

    Result: front runs nothing and says that base failed; it starts by itself when base is ready.
    """
    front = _broken_base(daemon)
    [waiting] = daemon.client.start("front", wait=20)
    assert waiting["substate"] == "queued"
    assert "waiting for base (failed exit-code)" in waiting["reason"]
    assert daemon.tree("front") == []
    daemon.configure(front + daemon.web_engine("base", free_port(), autostart=False))
    daemon.client.reload()
    assert daemon.cli("start", "base").returncode == 0
    daemon.until_ready("front")


def test_dependencies_hold_at_the_daemons_start_too(daemon: Daemon) -> None:
    """Scenario 6.4: front has autostart and depends on base, which has not. The daemon starts.

    Result: base is pulled in and is ready before front starts. A crash of front does not wait for base.
    """
    daemon.configure(
        daemon.web_engine("a-front", free_port(), depends_on=["z-base"])
        + daemon.web_engine("z-base", free_port(), autostart=False)
    )
    daemon.start()
    daemon.until_ready("a-front")
    kinds = [(e["engine"], e["kind"]) for e in daemon.client.events() if e["kind"] in ("started", "ready")]
    assert kinds == [(name, kind) for name in ("z-base", "a-front") for kind in ("started", "ready")]


def test_a_group_of_replicas_is_started_and_stopped_as_one(daemon: Daemon) -> None:
    """Scenario 6.5: an engine has replicas = 2; front depends on the group.

    Result: web@1 and web@2 on consecutive ports; front starts after both are ready; `stop web` stops both
    and leaves front running; a reload to one replica removes the second.
    """
    port = free_port(2)
    go = daemon.home / "go"

    def replicas(count: int) -> str:
        return daemon.web_engine("web", port, "--late", str(go), replicas=count, autostart=False)

    front = daemon.web_engine("front", free_port(), depends_on=["web"], autostart=False)
    daemon.configure(replicas(2) + front)
    daemon.start()
    daemon.client.start("front")
    daemon.mailbox.expect("loading")
    daemon.mailbox.expect("loading")
    assert daemon.show("front")["substate"] == "queued"
    go.touch()
    daemon.until_ready("web@1", "web@2", "front")
    assert [daemon.show(f"web@{n}")["port"] for n in (1, 2)] == [port, port + 1]
    assert daemon.cli("stop", "web").returncode == 0
    assert [daemon.show(f"web@{n}")["state"] for n in (1, 2)] == ["inactive", "inactive"]
    assert daemon.show("front")["state"] == "active"
    daemon.configure(replicas(1) + front)
    assert daemon.cli("reload").returncode == 0
    assert daemon.cli("status", "web@2").returncode == 4
