"""Every route answers as openapi.json says, over a real socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sagectl.api.openapi import document
from sagectl.api.table import ROUTES
from sagectl.core.engine import Sub
from sagectl.errors import Problem
from sagectl.system.journal import Journal
from tests.exposition import samples
from tests.integration.api_support import PLAN, Reply, Served, engine, failed, job, running, serving

BASE = "/v1/management"
DOCUMENT = document(ROUTES)

CALLS: list[tuple[str, str, int]] = [
    ("GET", "/healthz", 200),
    ("GET", "/metrics", 200),
    ("GET", "/openapi.json", 200),
    ("GET", f"{BASE}/status", 200),
    ("GET", f"{BASE}/gpu", 200),
    ("GET", f"{BASE}/kinds", 200),
    ("GET", f"{BASE}/events", 200),
    ("GET", f"{BASE}/events?tail=1&engine=chat", 200),
    ("GET", f"{BASE}/events?tail=1&engine=never", 200),
    ("POST", f"{BASE}/reload", 200),
    ("POST", f"{BASE}/reload?dry_run=1&restart=0", 200),
    ("POST", f"{BASE}/shutdown", 202),
    ("POST", f"{BASE}/daemon-reexec", 202),
    ("GET", f"{BASE}/engines", 200),
    ("GET", f"{BASE}/engines?port=8001", 200),
    ("GET", f"{BASE}/engines?port=9", 404),
    ("POST", f"{BASE}/engines", 201),
    ("POST", f"{BASE}/engines/start", 201),
    ("GET", f"{BASE}/engines/chat", 200),
    ("GET", f"{BASE}/engines/rep", 200),
    ("GET", f"{BASE}/engines/bad", 200),
    ("GET", f"{BASE}/engines/none", 404),
    ("DELETE", f"{BASE}/engines/chat", 202),
    ("DELETE", f"{BASE}/engines/chat?drain=0&wait=0", 200),
    ("POST", f"{BASE}/engines/rep/start", 202),
    ("POST", f"{BASE}/engines/tune/start?again=1&wait=0", 200),
    ("POST", f"{BASE}/engines/done/start", 409),
    ("POST", f"{BASE}/engines/chat/stop?drain=1.5", 202),
    ("POST", f"{BASE}/engines/chat/restart", 202),
    ("POST", f"{BASE}/engines/bad/reset-failed", 200),
    ("POST", f"{BASE}/engines/chat/enable", 200),
    ("POST", f"{BASE}/engines/chat/disable", 200),
    ("POST", f"{BASE}/engines/chat/unload", 200),
    ("POST", f"{BASE}/engines/chat/unload?model=support", 409),
    ("POST", f"{BASE}/engines/bad/forget", 200),
    ("POST", f"{BASE}/engines/chat/forget", 409),
    ("GET", f"{BASE}/engines/chat/logs?tail=1", 200),
    ("GET", f"{BASE}/engines/rep/logs", 409),
    ("GET", f"{BASE}/engines/tune/progress", 200),
    ("GET", f"{BASE}/engines/chat/progress", 200),
    ("GET", f"{BASE}/engines/tune/history?points=2", 200),
    ("GET", f"{BASE}/engines/rep/history", 409),
    ("GET", f"{BASE}/engines/chat/explain", 200),
    ("GET", f"{BASE}/engines/chat/definition", 200),
]


def furnish(served: Served) -> None:
    control = served.control
    done = replace(job("done"), sub=Sub.COMPLETED)
    control.put(running("chat"), engine("rep@1"), engine("rep@2"), failed("bad"), job("tune"), done)
    control.plan = PLAN
    control.figures = {
        "done": 3,
        "total": None,
        "unit": "steps",
        "eta_seconds": 1.5,
        "details": {"loss": 0.1},
    }
    control.journal.record("chat", "engine-1", "ready", "it answers", state="active", substate="ready")
    control.journal.record(None, None, "started", "the daemon runs", level="warning")
    control.journal.record("chat", "engine-1", "state", "starting", "debug", "activating", "starting")
    (control.logs / "chat.log").write_text("one\ntwo\n")


def documented(method: str, target: str) -> dict[str, Any]:
    """The operation of this request in the document."""
    segments = target.partition("?")[0].split("/")
    exact = DOCUMENT["paths"].get("/".join(segments), {}).get(method.lower())
    if exact is not None:
        found: dict[str, Any] = exact
        return found
    segments[4] = "{id}"
    found = DOCUMENT["paths"]["/".join(segments)][method.lower()]
    return found


def check(reply: Reply, operation: dict[str, Any]) -> None:
    """The answer is one that the document knows."""
    assert str(reply.status) in operation["responses"]
    content = operation["responses"][str(reply.status)]["content"]
    media = reply.headers["content-type"].partition(";")[0]
    schema = {**content[media]["schema"], "components": DOCUMENT["components"]}
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    value = reply.json if "json" in media else reply.body.decode()
    assert [error.message for error in validator.iter_errors(value)] == []


@pytest.mark.parametrize(("method", "target", "status"), CALLS)
async def test_the_answer_is_as_documented(tmp_path: Path, method: str, target: str, status: int) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        body = {"name": "new", "kind": "exec"} if status == 201 else None
        reply = await served.ask(method, target, body)
        assert reply.status == status, reply.data
        check(reply, documented(method, target))


def test_every_route_is_called_here() -> None:
    called = {documented(method, target)["operationId"] for method, target, _ in CALLS}
    assert called == {op["operationId"] for path in DOCUMENT["paths"].values() for op in path.values()}


async def test_the_document_that_is_served_is_the_one_that_is_tested(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        assert (await served.ask("GET", "/openapi.json")).json == DOCUMENT


async def test_head_has_the_headers_of_get_and_no_body(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        for target in (
            "/healthz",
            f"{BASE}/engines/chat/logs?follow=1",
            f"{BASE}/events?follow=1",
            f"{BASE}/engines/tune/progress?follow=1",
            f"{BASE}/x",
        ):
            reply = await served.ask("HEAD", target)
            assert reply.body == b""
            assert "content-type" in reply.headers


async def test_a_definition_is_answered_with_where_it_lives(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        reply = await served.ask("POST", f"{BASE}/engines", {"name": "new"})
        assert reply.headers["location"] == f"{BASE}/engines/{reply.json['engine_id']}"
        assert (await served.ask("GET", reply.headers["location"])).json["name"] == "new"


async def test_an_invalid_definition_names_every_field(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.invalid = [
            Problem("port", "is taken", "choose another"),
            Problem("kind", "is missing"),
        ]
        reply = await served.ask("POST", f"{BASE}/engines", {"name": "new"})
        assert reply.status == 422
        assert [entry["key"] for entry in reply.problem()["errors"]] == ["port", "kind"]
        check(reply, documented("POST", f"{BASE}/engines"))


async def test_a_bad_configuration_names_file_and_line_on_reload(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.invalid = [Problem("engines.x", "is unknown", "remove it", file="/etc/s.toml", line=7)]
        reply = await served.ask("POST", f"{BASE}/reload?dry_run=true")
        assert reply.status == 422
        assert reply.problem()["errors"][0]["line"] == 7
        assert served.control.asked == [("reload", True, True)]


async def test_a_log_is_what_the_engine_wrote(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        (tmp_path / "chat.log.1").write_bytes(b"zero\xff\n")
        assert (await served.ask("GET", f"{BASE}/engines/chat/logs")).body == b"zero\xff\none\ntwo\n"
        assert (await served.ask("GET", f"{BASE}/engines/chat/logs?tail=1")).body == b"two\n"
        assert (await served.ask("GET", f"{BASE}/engines/bad/logs")).body == b""


async def test_an_action_on_a_group_is_one_on_all_its_engines(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        reply = await served.ask("POST", f"{BASE}/engines/rep/stop?drain=5")
        assert served.control.asked == [("stop", "rep@1", 5.0), ("stop", "rep@2", 5.0)]
        assert [e["substate"] for e in reply.json["engines"]] == ["draining", "draining"]


async def test_an_engine_is_found_by_id_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        by_name = (await served.ask("GET", f"{BASE}/engines/chat")).json
        assert (await served.ask("GET", f"{BASE}/engines/{by_name['engine_id']}")).json["name"] == "chat"


async def test_waiting_ends_when_the_engine_has_settled(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        asking = asyncio.ensure_future(served.ask("POST", f"{BASE}/engines/rep/start?wait=60"))
        await served.control.settling.wait()
        assert not asking.done()
        served.control.settle.set()
        assert (await asking).status == 200


async def test_waiting_for_an_engine_that_is_removed_meanwhile_ends_well(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        asking = asyncio.ensure_future(served.ask("DELETE", f"{BASE}/engines/bad?wait=60"))
        await served.control.settling.wait()
        served.control.held.clear()
        served.control.settle.set()
        reply = await asking
        assert (reply.status, reply.json["engines"][0]["name"]) == (200, "bad")


async def test_a_fault_of_the_daemon_is_a_problem_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as served:
        reply = await served.ask("POST", f"{BASE}/engines", {"name": "broken"})
        assert reply.status == 500
        assert "a fault of its own" in reply.problem()["detail"]
        assert "a fault of the daemon" not in reply.data.decode()
        assert "RuntimeError: a fault of the daemon" in caplog.text
        assert (await served.ask("GET", "/healthz")).status == 200


async def test_metrics_count_requests_by_route_and_not_by_whatever_was_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        for target in (f"{BASE}/engines/chat", f"{BASE}/engines/none", "/evil1", "/evil2"):
            await served.ask("GET", target)
        text = (await served.ask("GET", "/metrics")).body.decode()
        route = f'method="GET",path="{BASE}/engines/{{id}}"'
        assert f'sagectl_api_requests_total{{{route},code="200"}} 1' in text
        assert f'sagectl_api_requests_total{{{route},code="404"}} 1' in text
        assert 'sagectl_api_requests_total{method="other",path="other",code="404"} 2' in text
        assert 'sagectl_engines{state="active",substate="ready"} 1' in text
        assert 'sagectl_engine_up{engine="chat",kind="exec"} 1' in text
        assert 'sagectl_engine_restarts_total{engine="bad",kind="exec"} 0' in text
        assert "evil" not in text


async def test_metrics_tell_of_gpus_in_bytes(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        furnish(served)
        found = samples((await served.ask("GET", "/metrics")).body.decode())
    gib, gpu = 1 << 30, 'gpu="0",uuid="GPU-0"'
    sizes = {"total": 24, "used": 5, "foreign": 2, "reserved": 4, "measured": 3, "free": 17}
    for name, size in sizes.items():
        assert found[f"sagectl_gpu_memory_{name}_bytes{{{gpu}}}"] == size * gib
    assert found[f"sagectl_gpu_utilization_ratio{{{gpu}}}"] == 0.25
    assert found[f"sagectl_gpu_temperature_celsius{{{gpu}}}"] == 61
    assert found[f"sagectl_gpu_power_watts{{{gpu}}}"] == 200.5
    assert found[f"sagectl_gpu_lost{{{gpu}}}"] == 0
    assert found['sagectl_gpu_lost{gpu="1",uuid="GPU-1"}'] == 1
    assert 'sagectl_gpu_temperature_celsius{gpu="1",uuid="GPU-1"}' not in found
    of_engine = '{engine="chat",kind="llm",gpu="0"}'
    assert found[f"sagectl_engine_gpu_memory_reserved_bytes{of_engine}"] == 4 * gib
    assert found[f"sagectl_engine_gpu_memory_measured_bytes{of_engine}"] == 3 * gib
    assert found['sagectl_gpu_budget_bytes{gpu="0",kind="llm"}'] == 12 * gib
    assert found['sagectl_gpu_budget_held_bytes{gpu="0",kind="llm"}'] == 4 * gib
    assert found["sagectl_gpu_queue_length"] == 2


async def test_a_machine_without_gpus_has_no_figures_of_any(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.control.accounts = lambda: ()  # type: ignore[method-assign]
        served.control.queue_length = lambda: None  # type: ignore[method-assign]
        assert "gpu" not in (await served.ask("GET", "/metrics")).body.decode()


async def test_the_journal_is_listed_newest_last(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        journal: Journal = served.control.journal
        for number in range(5):
            journal.record("chat" if number % 2 else "other", None, "ready", f"event {number}")
        assert [e["text"] for e in (await served.ask("GET", f"{BASE}/events?tail=2")).json["events"]] == [
            "event 3",
            "event 4",
        ]
        reply = await served.ask("GET", f"{BASE}/events?engine=chat")
        assert [e["text"] for e in reply.json["events"]] == ["event 1", "event 3"]
