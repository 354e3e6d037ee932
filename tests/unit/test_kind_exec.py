"""The kind `exec`: placeholders, the program's path, probes, diagnoses."""

from __future__ import annotations

from typing import Any

import pytest

from sagectl.plugin import (
    EngineKind,
    EngineRequest,
    ExecProbe,
    ExitStatus,
    Facts,
    FailureReport,
    HttpProbe,
    LaunchPlan,
    NotifyProbe,
    Probe,
    Probes,
    ProgramFacts,
    ProgramQuery,
    Refusal,
    TcpProbe,
)
from sagectl_exec import ExecKind, sagectl_engine_kinds, template
from sagectl_exec.kind import ExecOptions

KIND = ExecKind()


def request(*command: str, probe: Probe | None = None, **changes: Any) -> EngineRequest[ExecOptions]:
    values: dict[str, Any] = {
        "name": "llama",
        "model": "/models/x.gguf",
        "host": "127.0.0.1",
        "port": 8100,
        "gpu_ids": (0, 2),
        "python": "/usr/bin/python3",
        "probe": probe,
        "models_dir": "/var/lib/sagectl/models",
        "state_dir": "/var/lib/sagectl/engines/llama",
        "options": ExecOptions(command=command or ("serve",), serves=("llama",)),
    }
    return EngineRequest(**(values | changes))


def plan(asked: EngineRequest[ExecOptions], path: str | None = "/usr/bin/serve") -> LaunchPlan | Refusal:
    return KIND.plan(asked, Facts({query: ProgramFacts(path) for query in KIND.facts(asked)}))  # type: ignore[misc]


def test_the_package_brings_one_kind_that_fulfils_the_contract() -> None:
    (kind,) = sagectl_engine_kinds()
    assert isinstance(kind, EngineKind)
    assert kind.name == "exec"


@pytest.mark.parametrize(
    ("word", "listens"), [("{port}", True), ("--at={host}:{port}", True), ("{{port}}", False), ("x", False)]
)
def test_a_port_is_chosen_for_a_command_that_asks_for_one(word: str, listens: bool) -> None:
    assert KIND.listens(ExecOptions(command=("serve", word))) is listens


def test_every_placeholder_is_filled_in() -> None:
    planned = plan(request("serve", "{name}", "-m", "{model}", "{host}:{port}", "--gpus={gpu_ids}"))
    assert isinstance(planned, LaunchPlan)
    assert planned.argv == (
        "/usr/bin/serve",
        "llama",
        "-m",
        "/models/x.gguf",
        "127.0.0.1:8100",
        "--gpus=0,2",
    )
    assert planned.served_models == ("llama",)


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("{{", "{"),
        ("}}", "}"),
        ('{{"port": {port}}}', '{"port": 8100}'),
        ("{{name}}", "{name}"),
        ("{{{name}}}", "{llama}"),
        ("$HOME; rm -rf *", "$HOME; rm -rf *"),
        ("", ""),
    ],
)
def test_doubled_braces_stand_for_braces_and_nothing_else_is_touched(word: str, filled: str) -> None:
    planned = plan(request("serve", word))
    assert isinstance(planned, LaunchPlan)
    assert planned.argv[1:] == (filled,)


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    planned = plan(request("serve", "{model}", model="{port}"))
    assert isinstance(planned, LaunchPlan)
    assert planned.argv[1:] == ("{port}",)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("{prot}", "{prot}"),
        ("{}", "{}"),
        ("{port!r}", "{port!r}"),
        ("{port:>9}", "{port:>9}"),
        ("{0}", "{0}"),
        ("{model.__class__}", "{model.__class__}"),
    ],
)
def test_an_unknown_placeholder_is_refused_with_the_known_ones(word: str, named: str) -> None:
    with pytest.raises(ValueError, match="unknown placeholder") as refused:
        ExecOptions(command=("serve", word))
    assert named in str(refused.value)
    for name in template.PLACEHOLDERS:
        assert f"{{{name}}}" in str(refused.value)


