"""Scenario 23: a job's result is served when it is complete, and what serves already is left alone.

The job writes a text, the servers read texts out: kinds of a package of its own.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.harness import Daemon, free_port, kill


class Library:
    """A daemon with a job `write` that is to be read out as `poem`, and servers."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.ports: dict[str, int] = {}
        self._tables = "[defaults.reader]\nrestart = { limit = 3, delay = 0 }\n"
        self.draft = daemon.home / "draft"
        self.output = daemon.home / "models" / "poem"
        self.writer("write", self.output)

    def writer(self, name: str, output: Path) -> None:
        """A job, the result of which is to be read out as `poem`."""
        self._add(name, "writer", draft=str(self.draft), output=str(output), serve_as="poem")

    def _add(self, name: str, kind: str, **keys: Any) -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in {"kind": kind, **keys}.items()]
        self._tables += "\n".join([f"[engines.{name}]", *lines, ""])
        self.daemon.configure(self._tables)

    def reader(self, name: str, text: str, **keys: Any) -> None:
        """A server of the configuration, with a text of its own."""
        place = self.daemon.home / "models" / f"text-of-{name}"
        place.mkdir(parents=True)
        (place / "text").write_text(text)
        self.ports[name] = free_port()
        quick = {"autostart": True, "port": self.ports[name], **keys}
        self._add(name, "reader", model=str(place), **quick)

    def write(self, text: str, *words: str, job: str = "write") -> None:
        """The job, with this for a result."""
        self.draft.write_text(text)
        answer = self.daemon.cli("start", job, *words)
        assert answer.returncode == 0, answer.stderr

    def served(self, job: str = "write") -> dict[str, Any]:
        """What became of it, once that is decided."""

        def decided(engine: Any) -> bool:
            return engine["substate"] == "completed" and (engine["serving"] or {}).get("phase") != "pending"

        return dict(self.daemon.until(job, decided, "the result to be served or not")["serving"] or {})

    def read(self, engine: str, name: str) -> str:
        """What a server reads out, "" for a name that it does not know."""
        port = self.daemon.show(engine)["port"]
        connection = http.client.HTTPConnection("127.0.0.1", port or 0, timeout=20)
        connection.request("POST", "/read", json.dumps({"name": name}))
        text: str = json.loads(connection.getresponse().read())["text"]
        connection.close()
        return text

    def read_out_by_one_that_waits(self) -> Path:
        """A first result is served by `open`, which is then on its way up, and waits for `other`.

        That fails for lack of its text; returns where the text has to be.
        """
        daemon = self.daemon
        self.reader("other", "mine")
        self.reader("open", "mine", open=True, depends_on=["other"])
        daemon.start()
        daemon.until_ready("open")
        self.write("first")
        assert self.served()["phase"] == "served"
        text = daemon.home / "models" / "text-of-other" / "text"
        text.unlink()
        assert daemon.cli("stop", "open", "other").returncode == 0
        daemon.client.start("open")
        daemon.until("other", lambda engine: engine["state"] == "failed")
        daemon.until("open", lambda engine: engine["substate"] == "queued")
        return text

    def pid(self, engine: str) -> int:
        return self.daemon.show(engine)["pid"] or 0


@pytest.fixture
def library(new_daemon: Callable[..., Daemon], installed: Callable[[str], str]) -> Library:
    paths = (installed("reading"), os.environ.get("PYTHONPATH", ""))
    return Library(new_daemon(PYTHONPATH=os.pathsep.join(filter(None, paths))))


def test_a_running_engine_takes_the_result_in_and_gets_it_back_when_it_restarts(library: Library) -> None:
    """Scenario 23.1: two servers run, one of them closed. The job completes; the open server gets SIGKILL,
    later together with the daemon; the job is done again; the user takes the text out.

    Result: the open one reads it out in the same process, `serves` and the job say so; the next process has
    it again; so has the one that the next daemon starts; then it is the new text, in the same process.
    """
    library.reader("closed", "mine", open=False)
    library.reader("open", "mine", open=True)
    daemon = library.daemon
    daemon.start()
    daemon.until_ready("closed", "open")
    pid = library.pid("open")
    library.write("first")
    assert library.served() == {
        **{"name": "poem", "model": str(library.output), "phase": "served", "engine": "open"},
        "text": "served as poem by the engine open",
    }
    assert "served as poem by the engine open" in daemon.cli("list").stdout
    assert library.read("open", "poem") == "first"
    assert (library.pid("open"), daemon.show("open")["serves"]) == (pid, ["open", "poem"])
    assert library.read("closed", "poem") == ""

    kill(pid)
    daemon.until("open", lambda engine: "poem" in engine["serves"] and engine["pid"] != pid)
    assert library.read("open", "poem") == "first"

    daemon.kill()
    kill(library_pid := daemon.tree("open")[0])
    daemon.start()
    daemon.until("open", lambda engine: "poem" in engine["serves"] and engine["pid"] != library_pid)
    assert library.read("open", "poem") == "first"

    pid = library.pid("open")
    library.write("second", "--again")
    assert library.served()["phase"] == "served"
    assert (library.read("open", "poem"), library.pid("open")) == ("second", pid)
    assert len(daemon.client.engines()) == 3

    said = daemon.cli("engine", "unload", "open", "poem")
    assert (said.returncode, said.stdout) == (0, "open: serves open\n")
    daemon.until("open", lambda engine: library.read("open", "poem") == "", "the text to be gone")
    refused = daemon.cli("engine", "unload", "open", "poem")
    assert refused.returncode == 1
    assert "open has taken in no model 'poem'" in refused.stderr


