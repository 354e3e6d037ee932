"""The scanner finds every key that tomli finds, and where it stands."""

from __future__ import annotations

import string
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from sagectl.config.positions import dotted, first_duplicate, scan, unfinished

DOCUMENT = """\
# a comment with [brackets] and "quotes
title = "a # b"   # not part of the value

[engines.chat]
kind = "llm"
  indented.key = 1
"quoted \\u00e9 \\"key\\"" = 2
'literal.key' = 3
env = { A = "x", B.C = "}" }
text = \"\"\"
fake = 1
[not.a.table]
\\\"\"\" still inside\"\"\"\"
raw = '''
also = "fake"
''\\'''
after = [
  1, # one
  "two]",
  { three = 3 },
]
probe = {
  http = "/health",  # TOML 1.1: over several lines
  interval = "5s",
}

[[gateway.upstreams]]
name = "a"
[gateway.upstreams.more]
x = 1
[[gateway.upstreams]]
name = "b"
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("engines",), 4),
        (("engines", "chat"), 4),
        (("engines", "chat", "kind"), 5),
        (("engines", "chat", "indented"), 6),
        (("engines", "chat", "indented", "key"), 6),
        (("engines", "chat", 'quoted é "key"'), 7),
        (("engines", "chat", "literal.key"), 8),
        (("engines", "chat", "env", "A"), 9),
        (("engines", "chat", "env", "B", "C"), 9),
        (("engines", "chat", "text"), 10),
        (("engines", "chat", "raw"), 14),
        (("engines", "chat", "after"), 17),
        (("engines", "chat", "after", 1), 19),
        (("engines", "chat", "after", 2, "three"), 20),
        (("engines", "chat", "probe", "interval"), 24),
        (("gateway", "upstreams"), 27),
        (("gateway", "upstreams", 0, "name"), 28),
        (("gateway", "upstreams", 0, "more", "x"), 30),
        (("gateway", "upstreams", 1), 31),
        (("gateway", "upstreams", 1, "name"), 32),
    ],
)
def test_a_key_is_found_at_its_line(path: tuple[str | int, ...], line: int) -> None:
    assert scan(DOCUMENT)[path] == line


def test_nothing_but_the_documents_keys_is_found() -> None:
    assert set(scan(DOCUMENT)) == paths(tomli.loads(DOCUMENT))


def test_windows_line_ends_count_once() -> None:
    assert scan(DOCUMENT.replace("\n", "\r\n")) == scan(DOCUMENT)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every path in a document that tomli has read."""
    found = {path} if path else set()
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        found |= paths(inner, (*path, step))
    return found


# --- Generated documents -------------------------------------------------------------------------

KEYS = st.text(string.ascii_lowercase + "-_", min_size=1, max_size=4) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), max_size=5
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["'", '"', "'''", '"""', "# x", "a = 1", "[t]", "]", "}", "\n[x]\n", "\\", '\\"']
)
SCALARS = st.integers() | st.booleans() | st.floats() | TEXTS | st.dates() | st.times()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
BLANKS = st.sampled_from(["", " ", "\t", "  "])
BREAKS = st.sampled_from(["", " ", "\n", " # a ] comment \"'\n", "\n\n  "])


def written_key(draw: Any, key: str) -> str:
    if key and set(key) <= set(string.ascii_letters + string.digits + "-_") and draw(st.booleans()):
        return key
    if "'" not in key and key.isprintable() and draw(st.booleans()):
        return f"'{key}'"
    return basic(key)


def basic(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'


def written_value(draw: Any, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return written_text(draw, value)
    if isinstance(value, list):
        items = [draw(BREAKS) + written_value(draw, item) + draw(BREAKS) for item in value]
        return "[" + ",".join(items) + ("," if items and draw(st.booleans()) else "") + draw(BREAKS) + "]"
    if isinstance(value, dict):
        pairs = [
            f"{draw(BREAKS)}{written_key(draw, key)}{draw(BLANKS)}={draw(BLANKS)}{written_value(draw, inner)}"
            f"{draw(BREAKS)}"
            for key, inner in value.items()
        ]
        return "{" + ",".join(pairs) + ("," if pairs and draw(st.booleans()) else "") + draw(BREAKS) + "}"
    return str(value)


def written_text(draw: Any, text: str) -> str:
    style = draw(st.sampled_from(["basic", "literal", "long", "raw"]))
    plain = all(c.isprintable() or c == "\n" for c in text)
    if style == "literal" and plain and "'" not in text and "\n" not in text:
        return f"'{text}'"
    if style == "long" and plain:
        return (
            '"""'
            + text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
            + ('\\"' if text[-1:] == '"' else "")
            + '"""'
        )
    if style == "raw" and plain and "'''" not in text and not text.endswith("'"):
        return f"'''{text}'''"
    return basic(text)


@st.composite
def documents(draw: Any) -> str:
    """TOML in many notations; a few of them declare something twice and are no TOML."""
    lines = []
    for _ in range(draw(st.integers(0, 6))):
        keys = draw(st.lists(KEYS, min_size=1, max_size=3))
        dots = f"{draw(BLANKS)}.{draw(BLANKS)}".join(written_key(draw, key) for key in keys)
        kind = draw(st.sampled_from(["pair", "pair", "pair", "table", "array", "comment", "blank"]))
        lines.append(
            {
                "pair": lambda dots=dots: f"{dots} = {written_value(draw, draw(VALUES))}",
                "table": lambda dots=dots: f"[{draw(BLANKS)}{dots}{draw(BLANKS)}] # x",
                "array": lambda dots=dots: f"[[{dots}]]",
                "comment": lambda: "# [no] = 'table'",
                "blank": lambda: "",
            }[kind]()
        )
    ends = st.sampled_from(["\n", "\r\n"])
    return draw(BLANKS).join(line + draw(ends) for line in lines)


@settings(max_examples=300, deadline=None)
@given(documents())
def test_every_key_path_of_a_generated_document_has_a_position(text: str) -> None:
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    found = scan(text)
    assert set(found) == paths(values)
    assert all(1 <= line <= text.count("\n") + 1 for line in found.values())


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab.=[]{}\"'#,\\\n \t1", max_size=60))
def test_any_text_at_all_is_scanned_to_its_end(text: str) -> None:
    scan(text)
    first_duplicate(text)
    unfinished(text)


def test_a_long_unclosed_string_costs_no_more_than_its_length() -> None:
    scan('a = """' + 'x\\y"' * 50_000)
    scan('a = "' + "xy" * 50_000)


# --- Broken documents ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\nb = 2\na = 3", (("a",), 1, 3)),
        ("[a]\n[b]\n[a]", (("a",), 1, 3)),
        ("[a]\nx = { b = 1, b = 2 }", (("a", "x", "b"), 2, 2)),
        ("[[a]]\nx = 1\n[[a]]\nx = 1", None),
        ("[a.b]\n[a]", None),
    ],
)
def test_the_first_key_that_is_set_twice_is_found(text: str, expected: Any) -> None:
    assert first_duplicate(text) == expected


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("engines", "chat"), "engines.chat"),
        (("a b", 0, "c"), '"a b".c'),
        (('"\\\n',), '"\\"\\\\\\n"'),
        ((), ""),
    ],
)
def test_a_path_is_written_as_toml_would(path: tuple[str | int, ...], text: str) -> None:
    assert dotted(path) == text
