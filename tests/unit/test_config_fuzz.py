"""Any text at all as a configuration: it is one, or a list of problems, and that soon."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagectl.config.load import load
from sagectl.config.options import options_of
from sagectl.config.schema import EngineTable
from sagectl.errors import InvalidConfig
from sagectl.plugin import EngineKind
from sagectl_embedding.kind import EmbeddingKind
from sagectl_exec.kind import ExecKind
from sagectl_finetune.kind import FinetuneKind
from sagectl_llm.kind import LlmKind

ETC = Path(__file__).parents[2] / "etc"
MAIN, DROP_INS = Path("/c/sagectl.toml"), Path("/c/engines.d")
KINDS: dict[str, EngineKind[Any]] = {
    kind.name: kind for kind in (ExecKind(), LlmKind(), EmbeddingKind(), FinetuneKind())
}
LONGEST = 1.0  # seconds of processor time, for up to 100 kB
BOUNDED = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def words(text: str) -> list[str]:
    return text.split()


VALUES = words("""
true false 0 1 -1 2 65535 65536 0.5 -0.0 1e400 inf -inf nan 0b1 0o17 1_000
9223372036854775807 -9223372036854775809 1979-05-27 07:32:00 1979-05-27T07:32:00Z 0001-01-01T00:00:00.000001
"" "x" 'x' '''x''' "\\u0000" "\\U0010ffff" "~" "~\\u0000/x" "../x" "5min"
"20GiB" "40%" "101%" "1e9GiB" "SIGKILL"
"{port}" "{" "{name!r}" "{port:>{port}}" "/" "llm" "exec" "chat" "chat@1" "on-failure" "always" "auto" "::1"
"é" "python3" [] {} [[]] [0,0] [1,'x'] {http='/h',tcp=true} {x={}} ["a","b"] "1h\\u00201m" "0.0.0.0"
""")
VALUES += ["1" * 400, "-" + "9" * 400, "0x" + "f" * 6000, f'"{"9" * 400}GiB"', f'"{"x" * 5000}"']
KEYS = sorted(
    {*EngineTable.model_fields, *(key for kind in KINDS.values() for key in options_of(kind).fields)}
    | {"a.b", "probe.http", "restart.delay", "env.X", '"a b"', "''", '""', "'é'", "model_id", "engine_kind"}
    | {"required_memory_gb", "engine_label", "labels.x", "env.HF_TOKEN", "stop.signal", "nosuch"}
)
HEADERS = words("""
[daemon] [gpu] [gpu.budgets] [gpu.simulated] [defaults] [defaults.llm] [defaults.exec] [gateway] [a.b.c]
[engines] [engines.chat] [engines.a] [engines.a.probe] [[engines]] [[engines.a]] [engines."a\\u0020b"]
[engines.chat@1] [engines.''] [[a]] [] [[]] [
""")
PIECES = words("""
[ ] [[ ]] { } = . , # " ' \"\"\" ''' \\ é x _ - + 0x 1e inf T Z : \\u12
engines chat kind exec command a.b=1 a=[ a={ true
""")
PIECES += [*"\n\r\t \0\ufeff\x7f\x85\u2028", "\r\n", "\n[engines.x]\n"]
EXAMPLES = [path.read_text(encoding="utf-8") for path in sorted(ETC.rglob("*.toml"))]
EXAMPLES += [re.sub(r"^#(?=\S)", "", text, flags=re.M) for text in EXAMPLES]

toml_values = st.recursive(
    st.sampled_from(VALUES),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=3).map(
            lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"
        )
    ),
    max_leaves=4,
)
settings_lines = st.builds("{} = {}".format, st.sampled_from(KEYS), toml_values)
kind_lines = st.sampled_from([f'kind = "{kind}"' for kind in KINDS])
lines = st.one_of(st.sampled_from(HEADERS), settings_lines, settings_lines, kind_lines)
documents = st.lists(lines, max_size=12).map("\n".join)
soups = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """What etc/ offers, with some lines or characters of it changed."""
    text = draw(st.sampled_from(EXAMPLES))
    for _ in range(draw(st.integers(1, 4))):
        rows = text.split("\n")
        row = draw(st.integers(0, len(rows) - 1))
        match draw(st.sampled_from(["value", "line", "swap", "double", "insert", "delete", "cut"])):
            case "value":
                rows[row] = rows[row].partition("=")[0] + "= " + draw(toml_values)
            case "line":
                rows.insert(row, draw(lines))
            case "swap":
                other = draw(st.integers(0, len(rows) - 1))
                rows[row], rows[other] = rows[other], rows[row]
            case "double":
                rows.insert(row, rows[row])
            case "insert":
                place = draw(st.integers(0, len(rows[row])))
                rows[row] = rows[row][:place] + draw(soups) + rows[row][place:]
            case "delete":
                place = draw(st.integers(0, len(rows[row])))
                rows[row] = rows[row][:place] + rows[row][place + 1 :]
            case "cut":
                rows = rows[: row + 1]
        text = "\n".join(rows)
    return text


ends = st.sampled_from(["", *PIECES, *HEADERS])


def settle(texts: dict[Path, str], broken: dict[str, str] | None = None) -> None:
    """Load, and hold the outcome against what every caller relies on."""
    begun = time.process_time()
    try:
        told = load(MAIN, DROP_INS, KINDS, texts=texts, broken=broken).warnings
    except InvalidConfig as error:
        told = error.problems
        failed = True
    else:
        failed = False
    assert time.process_time() - begun < LONGEST
    assert told or not failed
    for problem in told:
        assert problem.message
        assert "\n" not in problem.message, problem
        assert 0 <= problem.line <= texts[Path(problem.file or MAIN)].count("\n") + 1, problem


@BOUNDED
@given(documents | mutants() | soups, st.just("") | documents | mutants())
def test_any_text_is_a_configuration_or_a_list_of_problems(main: str, drop_in: str) -> None:
    settle({MAIN: main, DROP_INS / "one.toml": drop_in})


@BOUNDED
@given(documents | mutants(), st.sampled_from([{"llm": "it is broken"}, {"third": "no such module"}]))
def test_any_text_beside_a_broken_plugin_is_one_too(main: str, broken: dict[str, str]) -> None:
    settle({MAIN: main}, broken)


@settings(BOUNDED, max_examples=60)
@given(ends, st.sampled_from(PIECES) | lines | soups, ends)
def test_no_repetition_takes_long(before: str, piece: str, after: str) -> None:
    """What costs more than it should shows where a piece stands there some thousand times."""
    settle({MAIN: before + piece * min(5000, 100_000 // max(1, len(piece))) + after})
