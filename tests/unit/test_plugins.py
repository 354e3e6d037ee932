"""Plugins are found one by one; a broken one is reported and harms nobody."""

# ruff: noqa: E501  (messages stand in one piece)

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from sagectl.plugin import Mode, hookimpl, option
from sagectl.system.plugins import Kinds, discover
from tests.unit.sample_kinds import KINDS, ExecOptions, SampleKind

Brings = Callable[[], Any]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., EntryPoint]:
    """Makes a plugin's module and its entry point."""

    def make(name: str, brings: Brings | None, *, marked: bool = True) -> EntryPoint:
        module = types.ModuleType(f"plugin_{name}")
        if brings is not None:

            def sagectl_engine_kinds() -> Sequence[Any]:
                return brings()  # type: ignore[no-any-return]

            module.sagectl_engine_kinds = (  # type: ignore[attr-defined]
                hookimpl(sagectl_engine_kinds) if marked else sagectl_engine_kinds
            )
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return EntryPoint(name, module.__name__, "sagectl")

    return make


Make = Callable[..., EntryPoint]


def kind(name: str = "x", **changes: Any) -> SampleKind:
    made = SampleKind(name, ExecOptions, 8000)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def reasons(found: Kinds) -> list[tuple[str, str]]:
    return [(broken.name, broken.reason) for broken in found.broken]


def test_kinds_come_with_the_package_they_are_from(plugin: Make) -> None:
    found = discover([plugin("one", lambda: [kind("a"), kind("b")]), plugin("two", lambda: (kind("c"),))])
    assert sorted(found.by_name()) == ["a", "b", "c"]
    assert {name: source.distribution for name, source in found.kinds.items()} == {
        "a": "plugin_one",
        "b": "plugin_one",
        "c": "plugin_two",
    }
    assert found.broken == ()


def raises(error: BaseException) -> Brings:
    def bring() -> Any:
        raise error

    return bring


@dataclass
class Thawed:
    a: int = 1


@dataclass(frozen=True)
class Shadow:
    model: str = option("the model", default="")
    env: str = option("the environment", default="")


@dataclass(frozen=True)
class Twice:
    a: str = option("a", default="", aliases=("b",))
    b: str = option("b", default="")


class Unfinished:
    name = "x"
    summary = ""

    def plan(self) -> None: ...


@pytest.mark.parametrize(
    ("brings", "reason"),
    [
        (raises(RuntimeError("boom\nand more")), "RuntimeError: boom and more"),
        (raises(SystemExit(3)), "SystemExit: 3"),
        (raises(BaseException()), "BaseException"),
        (lambda: None, "sagectl_engine_kinds returned nothing"),
        (lambda: 5, "sagectl_engine_kinds returned a int, not a sequence"),
        (lambda: "ab", "sagectl_engine_kinds returned a str, not a sequence"),
        (
            lambda: [Unfinished()],
            "the kind Unfinished lacks mode, options, default_port, listens, facts, explain, progress",
        ),
        (lambda: [SampleKind], "returned the class SampleKind instead of an instance of it"),
        (
            lambda: [object()],
            "the kind object lacks name, summary, mode, options, default_port, listens, facts, plan, explain, progress",
        ),
        (lambda: [kind("Bad Name")], "the kind SampleKind is called 'Bad Name', which is no name for a kind"),
        (lambda: [kind("")], "the kind SampleKind is called '', which is no name for a kind"),
        (lambda: [kind(mode="serve")], "the mode of kind x is 'serve', not a sagectl.plugin.Mode"),
        (lambda: [kind(default_port="8000")], "the default_port of kind x is '8000', not a port"),
        (lambda: [kind(default_port=0)], "the default_port of kind x is 0, not a port"),
        (lambda: [kind(summary=None)], "the summary of kind x is None, not a text"),
        (lambda: [kind(options=dict)], "kind x: `options` is not a dataclass"),
        (lambda: [kind(options=ExecOptions(("x",)))], "kind x: `options` is not a dataclass"),
        (
            lambda: [kind(options=Thawed)],
            "kind x: `options` (Thawed) is not frozen: write @dataclass(frozen=True)",
        ),
        (lambda: [kind(options=Shadow)], "kind x has options that every engine has already: env, model"),
        (lambda: [kind(options=Twice)], "kind x: an option and another's alias are both called b"),
        (lambda: [kind("x"), kind("x")], "brings kind x twice"),
        (lambda: [kind("fine")], "kind fine is already brought by plugin_good"),
    ],
)
def test_a_broken_plugin_is_reported_and_the_others_work(plugin: Make, brings: Brings, reason: str) -> None:
    good, bad = plugin("good", lambda: [kind("fine")]), plugin("xbad", brings)
    found = discover([bad, good])
    assert reasons(found) == [("xbad", reason)]
    assert list(found.kinds) == ["fine"]
    assert found.kinds["fine"].distribution == "plugin_good"


