"""An engine as JSON: back and forth, and without secrets."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from sagectl.config.persist import MASK, dump_engine, flat_spec, load_engine, public_spec
from sagectl.core.engine import (
    Desired,
    Engine,
    EngineSpec,
    LoadedModel,
    OnExceed,
    Outcome,
    Priority,
    ProbePolicy,
    Process,
    Reservation,
    RestartPolicy,
    RestartWhen,
    Serving,
    ServingPhase,
    State,
    StopPolicy,
    Sub,
)
from sagectl.core.reload import LEFT_OUT
from sagectl.plugin import (
    Diagnosis,
    ExecProbe,
    ExitStatus,
    HttpProbe,
    LaunchPlan,
    Mode,
    NotifyProbe,
    Probe,
    Probes,
    Successor,
    TcpProbe,
)
from tests.unit.sample_kinds import KINDS, ExecOptions, LlmOptions

SPEC = EngineSpec(
    name="chat@1",
    kind="llm",
    mode=Mode.SERVE,
    group="chat",
    model="org/m",
    options=LlmOptions(max_model_len=5, extra_args=("--x", "ü"), quotas={"a": 1}),
    python="/usr/bin/python3",
    port=8001,
    default_port=8001,
    gpus=2,
    gpu_ids=(0, 1),
    gpu_memory="40%",
    on_exceed=OnExceed.STOP,
    user="nobody",
    limits={"nofile": (7, -1), "core": (0, 0)},
    nice=5,
    oom_score_adjust=-500,
    cpu_affinity=(0, 1, 3),
    memory_max=2**35,
    cpu_weight=50,
    autostart=True,
    priority=Priority.HIGH,
    depends_on=("embed",),
    labels={"team": "x"},
    env={"A": "1"},
    env_file="/x.env",
    probe_choice=HttpProbe("/health"),
    restart=RestartPolicy(RestartWhen.ALWAYS, 2.0, 9.0, 0, 60.0),
    probe=ProbePolicy(1.0, 2.0, 3.0, 4),
    stop=StopPolicy(1.5, 2.5, 2),
    declared={"idle_stop": None},
)
SUCCESSOR = Successor("support", "llm", "/models/support", {"served_model_name": "support"})
ENGINE = Engine(
    id="engine-00000001",
    spec=SPEC,
    transient=True,
    desired=Desired.RUNNING,
    state=State.FAILED,
    sub=Sub.PREFLIGHT_FAILED,
    reason="why",
    port=8001,
    generation=3,
    plan=LaunchPlan(
        ("python", "-m", "x"),
        env={"B": "2"},
        cwd="/",
        probes=Probes(
            (HttpProbe("/v1/x", "POST", '{"a": 1}', "ok", ("choices", 0, "text"), 60.0), TcpProbe()),
            ExecProbe(("true",)),
            NotifyProbe(),
        ),
        served_models=("m",),
        progress_file="/p",
        successor=SUCCESSOR,
        notes=("because",),
    ),
    process=Process(1, 2, "boot", 3.5, 4.5, 6),
    launching=True,
    tree_alive=True,
    went_ready=True,
    ready_since=7.0,
    outcome=Outcome(Sub.SIGNAL, "killed"),
    reservation=Reservation((0, 1), (5, 6), (10, 12), 2, 1, 3, "learned", "m|8192", True, 2, ("it fits",)),
    diagnosis=Diagnosis("sum", "rem", False, ("1 + 1 = 2",)),
    last_exit=ExitStatus(signal=9, oom_kill=True, oom_detail="process 7 (x)"),
    starts=(1.0, 2.5),
    backoff_until=8.0,
    waiting_for=("embed",),
    queued_since=8.5,
    serving=Serving(SUCCESSOR, ServingPhase.SERVED, "chat", "served as support by the engine chat"),
    loaded=(LoadedModel("support", "/models/support", "engine-00000003", 3),),
    since=9.0,
    since_wall=10.0,
)


def test_an_engine_comes_back_as_it_was() -> None:
    assert load_engine(dump_engine(ENGINE), KINDS) == ENGINE


def test_an_engine_that_never_started_comes_back_as_it_was() -> None:
    fresh = Engine("engine-00000002", EngineSpec("a", "exec", options=ExecOptions(("x",))))
    assert load_engine(dump_engine(fresh), KINDS) == fresh


def test_the_sample_uses_every_field_that_has_a_type_of_its_own() -> None:
    unset = [f.name for f in fields(Engine) if getattr(ENGINE, f.name) is None]
    assert unset == []


@pytest.mark.parametrize("probe", [None, HttpProbe("/"), TcpProbe(), ExecProbe(("a", "b")), NotifyProbe()])
def test_every_probe_comes_back(probe: Probe | None) -> None:
    engine = replace(ENGINE, spec=replace(SPEC, probe_choice=probe))
    assert load_engine(dump_engine(engine), KINDS).spec.probe_choice == probe


def test_secrets_are_stored_nowhere() -> None:
    assert ENGINE.plan is not None
    spec = replace(SPEC, env={"A": "1", "HF_TOKEN": "hush-1"})
    engine = replace(ENGINE, spec=spec, plan=replace(ENGINE.plan, env={"API_KEY": "hush-2"}))
    text = dump_engine(engine)
    assert "hush" not in text
    assert load_engine(text, KINDS).spec.env == {"A": "1", "HF_TOKEN": LEFT_OUT}
    shown = json.dumps(public_spec(spec))
    assert "hush" not in shown
    assert public_spec(spec)["env"] == {"A": "1", "HF_TOKEN": MASK}


def test_a_diagnosis_of_an_earlier_version_has_no_figures() -> None:
    values = json.loads(dump_engine(ENGINE))
    del values["diagnosis"]["arithmetic"]
    assert load_engine(json.dumps(values), KINDS).diagnosis == Diagnosis("sum", "rem", False)


def test_a_changed_engine_is_not_confused_with_an_earlier_one() -> None:
    texts = {dump_engine(replace(ENGINE, spec=replace(SPEC, port=port))) for port in range(3000)}
    assert len(texts) == 3000


def test_an_engine_whose_kind_is_gone_keeps_its_options_as_they_were_stored() -> None:
    engine = load_engine(dump_engine(ENGINE), {})
    assert engine.spec.options["max_model_len"] == 5
    assert load_engine(dump_engine(engine), KINDS) == ENGINE


def test_options_of_an_older_plugin_are_read_with_the_new_ones_defaults() -> None:
    stored = json.loads(dump_engine(ENGINE))
    stored["spec"]["options"] = {"max_model_len": 5, "gone": 1}
    assert load_engine(json.dumps(stored), KINDS).spec.options == LlmOptions(max_model_len=5)


def test_options_that_the_plugin_refuses_now_are_kept_as_they_were_stored() -> None:
    stored = json.loads(dump_engine(ENGINE))
    stored["spec"]["options"]["max_model_len"] = "five"
    assert load_engine(json.dumps(stored), KINDS).spec.options["max_model_len"] == "five"


def test_what_was_stored_before_engines_had_limits_is_read_as_without() -> None:
    stored = json.loads(dump_engine(ENGINE))
    for key in ("limits", "nice", "oom_score_adjust", "cpu_affinity", "memory_max", "cpu_weight"):
        del stored["spec"][key]
    del stored["last_exit"]["oom_detail"]
    bare = replace(
        SPEC, limits={}, nice=None, oom_score_adjust=None, cpu_affinity=None, memory_max=None, cpu_weight=None
    )
    assert load_engine(json.dumps(stored), KINDS) == replace(
        ENGINE, spec=bare, last_exit=ExitStatus(signal=9, oom_kill=True)
    )


def without(key: str) -> str:
    stored = json.loads(dump_engine(ENGINE))
    del stored[key]
    return json.dumps(stored)


def changed(key: str, value: Any, part: str | None = None) -> str:
    stored = json.loads(dump_engine(ENGINE))
    (stored if part is None else stored[part])[key] = value
    return json.dumps(stored)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"v": 1}',
        dump_engine(ENGINE)[:-20],
        without("spec"),
        without("process"),
        changed("v", 2),
        changed("v", "1"),
        changed("state", "happy"),
        changed("sub", None),
        changed("generation", "3"),
        changed("transient", 1),
        changed("since", "now"),
        changed("starts", 5),
        changed("process", {"pid": 1}),
        changed("process", 7),
        changed("plan", {}),
        changed("plan", []),
        changed("last_exit", {"code": 1, "nope": 2}),
        changed("surprise", 1),
        changed("spec", None),
        changed("name", 5, "spec"),
        changed("probe_choice", {"type": "telepathy"}, "spec"),
        changed("restart", {"policy": "never"}, "spec"),
        changed("options", [1], "spec"),
        changed("limits", {"nofile": 7}, "spec"),
        changed("limits", {"nofile": ["a", "b"]}, "spec"),
        changed("limits", {"nofile": [1, 2, 3]}, "spec"),
        changed("limits", [], "spec"),
        changed("cpu_affinity", 7, "spec"),
        "[" * 100_000,
    ],
)
def test_anything_odd_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (whatever it says)
        load_engine(text, KINDS)


def test_a_declaration_is_shown_with_the_tomls_own_keys() -> None:
    assert public_spec(SPEC) == {
        "kind": "llm",
        "model": "org/m",
        "group": "chat",
        "autostart": True,
        "host": "127.0.0.1",
        "port": 8001,
        "gpu_ids": [0, 1],
        "gpu_memory": "40%",
        "on_exceed": "stop",
        "priority": "high",
        "depends_on": ["embed"],
        "python": "/usr/bin/python3",
        "user": "nobody",
        "limits": {"nofile": [7, "unlimited"], "core": 0},
        "nice": 5,
        "oom_score_adjust": -500,
        "cpu_affinity": [0, 1, 3],
        "memory_max": 2**35,
        "cpu_weight": 50,
        "env": {"A": "1"},
        "env_file": "/x.env",
        "labels": {"team": "x"},
        "restart": {"policy": "always", "delay": 2.0, "max_delay": 9.0, "limit": 0, "window": 60.0},
        "probe": {"startup_timeout": 1.0, "interval": 2.0, "timeout": 3.0, "failures": 4, "http": "/health"},
        "stop": {"drain": 1.5, "timeout": 2.5, "signal": 2},
        "idle_stop": None,
        "backend": "auto",
        "max_model_len": 5,
        "tensor_parallel_size": 1,
        "temperature": 1.0,
        "extra_args": ["--x", "ü"],
        "quotas": {"a": 1},
    }


def test_a_flat_declaration_has_the_dotted_keys_of_origins() -> None:
    flat = flat_spec(SPEC)
    assert flat["restart.delay"] == 2.0
    assert flat["env.A"] == "1"
    assert flat["limits.nofile"] == [7, "unlimited"]
    assert flat["probe.http"] == "/health"
    assert flat["quotas"] == {"a": 1}
    assert not any(
        isinstance(flat.get(key), dict) for key in ("restart", "probe", "stop", "env", "labels", "limits")
    )
