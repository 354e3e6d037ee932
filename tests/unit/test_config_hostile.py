"""The real kinds' tables with anything at all at any key: problems are named, nothing is raised."""

from __future__ import annotations

import json
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
from sagectl_llm.kind import LlmKind
from tests.unit.sample_kinds import KINDS as SAMPLES

MAIN = Path("/c/sagectl.toml")
KINDS: dict[str, EngineKind[Any]] = {kind.name: kind for kind in (ExecKind(), LlmKind(), EmbeddingKind())}
RIGHT: dict[str, dict[str, Any]] = {
    "exec": {"command": ["serve", "--port", "{port}"]},
    "llm": {"model": "org/m"},
    "embedding": {"model": "org/m"},
}

texts = st.text(max_size=6) | st.sampled_from(
    ["{port}", "{", "1s", "5GiB", "40%", "--port", "../x", "/x", "\0"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True, allow_infinity=True) | texts
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