def test_a_plugin_that_cannot_be_imported_is_reported_with_its_traceback() -> None:
    found = discover([EntryPoint("gone", "no_such_module_anywhere", "sagectl")])
    assert reasons(found) == [("gone", "ModuleNotFoundError: No module named 'no_such_module_anywhere'")]
    assert "Traceback" in found.broken[0].detail
    assert found.broken_by_name() == {"gone": found.broken[0].reason}


def test_a_module_without_a_marked_hook_is_reported(plugin: Make) -> None:
    found = discover([plugin("none", None), plugin("plain", lambda: [kind()], marked=False)])
    assert {reason for _, reason in reasons(found)} == {
        "implements no hook: mark sagectl_engine_kinds with @hookimpl"
    }


def test_a_hook_that_does_not_exist_is_reported(plugin: Make) -> None:
    point = plugin("typo", lambda: [kind()])

    @hookimpl
    def sagectl_engine_kind() -> Sequence[Any]:
        return ()

    sys.modules[point.value].sagectl_engine_kind = sagectl_engine_kind  # type: ignore[attr-defined]
    ((_, reason),) = reasons(discover([point]))
    assert "unknown hook 'sagectl_engine_kind'" in reason


def test_ctrl_c_is_no_fault_of_a_plugin(plugin: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        discover([plugin("slow", raises(KeyboardInterrupt()))])


def test_annotations_that_mean_nothing_are_reported(plugin: Make) -> None:
    @dataclass(frozen=True)
    class Odd:
        a: NoSuchType = option("a", default=None)  # type: ignore[name-defined]  # noqa: F821

    ((_, reason),) = reasons(discover([plugin("odd", lambda: [kind(options=Odd)])]))
    assert reason.startswith("kind x: the annotations of `options` are not usable: ")


def test_a_job_kind_without_a_port_is_usable(plugin: Make) -> None:
    found = discover([plugin("job", lambda: [SampleKind("job", ExecOptions, None, Mode.RUN)])])
    assert found.by_name()["job"].mode is Mode.RUN


def test_kinds_are_described_with_their_options(plugin: Make) -> None:
    found = discover([plugin("llm", lambda: [KINDS["llm"]]), plugin("xbad", raises(OSError("no")))])
    llm, bad = found.describe()
    assert json.loads(json.dumps([llm, bad])) == [llm, bad]
    assert (llm["name"], llm["mode"], llm["default_port"], llm["broken"]) == ("llm", "serve", 8001, None)
    assert llm["options"][1] == {
        "name": "max_model_len",
        "type": "int | None",
        "required": False,
        "default": None,
        "help": "tokens",
        "aliases": ["max_seq_length"],
    }
    assert (bad["name"], bad["broken"]) == ("xbad", "OSError: no")


def test_the_installed_plugins_are_found_without_arguments() -> None:
    assert isinstance(discover(), Kinds)