def test_a_result_that_no_engine_takes_in_gets_one_of_its_own(library: Library) -> None:
    """Scenario 23.2: the only server is closed. The job completes, and is done again.

    Result: an engine named as the result is to be called starts with it, ready before the job says so; it is
    restarted for the second result. The closed server notices nothing.
    """
    library.reader("closed", "mine", open=False)
    daemon = library.daemon
    daemon.start()
    daemon.until_ready("closed")
    pid = library.pid("closed")
    library.write("first")
    assert library.served()["engine"] == "poem"
    made = daemon.show("poem")
    assert (made["substate"], made["transient"], made["autostart"]) == ("ready", True, True)
    assert (made["engine_kind"], made["model_id"]) == ("reader", str(library.output))
    assert library.read("poem", "poem") == "first"
    library.write("second", "--again")
    daemon.until("poem", lambda engine: engine["substate"] == "ready" and engine["pid"] != made["pid"])
    assert library.served()["phase"] == "served"
    assert library.read("poem", "poem") == "second"
    assert library.pid("closed") == pid
    said = [event["text"] for event in daemon.client.events(engine="write") if event["kind"] == "serving"]
    assert "the engine closed does not take it in: it is closed" in said


def test_a_result_that_cannot_be_served_changes_nothing_that_is(library: Library) -> None:
    """Scenario 23.3: a server reads out a result. The next one is illegible, the one after that is empty.

    Result: the job is completed and says why it is not served; the server has the same process, and goes on
    with the earlier result.
    """
    library.reader("open", "mine", open=True)
    daemon = library.daemon
    daemon.start()
    daemon.until_ready("open")
    library.write("first")
    assert library.served()["phase"] == "served"
    pid = library.pid("open")
    for text, why in (
        ("illegible", "POST /load answered 500"),
        ("", 'POST /read answered 200, but text is ""'),
    ):
        library.write(text, "--again")
        failed = library.served()
        assert failed["phase"] == "failed"
        assert failed["text"].startswith(f"not served as poem: the engine open does not take it in: {why}")
        shown = daemon.show("write")
        assert (shown["state"], shown["substate"]) == ("inactive", "completed")
        assert shown["reason"] == failed["text"]
        assert library.pid("open") == pid
        assert (library.read("open", "poem"), library.read("open", "open")) == ("first", "mine")
        assert library.read("open", "poem.1") == ""
    assert len(daemon.client.engines()) == 2


def test_an_engine_of_its_own_that_does_not_start_is_told_of(library: Library) -> None:
    """Scenario 23.4: no server runs, and the result is empty, so that a server of its own ends at once.

    Result: the job is completed, and says that its engine failed, and why.
    """
    daemon = library.daemon
    daemon.start()
    library.write("")
    failed = library.served()
    assert (failed["phase"], failed["engine"]) == ("failed", "poem")
    assert failed["text"].startswith("not served as poem: its engine failed: ")
    assert failed["text"] in " ".join(daemon.cli("status", "write").stdout.split())


def test_the_name_of_an_engine_that_serves_something_else_is_not_taken(library: Library) -> None:
    """Scenario 23.5: there is an engine `poem` with a text of its own, and one that could take the result in.

    Result: an event says so when the job begins to run; at its end the job says so; both go on as they were.
    """
    library.reader("poem", "mine")
    library.reader("open", "mine", open=True)
    daemon = library.daemon
    daemon.start()
    daemon.until_ready("poem", "open")
    pids = library.pid("poem"), library.pid("open")
    library.write("first")
    failed = library.served()
    assert failed["phase"] == "failed"
    assert "there is an engine poem already, which serves" in failed["text"]
    warned = [event for event in daemon.client.events(engine="write") if event["kind"] == "job-warning"]
    assert "will not be served as poem" in warned[0]["text"]
    assert (library.pid("poem"), library.pid("open")) == pids
    assert library.read("poem", "poem") == "mine"


def test_an_engine_that_is_just_restarting_gets_the_newer_result(library: Library) -> None:
    """Scenario 23.6: a server reads out a result, and is on its way up when the next one is there: it waits
    for another engine that does not come up by itself.

    Result: the job says whom it waits for; no engine of its own is made; once the server is ready, it reads
    out the newer one.
    """
    daemon = library.daemon
    text = library.read_out_by_one_that_waits()
    library.write("second", "--again")
    daemon.until("write", lambda engine: "when the engine open is ready" in engine["reason"])
    text.write_text("mine")
    assert daemon.cli("start", "other").returncode == 0
    assert library.served()["engine"] == "open"
    assert library.read("open", "poem") == "second"
    assert len(daemon.client.engines()) == 3