@pytest.mark.parametrize("word", ["{", "}", "{port", "a}b", "{{}"])
def test_a_single_brace_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="a single"):
        ExecOptions(command=("serve", word))


@pytest.mark.parametrize("command", [(), ("",)])
def test_an_empty_command_is_refused(command: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="command: names no program"):
        ExecOptions(command=command)


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        ExecOptions(command=("serve", "a\0b"))


@pytest.mark.parametrize(
    ("name", "key"), [("model", "model = "), ("port", "port = "), ("gpu_ids", "gpu_ids = ")]
)
def test_a_placeholder_without_a_value_names_the_key_that_gives_it_one(name: str, key: str) -> None:
    refused = plan(request("serve", f"{{{name}}}", **{name: None}))
    assert isinstance(refused, Refusal)
    assert f"{{{name}}}" in refused.reason
    assert key in refused.remedy


def test_no_gpus_fill_in_an_empty_word() -> None:
    planned = plan(request("serve", "--gpus={gpu_ids}", gpu_ids=()))
    assert isinstance(planned, LaunchPlan)
    assert planned.argv[1:] == ("--gpus=",)


def test_the_program_is_asked_for_and_its_path_is_launched() -> None:
    assert KIND.facts(request("serve")) == (ProgramQuery("serve"),)
    assert KIND.facts(request("/opt/{name}/serve")) == (ProgramQuery("/opt/llama/serve"),)


def test_a_program_that_is_not_found_is_refused() -> None:
    refused = plan(request("serve"), path=None)
    assert isinstance(refused, Refusal)
    assert "'serve'" in refused.reason
    assert "PATH" in refused.reason


def test_a_relative_path_is_refused() -> None:
    refused = plan(request("./serve"))
    assert isinstance(refused, Refusal)
    assert "absolute path" in refused.remedy


HTTP = HttpProbe("/health")


@pytest.mark.parametrize(
    ("probe", "probes"),
    [
        (None, Probes()),
        (HTTP, Probes((HTTP,), HTTP, HTTP)),
        (TcpProbe(), Probes((TcpProbe(),), TcpProbe(), TcpProbe())),
        (NotifyProbe(), Probes((NotifyProbe(),), NotifyProbe(), None)),
        (
            ExecProbe(("check", "{port}", "{{}}")),
            Probes(
                (ExecProbe(("check", "8100", "{}")),),
                ExecProbe(("check", "8100", "{}")),
                ExecProbe(("check", "8100", "{}")),
            ),
        ),
    ],
)
def test_probes_come_from_the_users_table(probe: Probe | None, probes: Probes) -> None:
    planned = plan(request("serve", probe=probe))
    assert isinstance(planned, LaunchPlan)
    assert planned.probes == probes


@pytest.mark.parametrize("argv", [(), ("check", "{prot}")])
def test_a_probe_command_that_cannot_be_filled_in_is_refused(argv: tuple[str, ...]) -> None:
    refused = plan(request("serve", probe=ExecProbe(argv)))
    assert isinstance(refused, Refusal)
    assert refused.reason.startswith("probe:")


@pytest.mark.parametrize(
    ("phase", "exit_status", "log", "words"),
    [
        ("starting", ExitStatus(code=1), ("bind: Address already in use",), "Port 8100"),
        ("starting", ExitStatus(code=127), ("x: not found",), "127"),
        ("starting", ExitStatus(code=126), (), "126"),
    ],
)
def test_common_failures_are_explained(phase: Any, exit_status: ExitStatus, log: Any, words: str) -> None:
    diagnosis = KIND.explain(request(), FailureReport(phase, exit_status, log))
    assert diagnosis is not None
    assert words in diagnosis.summary


@pytest.mark.parametrize("exit_status", [None, ExitStatus(), ExitStatus(code=1), ExitStatus(signal=9)])
def test_what_it_does_not_recognise_it_does_not_explain(exit_status: ExitStatus | None) -> None:
    assert KIND.explain(request(), FailureReport("running", exit_status, ("something",))) is None
    assert KIND.progress("50%") is None
