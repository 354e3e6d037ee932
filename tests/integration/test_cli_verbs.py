"""The verbs against a daemon of paper: what they print, send and exit with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagectl.cli import main
from tests.integration.cli_daemon import FAILED, NOBODY, READY, STOPPED, FakeDaemon, engine


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    engines = [
        engine("chat", **READY, labels={"team": "nlp"}, serves=["chat", "sage-default"]),
        engine("embed", **FAILED),
        engine("rerank@1", group="rerank"),
        engine("rerank@2", group="rerank"),
    ]
    daemon = FakeDaemon(tmp_path / "s", engines)
    yield daemon
    daemon.close()


@pytest.fixture
def cli(daemon: FakeDaemon) -> Callable[..., int]:
    return lambda *words: main.run(["--socket", daemon.path, *words])


Cli = Callable[..., int]
Out = pytest.CaptureFixture[str]


def test_list_shows_an_engine_a_line(cli: Cli, capsys: Out) -> None:
    assert cli("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "MODEL", "STATE", "UP", "ADDRESS", "PID", "REASON"]
    assert lines[1].split() == [
        *("chat", "llm", "Qwen/Qwen2.5-0.5B-Instruct", "active", "(ready)"),
        *("3h", "12m", "127.0.0.1:8001", "4242"),
    ]
    assert lines[2].endswith("exited with code 1 while starting")
    assert len(lines) == 5


def test_ps_is_list(cli: Cli, capsys: Out) -> None:
    assert cli("ps") == 0
    assert capsys.readouterr().out.startswith("NAME")


@pytest.mark.parametrize("words", [("--json", "list"), ("list", "--json"), ("engine", "list", "--json")])
def test_json_has_the_apis_own_fields_wherever_the_flag_stands(
    cli: Cli, daemon: FakeDaemon, capsys: Out, words: tuple[str, ...]
) -> None:
    assert cli(*words) == 0
    assert json.loads(capsys.readouterr().out) == {"engines": list(daemon.engines.values())}


def test_status_without_a_name_is_the_overview(cli: Cli, capsys: Out) -> None:
    assert cli("status") == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"sagectld 0.1.0, pid {NOBODY}, up 1h 6m, 4 engines: 1 active, 1 failed, 2 inactive\n"
    )
    assert "embed" in out


def test_the_overview_tells_what_is_wrong_with_the_daemon(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    plane = {
        "version": "0.1.0",
        "pid": 1,
        "uptime_seconds": 5.0,
        "config_errors": ["a.toml:3: engines.x.port: is no number"],
        "warnings": ["a.toml:9: old"],
        "broken_plugins": [{"name": "llm", "distribution": "sage-x", "reason": "ImportError: no torch"}],
        "trouble": None,
    }
    daemon.answers["status"] = 200, {"control_plane": plane, "gpu": {}, "engines": [], "reservations": []}
    assert cli("status") == 0
    assert capsys.readouterr().out.splitlines() == [
        "sagectld 0.1.0, pid 1, up 5s",
        "error: a.toml:3: engines.x.port: is no number",
        "warning: a.toml:9: old",
        "broken plugin llm of sage-x: ImportError: no torch",
        "",
        "No engines. Add one to the configuration, or try `sagectl run MODEL`.",
    ]


def test_status_of_an_active_engine_exits_0_and_shows_its_log(
    cli: Cli, daemon: FakeDaemon, capsys: Out
) -> None:
    daemon.logs["chat"] = b"loading\n 10%\r100%\nready\n"
    assert cli("status", "chat") == 0
    out = capsys.readouterr().out
    assert "● chat - llm Qwen/Qwen2.5-0.5B-Instruct\n" in out
    assert "  State: active (ready) since " in out
    assert "Address: http://127.0.0.1:8001\n" in out
    assert "  │ loading\n  │ 100%\n  │ ready\n" in out


def test_status_of_a_failed_engine_exits_3_with_reason_and_remedy(cli: Cli, capsys: Out) -> None:
    assert cli("status", "embed") == 3
    out = capsys.readouterr().out
    assert "    What to do: Check the model's name\n" in out
    assert "     Last exit: exit code 1\n" in out


def test_status_of_an_unknown_engine_exits_4(cli: Cli, capsys: Out) -> None:
    assert cli("status", "nobody") == 4
    assert capsys.readouterr().err == "sagectl: there is no engine 'nobody'. See `sagectl list`.\n"


def test_status_of_several_exits_with_the_worst(cli: Cli, capsys: Out) -> None:
    assert cli("status", "chat", "embed") == 3
    assert cli("status", "chat", "nobody", "embed") == 4
    assert capsys.readouterr().out.count("● embed") == 2


def test_status_of_a_group_shows_its_replicas(cli: Cli, capsys: Out) -> None:
    assert cli("status", "rerank") == 3
    assert capsys.readouterr().out.count("● rerank@") == 2


def test_no_daemon_exits_5_and_says_how_to_start_one(tmp_path: Path, capsys: Out) -> None:
    assert main.run(["--socket", str(tmp_path / "none"), "status"]) == 5
    assert "`sagectld`" in capsys.readouterr().err


def test_errors_are_json_on_stderr_with_json(cli: Cli, capsys: Out) -> None:
    assert cli("show", "nobody", "--json") == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    error = json.loads(captured.err)
    assert error["code"] == "unknown_engine"
    assert error["remedy"] == "see `sagectl list`"


def test_a_usage_error_is_json_with_json(cli: Cli, capsys: Out) -> None:
    assert cli("start", "--json") == 2
    assert json.loads(capsys.readouterr().err)["code"] == "usage"


def test_json_after_the_dashes_belongs_to_the_command(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    assert cli("run", "--detach", "--engine-kind", "exec", "--", "server", "--json") == 0
    assert capsys.readouterr().out == "engine-0a1b2c3d\n"
    assert daemon.bodies == [{"kind": "exec", "command": ["server", "--json"]}]


def test_an_unknown_verb_is_answered_with_the_nearest(cli: Cli, capsys: Out) -> None:
    assert cli("satus") == 2
    assert "There is no command 'satus'. Did you mean 'status'?" in capsys.readouterr().err


def test_every_mistake_of_a_definition_is_listed(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    problems = [
        {"key": "port", "message": "is no number", "remedy": "write 8001", "file": None, "line": 0},
        {"key": "prot", "message": "is unknown", "remedy": "", "file": "/etc/x.toml", "line": 7},
    ]
    daemon.answers["reload"] = 422, {"code": "invalid", "detail": "2 errors", "errors": problems}
    assert cli("reload") == 1
    expected = "port: is no number (write 8001)\n/etc/x.toml:7: prot: is unknown\n"
    assert capsys.readouterr().err == expected
    assert cli("reload", "--json") == 1
    assert len(json.loads(capsys.readouterr().err)["errors"]) == 2


def test_reload_prints_what_changes(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    plan: dict[str, Any] = {
        "added": ["new"],
        "removed": ["old"],
        "in_place": [{"name": "chat", "keys": ["priority"]}],
        "restarts": [{"name": "embed", "keys": ["port", "env"]}],
        "needs_restart": [],
        "unchanged": 3,
        "warnings": [],
    }
    daemon.answers["reload"] = 200, plan
    assert cli("reload", "--dry-run", "--no-restart") == 0
    assert capsys.readouterr().out.splitlines() == [
        "new               new",
        "removed           old    drains and stops",
        "changed in place  chat   priority",
        "restarts          embed  port, env",
        "3 unchanged",
        "Nothing was changed (--dry-run).",
    ]
    assert daemon.requests[-1] == "POST reload?dry_run=1&restart=0"


def test_a_reload_that_changes_nothing_says_so(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    empty: dict[str, Any] = {key: [] for key in ("added", "removed", "in_place", "restarts", "needs_restart")}
    daemon.answers["reload"] = 200, {**empty, "unchanged": 1, "warnings": []}
    assert cli("reload") == 0
    assert capsys.readouterr().out == "Nothing changes (1 unchanged).\n"


def test_show_prints_every_property(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    assert cli("show", "chat") == 0
    out = capsys.readouterr().out
    assert 'labels: {"team": "nlp"}\n' in out
    assert len(out.splitlines()) == len(daemon.engines["chat"])


def test_cat_prints_a_definition_and_where_each_value_came_from(
    cli: Cli, daemon: FakeDaemon, capsys: Out
) -> None:
    daemon.answers["engines/id-chat/definition"] = (
        200,
        {
            "kind": {"value": "llm", "origin": "/etc/sagectl/sagectl.toml:3"},
            "port": {"value": 8001, "origin": "default"},
            "env": {"value": {"A": "b"}, "origin": "default"},
            "user": {"value": None, "origin": "default"},
        },
    )
    assert cli("cat", "chat") == 0
    assert capsys.readouterr().out.splitlines() == [
        "[engines.chat]",
        'kind = "llm"       # /etc/sagectl/sagectl.toml:3',
        "port = 8001        # default",
        'env = { A = "b" }  # default',
        "# user is not set  # default",
    ]


def test_explain_tells_decision_reason_figures_and_history(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.answers["engines/id-embed/explain"] = (
        200,
        {
            "decision": "failed",
            "reason": "exited with code 1",
            "waiting_for": [],
            "remedy": "Check the model's name",
            "restarts": {
                **{"policy": "on-failure", "count": 5, "consecutive_failures": 5, "within_window": 5},
                **{"never_ready_in_a_row": 5, "limit": "5 restarts within 600 s", "delay_seconds": 1.0},
                **{"max_delay_seconds": 300.0, "needs_restart": False},
            },
            "command": ["transformers", "serve", "a b"],
            "notes": ["threads: 2"],
            "history": [
                {"id": 1, "at": "2026-01-05T12:00:00Z", "kind": "exited", "level": "error", "text": "x"}
            ],
        },
    )
    assert cli("explain", "embed") == 0
    out = capsys.readouterr().out
    assert out.startswith("embed: failed: exited with code 1\n")
    assert "What to do: Check the model's name\n" in out
    assert "5 of at most 5 restarts within 600 s" in out
    assert "Command: transformers serve 'a b'\n" in out
    assert "Note: threads: 2\n" in out


def test_events_leave_out_mere_changes_of_state(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.happen("chat", "started by the user")
    daemon.happen("chat", "", level="debug")
    daemon.happen("embed", "exited with code 1", level="error")
    assert cli("events") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  chat   started by the user")
    assert second.endswith("  embed  exited with code 1")
    assert cli("events", "--all") == 0
    assert "  chat   active (ready)\n" in capsys.readouterr().out


def test_events_of_one_engine_are_the_newest_ones(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    for number in range(5):
        daemon.happen("chat", f"event {number}")
        daemon.happen("embed", "noise")
    assert cli("events", "chat", "-n", "2", "--json") == 0
    texts = [event["text"] for event in json.loads(capsys.readouterr().out)["events"]]
    assert texts == ["event 3", "event 4"]


def test_logs_pass_the_engines_bytes_on(cli: Cli, daemon: FakeDaemon, capsysbinary: Any) -> None:
    daemon.logs["chat"] = b"one\ntwo \xff\x1b[1m\nthree\n"
    assert cli("logs", "chat") == 0
    assert capsysbinary.readouterr().out == daemon.logs["chat"]
    assert cli("logs", "chat", "-n", "1") == 0
    assert capsysbinary.readouterr().out == b"three\n"


def test_logs_as_json_are_a_line_each(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.logs["chat"] = b"one\ntwo"
    assert cli("logs", "chat", "--json") == 0
    assert capsys.readouterr().out == '{"line": "one"}\n{"line": "two"}\n'


@pytest.mark.parametrize("verb", ["enable", "disable", "reset-failed"])
def test_a_verb_that_waits_for_nothing_asks_for_each_replica(cli: Cli, daemon: FakeDaemon, verb: str) -> None:
    assert cli(verb, "rerank") == 0
    assert daemon.requests[-2:] == [f"POST engines/id-rerank-{n}/{verb}" for n in (1, 2)]


def test_reset_failed_without_a_name_takes_the_failed_ones(cli: Cli, daemon: FakeDaemon) -> None:
    assert cli("reset-failed") == 0
    assert [r for r in daemon.requests if r.startswith("POST")] == ["POST engines/id-embed/reset-failed"]


def test_one_unknown_name_among_several_changes_nothing(cli: Cli, daemon: FakeDaemon) -> None:
    assert cli("stop", "chat", "nobody") == 4
    assert not [r for r in daemon.requests if r.startswith("POST")]


def test_kinds_shows_options_and_broken_plugins(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    options = [
        *[{"name": "command", "type": "tuple[str, ...]", "required": True, "default": None}],
        *[{"name": "device", "type": "str | None", "required": False, "default": None}],
        *[{"name": "backend", "type": "Literal['auto', 'vllm']", "required": False, "default": "auto"}],
    ]
    kind = {"name": "llm", "summary": "a model", "mode": "serve", "default_port": 8001, "broken": None}
    kind |= {"distribution": "sagectl", "version": "0.1.0"}
    kind |= {"options": [{**option, "help": "words", "aliases": []} for option in options]}
    broken = {
        "name": "bad",
        "distribution": "sage-bad",
        "broken": "ImportError: x",
        "detail": "Trace\n  back",
    }
    daemon.answers["kinds"] = 200, {"kinds": [kind, broken]}
    assert cli("kinds") == 0
    out = capsys.readouterr().out
    assert "  command  list of text, required\n" in out
    assert "  device   text, no default\n" in out
    assert '  backend  auto | vllm, default "auto"\n' in out
    assert "broken plugin bad of sage-bad: ImportError: x\n  Trace\n    back\n" in out


def test_kinds_works_without_a_daemon(tmp_path: Path, capsys: Out) -> None:
    assert main.run(["--socket", str(tmp_path / "none"), "kinds", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["kinds"], list)


@pytest.mark.parametrize("verb", [("stop",), ("engine", "stop")])
def test_stop_finds_an_engine_by_its_port(cli: Cli, daemon: FakeDaemon, verb: tuple[str, ...]) -> None:
    daemon.script["stop", "chat"] = [STOPPED]
    assert cli(*verb, "--port", "8001") == 0
    assert daemon.engines["chat"]["state"] == "inactive"
    assert cli(*verb, "--port", "9999") == 4


@pytest.mark.parametrize("verb", [("stop",), ("engine", "stop")])
def test_stop_wants_to_know_which(cli: Cli, verb: tuple[str, ...]) -> None:
    assert cli(*verb) == 2


def test_engine_prune_forgets_transient_engines_that_are_down(
    cli: Cli, daemon: FakeDaemon, capsys: Out
) -> None:
    daemon.engines["t1"] = engine("t1", transient=True)
    daemon.engines["t2"] = engine("t2", transient=True, **READY)
    assert cli("engine", "prune") == 0
    assert capsys.readouterr().out == "id-t1\n"
    assert list(daemon.engines) == ["chat", "embed", "rerank@1", "rerank@2", "t2"]


def test_engine_list_shows_ids(cli: Cli, capsys: Out) -> None:
    assert cli("engine", "list") == 0
    out = capsys.readouterr().out
    assert out.startswith("ENGINE ID")
    assert "id-chat " in out


def test_shutdown_waits_until_the_daemon_is_gone(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    assert cli("shutdown") == 0
    assert capsys.readouterr().out == "Engines and daemon have stopped.\n"
    assert daemon.ended


def test_shutdown_can_be_asked_for_without_waiting(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.answers["shutdown"] = 202, {}
    assert cli("shutdown", "--no-wait") == 0
    assert not daemon.ended


def test_help_names_every_verb_once_and_each_has_an_example_or_explains_itself(cli: Cli, capsys: Out) -> None:
    assert cli("--help") == 0
    out = capsys.readouterr().out
    for section in main.SECTIONS.values():
        for verb in section:
            assert f"\n  {verb} " in out
            assert cli(verb, "--help") == 0
            assert f"  sagectl {verb}" in capsys.readouterr().out


def test_events_of_an_unknown_engine_exit_4(cli: Cli, daemon: FakeDaemon, capsys: Out) -> None:
    daemon.answers["events"] = 200, {"events": []}
    assert cli("events", "nobody") == 4
    assert "no engine 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["stop", "chat", "--drain", "-5"], ["start", "chat", "--timeout", "nan"]])
def test_seconds_that_make_no_sense_are_refused(cli: Cli, words: list[str]) -> None:
    assert cli(*words) == 2
