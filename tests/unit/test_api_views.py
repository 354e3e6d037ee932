"""Engines and events as the API shows them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sagectl.api import views
from sagectl.core.engine import Desired, Engine, EngineSpec, Process, State, Sub
from sagectl.plugin import Diagnosis, ExitStatus, LaunchPlan, Mode

SPEC = EngineSpec(name="chat", kind="llm", model="m", host="127.0.0.1", labels={"a": "b"})
PROCESS = Process(pid=42, starttime=1, boot_id="b", started=100.0, started_wall=1.7e9)
READY = Engine(
    id="engine-1",
    spec=SPEC,
    desired=Desired.RUNNING,
    state=State.ACTIVE,
    sub=Sub.READY,
    port=8001,
    process=PROCESS,
    plan=LaunchPlan(argv=("x",), served_models=("m", "chat")),
    restart_count=2,
    since_wall=1.7e9 + 0.5,
)


def shown(engine: Engine) -> dict[str, object]:
    return views.engine_json(engine, log_path="/l/chat.log", progress=None, now=160.25)


def test_a_ready_engine() -> None:
    found = shown(READY)
    expected = {
        "engine_id": "engine-1",
        "name": "chat",
        "engine_kind": "llm",
        "model_id": "m",
        "state": "active",
        "substate": "ready",
        "desired": "running",
        "pid": 42,
        "address": "127.0.0.1:8001",
        "gpu_ids": None,
        "uptime_seconds": 60.25,
        "restart_count": 2,
        "last_exit_code": None,
        "healthy": True,
        "labels": {"a": "b"},
        "since": "2023-11-14T22:13:20.500Z",
        "started_at": "2023-11-14T22:13:20.000Z",
        "serves": ["m", "chat"],
        "log_path": "/l/chat.log",
    }
    assert {key: found[key] for key in expected} == expected


def test_an_engine_that_was_never_started_has_no_times() -> None:
    found = shown(Engine(id="e", spec=SPEC))
    gone = ("pid", "port", "address", "uptime_seconds", "since", "started_at", "last_exit", "healthy")
    assert {found[key] for key in gone} == {None}


@pytest.mark.parametrize(
    ("status", "code"),
    [(ExitStatus(code=3), 3), (ExitStatus(signal=9), -9), (ExitStatus(), None), (ExitStatus(code=0), 0)],
)
def test_a_signal_is_a_negative_exit_code(status: ExitStatus, code: int | None) -> None:
    found = shown(replace(READY, last_exit=status))
    assert found["last_exit_code"] == code
    assert found["last_exit"] == {"code": status.code, "signal": status.signal, "oom_kill": False}


def test_limits_are_shown_as_the_toml_has_them() -> None:
    keys = ("limits", "nice", "oom_score_adjust", "cpu_affinity")
    assert [shown(READY)[key] for key in keys] == [{}, None, None, None]
    spec = replace(SPEC, limits={"as": (7, -1)}, nice=0, oom_score_adjust=-5, cpu_affinity=(0, 2))
    found = shown(replace(READY, spec=spec))
    assert [found[key] for key in keys] == [{"as": [7, "unlimited"]}, 0, -5, [0, 2]]


def test_an_ipv6_address_has_brackets() -> None:
    assert shown(replace(READY, spec=replace(SPEC, host="::1")))["address"] == "[::1]:8001"


def test_gpus_that_were_chosen_and_none_differ_from_unmanaged() -> None:
    assert shown(replace(READY, spec=replace(SPEC, gpu_ids=())))["gpu_ids"] == []
    assert shown(replace(READY, spec=replace(SPEC, gpu_ids=(0, 1))))["gpu_ids"] == [0, 1]


def test_a_clock_that_is_behind_gives_no_negative_uptime() -> None:
    assert views.engine_json(READY, log_path="", progress=None, now=1.0)["uptime_seconds"] == 0.0


@pytest.mark.parametrize(
    ("state", "sub", "healthy"),
    [
        (State.ACTIVE, Sub.READY, True),
        (State.ACTIVE, Sub.RUNNING, True),
        (State.ACTIVE, Sub.UNREADY, False),
        (State.ACTIVATING, Sub.BACKOFF, False),
        (State.ACTIVATING, Sub.STARTING, None),
        (State.DEACTIVATING, Sub.DRAINING, None),
        (State.INACTIVE, Sub.COMPLETED, None),
        (State.FAILED, Sub.SIGNAL, False),
    ],
)
def test_health_is_a_judgement_or_none(state: State, sub: Sub, healthy: bool | None) -> None:
    assert shown(replace(READY, state=state, sub=sub))["healthy"] is healthy


def test_a_diagnosis_is_summary_remedy_and_figures() -> None:
    found = shown(replace(READY, diagnosis=Diagnosis("No memory", "Use less", arithmetic=("2 > 1",))))
    assert found["diagnosis"] == {"summary": "No memory", "remedy": "Use less", "arithmetic": ["2 > 1"]}


def test_only_jobs_that_were_launched_have_progress_to_read() -> None:
    job = replace(READY, spec=replace(SPEC, mode=Mode.RUN))
    assert not views.has_progress(READY)
    assert views.has_progress(job)
    assert not views.has_progress(replace(job, plan=None))


def test_what_is_lost_says_how_much_where_that_is_known() -> None:
    assert views.lost_json(7)["text"] == "Up to 7 events before this point are no longer kept"
    assert views.lost_json(0)["text"] == "Some events before this point are no longer kept"
