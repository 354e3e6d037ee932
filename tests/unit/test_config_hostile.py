"""The real kinds' tables with anything at all at any key: problems are named, nothing is raised."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagectl.config.load import engine_from_body, load
from sagectl.config.options import options_of
from sagectl.config.schema import EngineTable
from sagectl.errors import InvalidConfig
from sagectl.plugin import EngineKind
from sagectl_embedding.kind import EmbeddingKind
from sagectl_exec.kind import ExecKind
from sagectl_finetune.kind import FinetuneKind
from sagectl_llm.kind import LlmKind
from tests.unit.sample_kinds import KINDS as SAMPLES

MAIN = Path("/c/sagectl.toml")
KINDS: dict[str, EngineKind[Any]] = {
    kind.name: kind for kind in (ExecKind(), LlmKind(), EmbeddingKind(), FinetuneKind())
}
RIGHT: dict[str, dict[str, Any]] = {
    "exec": {"command": ["serve", "--port", "{port}"]},
    "llm": {"model": "org/m"},
    "embedding": {"model": "org/m"},
    "finetune": {"model": "org/m"},
}

texts = st.text(max_size=6) | st.sampled_from(
    ["{port}", "{", "1s", "5GiB", "40%", "--port", "../x", "/x", "\0"]
)
huge = st.sampled_from([10**400, -(10**400)])
scalars = (
    st.none() | st.booleans() | st.integers() | huge | st.floats(allow_nan=True, allow_infinity=True) | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("http"), inner, max_size=3),
    max_leaves=5,
)


def keys_of(kind: str) -> list[str]:
    return sorted({*EngineTable.model_fields, *options_of(KINDS[kind]).fields, "no_such_key"} - {"kind"})


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    wrong = draw(st.dictionaries(st.sampled_from(keys_of(kind)), values, min_size=1, max_size=3))
    return {"kind": kind, **RIGHT[kind], **wrong}


@settings(max_examples=600, deadline=None)
@given(bodies())
def test_a_body_with_anything_in_it_is_an_engine_or_a_list_of_problems(body: dict[str, Any]) -> None:
    try:
        made = engine_from_body("x", body, KINDS)
    except InvalidConfig as error:
        said = [problem.message for problem in error.problems]
    else:
        said = [made.name]
    assert said
    assert all(said)


@pytest.mark.parametrize(
    "command", ['"sleep 1"', "[]", "[1]", '[""]', '["x", "{"]', '["x", "{nothing}"]', "{}", "true", None]
)
def test_an_exec_engine_without_a_port_and_with_a_wrong_command_is_one_clear_problem(
    command: str | None,
) -> None:
    line = "" if command is None else f"command = {command}\n"
    with pytest.raises(InvalidConfig) as caught:
        load(MAIN, None, KINDS, texts={MAIN: f'[engines.a]\nkind = "exec"\n{line}'})
    (problem,) = caught.value.problems
    assert problem.key == "engines.a.command"


def test_a_command_in_one_string_is_answered_with_the_list_that_it_stands_for() -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(MAIN, None, KINDS, texts={MAIN: '[engines.a]\nkind = "exec"\ncommand = "sleep 1"\n'})
    assert json.dumps(["sleep", "1"]) in str(caught.value.problems[0])


def test_a_kind_that_fails_on_its_options_is_named_and_hides_no_other_mistake() -> None:
    class Failing(type(SAMPLES["exec"])):  # type: ignore[misc]
        def listens(self, options: Any) -> bool:
            raise RuntimeError("no idea")

    sample = SAMPLES["exec"]
    kinds = {"exec": Failing("exec", sample.options, 8100)}
    table = 'kind = "exec"\ncommand = ["x"]\n'
    text = f"[engines.a]\n{table}[engines.b]\n{table}porrt = 1\n"
    with pytest.raises(InvalidConfig) as caught:
        load(MAIN, None, kinds, texts={MAIN: text})
    said = "\n".join(str(problem) for problem in caught.value.problems)
    assert "the kind exec failed on it: RuntimeError: no idea" in said
    assert "porrt" in said


BIG, HEX = "9" * 400, "0x" + "f" * 6000  # more than a float holds; more digits than Python writes


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("engines.a.gpu_memory", f"gpu_memory = -{BIG}"),
        ("engines.a.gpu_memory", f"gpu_memory = {HEX}"),
        ("engines.a.required_memory_gb", f"required_memory_gb = {HEX}"),
        ("engines.a.required_memory_gb", f"required_memory_gb = -{BIG}"),
        ("engines.a.serves", f"serves = [{HEX}]"),
        ("engines.a.command", f"command = [{HEX}]"),
        ("engines.a.port", f"port = {HEX}"),
        ("engines.a.stop.drain", f"stop.drain = -{BIG}"),
    ],
    ids=lambda text: text[:30],
)
def test_a_number_beyond_all_measure_is_a_problem_of_its_key(key: str, line: str) -> None:
    command = "" if "command" in line else 'command = ["x"]\n'
    text = f'[engines.a]\nkind = "exec"\nport = 1\n{command}{line}\n'.replace(
        "port = 1\n", "" if "port" in line else "port = 1\n"
    )
    with pytest.raises(InvalidConfig) as caught:
        load(MAIN, None, KINDS, texts={MAIN: text})
    (problem,) = caught.value.problems
    assert problem.key == key
    assert problem.line == text.count("\n")
    assert len(str(problem)) < 300


@pytest.mark.parametrize("piece", ["a={", "a=[", "x = [{ a = ", "[", "{", "a.b.", "]", "'", '"""'])
@pytest.mark.parametrize("before", ["", "\0", "a = 1\na = 1\n"], ids=repr)
def test_what_is_nested_without_end_is_a_syntax_error_wherever_that_begins(before: str, piece: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidConfig) as caught:
        load(MAIN, None, KINDS, texts={MAIN: before + piece * 20_000})
    assert all(problem.message for problem in caught.value.problems)
    assert time.process_time() - begun < 1.0


@pytest.mark.parametrize("piece", ["x", "é", "\\", "x ", ".", '"', "x=", "x,", "={", "a={x"])
def test_an_inline_table_that_is_never_closed_does_not_take_long(piece: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidConfig):
        load(MAIN, None, KINDS, texts={MAIN: "a={" + piece * 20_000})
    assert time.process_time() - begun < 1.0


def test_a_thousand_wrong_dependencies_do_not_take_long_and_are_all_told() -> None:
    table = '[engines.engine-{0}]\nkind = "exec"\ncommand = ["x"]\ndepends_on = ["enjine-{0}"]\n'
    text = "".join(table.format(number) for number in range(1000))
    begun = time.process_time()
    with pytest.raises(InvalidConfig) as caught:
        load(MAIN, None, KINDS, texts={MAIN: text})
    assert time.process_time() - begun < 1.0
    assert len(caught.value.problems) == 1000
    assert all('there is no engine "enjine-' in problem.message for problem in caught.value.problems)
    assert 'did you mean "engine-0"?' in caught.value.problems[0].remedy