def test_an_engine_that_is_starting_and_could_take_it_in_is_waited_for(library: Library) -> None:
    """The result is there while a server that could read it out is loading; another one is closed.

    Result: no engine of its own is made; the job says whom it waits for, and that one reads it out. When the
    user takes the text out, the job says that too.
    """
    go = library.daemon.home / "go"
    library.reader("closed", "mine", after=str(go))
    library.reader("open", "mine", open=True, after=str(go))
    daemon = library.daemon
    daemon.start()
    daemon.until("open", lambda engine: engine["substate"] == "starting")
    library.write("first")
    daemon.until("write", lambda engine: "when the engine open is ready" in engine["reason"])
    go.touch()
    assert library.served()["engine"] == "open"
    assert library.read("open", "poem") == "first"
    assert len(daemon.client.engines()) == 3
    assert daemon.cli("engine", "unload", "open").returncode == 0
    daemon.until("write", lambda engine: (engine["serving"] or {}).get("phase") == "ended")
    assert "taken out of open by the user" in daemon.show("write")["reason"]


def test_the_next_daemon_goes_on_with_the_serving(library: Library) -> None:
    """Scenario 23.7: SIGKILL of the daemon the moment the job completed.

    Result: the next daemon has the result served, once.
    """
    daemon = library.daemon
    daemon.start()
    library.write("first")
    daemon.until("write", lambda engine: engine["substate"] == "completed")
    daemon.kill()
    daemon.start()
    assert library.served()["phase"] == "served"
    assert library.read("poem", "poem") == "first"
    assert len(daemon.tree("poem")) == 1


def test_two_results_that_are_to_have_one_name_at_once(library: Library) -> None:
    """Scenario 23.8: a server is taking in a result when another job completes, whose result is to be read
    out under the same name.

    Result: the first one is read out; the second job says that it is not served, and why.
    """
    daemon = library.daemon
    library.reader("open", "mine", open=True)
    other = daemon.home / "models" / "other"
    library.writer("second", other)
    daemon.start()
    daemon.until_ready("open")
    library.write("long")
    daemon.until_state("write", "completed")
    library.write("short", job="second")
    daemon.until_state("second", "completed")
    (library.output / "read").touch()
    assert library.served()["phase"] == "served"
    failed = library.served("second")
    assert failed["text"] == f"not served as poem: the engine open serves {library.output} under that name"
    assert library.read("open", "poem") == "long"


def test_an_engine_that_is_killed_while_it_takes_a_result_in(library: Library) -> None:
    """Scenario 23.9: a server that reads out a result is taking in the next one when it gets SIGKILL.

    Result: the one that comes up in its place reads the next one out, and the job says so.
    """
    daemon = library.daemon
    library.reader("open", "mine", open=True)
    daemon.start()
    daemon.until_ready("open")
    library.write("first")
    assert library.served()["phase"] == "served"
    library.write("long", "--again")
    daemon.until_state("write", "completed")
    pid = library.pid("open")
    kill(pid)
    daemon.until("open", lambda engine: engine["pid"] not in (None, pid))
    (library.output / "read").touch()
    assert library.served()["text"] == "served as poem by the engine open"
    assert library.read("open", "poem") == "long"
    assert len(daemon.client.engines()) == 2


def test_a_name_that_is_taken_while_a_result_waits(library: Library) -> None:
    """Scenario 23.10: a result waits for the server that had the earlier one; meanwhile an engine of its
    name, with a text of its own, is put into the configuration.

    Result: the job says so; that engine goes on in the same process.
    """
    daemon = library.daemon
    library.read_out_by_one_that_waits()
    library.write("second", "--again")
    daemon.until("write", lambda engine: "when the engine open is ready" in engine["reason"])
    library.reader("poem", "mine")
    assert daemon.cli("reload").returncode == 0
    pid = daemon.until_ready("poem")[0]["pid"]
    assert daemon.cli("stop", "open").returncode == 0
    assert "there is an engine poem already" in library.served()["text"]
    assert daemon.show("poem")["pid"] == pid


def test_a_result_that_its_server_lost_is_told_of(library: Library) -> None:
    """Scenario 23.11: a server reads out a result, the directory of which is removed, and gets SIGKILL; later
    the directory is there again, and it gets SIGKILL again.

    Result: the job says that its result is not served any more, and then that it is.
    """
    daemon = library.daemon
    library.reader("open", "mine", open=True)
    daemon.start()
    daemon.until_ready("open")
    library.write("first")
    assert library.served()["phase"] == "served"
    library.output.rename(daemon.home / "elsewhere")
    kill(library.pid("open"))
    lost = daemon.until("write", lambda engine: (engine["serving"] or {}).get("phase") == "failed")
    assert lost["reason"].startswith("not served as poem any more: the engine open was restarted, and does")
    (daemon.home / "elsewhere").rename(library.output)
    kill(library.pid("open"))
    daemon.until("write", lambda engine: engine["reason"] == "served as poem by the engine open")
    assert library.read("open", "poem") == "first"
