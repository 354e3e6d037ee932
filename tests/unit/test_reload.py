"""What a reload changes, and how."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from sagectl.core.engine import EngineSpec, OnExceed, Priority, ProbePolicy, RestartPolicy, StopPolicy
from sagectl.core.reload import LEFT_OUT, Change, ReloadPlan, changed_keys, launch_changed, plan
from sagectl.plugin import Mode, TcpProbe
from tests.unit.sample_kinds import ExecOptions, LlmOptions

SPEC = EngineSpec("a", "exec", options=ExecOptions(("serve",)), env={"A": "1"}, labels={"team": "x"})

IN_PLACE: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("autostart", {"autostart": True}, ("autostart",)),
    ("priority", {"priority": Priority.HIGH}, ("priority",)),
    ("depends_on", {"depends_on": ("b",)}, ("depends_on",)),
    ("labels", {"labels": {"team": "y", "new": "z"}}, ("labels.new", "labels.team")),
    ("restart", {"restart": RestartPolicy(delay=2, limit=9)}, ("restart.delay", "restart.limit")),
    ("probe", {"probe": ProbePolicy(interval=1)}, ("probe.interval",)),
    ("stop", {"stop": StopPolicy(drain=0)}, ("stop.drain",)),
    ("on_exceed", {"on_exceed": OnExceed.STOP}, ("on_exceed",)),
    ("declared", {"declared": {"idle_stop": 2}}, ("idle_stop",)),
    ("default_port", {"default_port": 9000}, ("port",)),
    ("group", {"group": "g"}, ("replicas",)),
]
LAUNCH: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("model", {"model": "x"}, ("model",)),
    ("options", {"options": ExecOptions(("serve", "-v"))}, ("command",)),
    ("kind", {"kind": "llm", "options": LlmOptions()}, ("kind",)),
    ("python", {"python": "/usr/bin/python3"}, ("python",)),
    ("host", {"host": "::1"}, ("host",)),
    ("port", {"port": 1}, ("port",)),
    ("gpus", {"gpus": 2}, ("gpus",)),
    ("gpu_ids", {"gpu_ids": ()}, ("gpu_ids",)),
    ("gpu_memory", {"gpu_memory": "40%"}, ("gpu_memory",)),
    ("user", {"user": "x"}, ("user",)),
    ("limits", {"limits": {"nofile": (9, 9), "core": (0, 0)}}, ("limits.core", "limits.nofile")),
    ("nice", {"nice": 0}, ("nice",)),
    ("oom_score_adjust", {"oom_score_adjust": 0}, ("oom_score_adjust",)),
    ("cpu_affinity", {"cpu_affinity": (0,)}, ("cpu_affinity",)),
    ("memory_max", {"memory_max": 2**30}, ("memory_max",)),
    ("cpu_weight", {"cpu_weight": 50}, ("cpu_weight",)),
    ("env", {"env": {"A": "2", "B": "3"}}, ("env.A", "env.B")),
    ("env_file", {"env_file": "/x"}, ("env_file",)),
    ("probe_choice", {"probe_choice": TcpProbe()}, ("probe",)),
    ("mode", {"mode": Mode.RUN}, ("mode",)),
]


def test_every_field_of_a_declaration_is_in_one_of_the_tables() -> None:
    named = [name for name, _, _ in (*IN_PLACE, *LAUNCH)]
    assert sorted([*named, "name"]) == sorted(field.name for field in fields(EngineSpec))


@pytest.mark.parametrize(("name", "change", "keys"), IN_PLACE, ids=lambda v: v if isinstance(v, str) else "")
def test_what_does_not_shape_the_launch_changes_in_place(
    name: str, change: dict[str, Any], keys: tuple[str, ...]
) -> None:
    new = replace(SPEC, **change)
    assert plan({"a": SPEC}, {"a": new}, running={"a"}) == ReloadPlan(in_place=(Change("a", keys),))


@pytest.mark.parametrize(("name", "change", "keys"), LAUNCH, ids=lambda v: v if isinstance(v, str) else "")
def test_what_shapes_the_launch_restarts_a_running_engine(
    name: str, change: dict[str, Any], keys: tuple[str, ...]
) -> None:
    new = replace(SPEC, **change)
    assert launch_changed(SPEC, new)
    assert set(keys) <= set(changed_keys(SPEC, new))
    if name != "mode":
        done = plan({"a": SPEC}, {"a": new}, running={"a"})
        assert done == ReloadPlan(restarts=(Change("a", changed_keys(SPEC, new)),))


def test_nothing_is_restarted_that_does_not_run() -> None:
    new = replace(SPEC, port=1)
    assert plan({"a": SPEC}, {"a": new}) == ReloadPlan(in_place=(Change("a", ("port",)),))


def test_without_restarts_a_changed_launch_is_marked() -> None:
    new = replace(SPEC, port=1)
    marked = plan({"a": SPEC}, {"a": new}, running={"a"}, restart=False)
    assert marked == ReloadPlan(needs_restart=(Change("a", ("port",)),))


def test_a_job_is_never_restarted() -> None:
    job = replace(SPEC, mode=Mode.RUN)
    marked = plan({"a": job}, {"a": replace(job, port=1)}, running={"a"})
    assert marked == ReloadPlan(needs_restart=(Change("a", ("port",)),))


def test_added_removed_and_unchanged_are_told_apart() -> None:
    specs = {name: replace(SPEC, name=name) for name in "abcd"}
    old = {name: specs[name] for name in "abc"}
    new = {name: specs[name] for name in "bd"}
    assert plan(old, new, keep={"c"}) == ReloadPlan(added=("d",), removed=("a",), unchanged=1)


def test_a_plan_without_changes_is_empty() -> None:
    same = plan({"a": SPEC}, {"a": SPEC}, running={"a"})
    assert same == ReloadPlan(unchanged=1)
    assert same.empty
    assert not plan({}, {"a": SPEC}).empty


def test_a_secret_that_was_left_out_is_put_back_without_a_restart() -> None:
    stored = replace(SPEC, env={"A": "1", "HF_TOKEN": LEFT_OUT})
    new = replace(SPEC, env={"A": "1", "HF_TOKEN": "real"})
    back = plan({"a": stored}, {"a": new}, running={"a"})
    assert back == ReloadPlan(in_place=(Change("a", ("env.HF_TOKEN",)),))
    assert launch_changed(stored, SPEC)
    assert launch_changed(stored, replace(new, env={"A": "2", "HF_TOKEN": "real"}))
