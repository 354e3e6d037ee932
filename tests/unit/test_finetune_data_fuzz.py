"""Whatever a file holds, its rows are good or bad: nothing else is ever raised."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl_finetune.data import FORMATS, read
from sagectl_finetune.data.formats import example, recognise
from sagectl_finetune.data.model import Example, RowError

KEYS = st.sampled_from(
    (
        *("messages", "conversations", "role", "content", "from", "value", "tools", "tool_calls", "function"),
        *(
            "name",
            "arguments",
            "weight",
            "type",
            "text",
            "instruction",
            "input",
            "output",
            "system",
            "history",
        ),
        *("prompt", "completion", "question", "answer"),
    )
)
WORDS = st.sampled_from(
    ("user", "assistant", "gpt", "human", "function_call", "tool", "text", "", "A", "{}", "[1]")
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": WORDS, "content": WORDS | VALUES}, optional={"tool_calls": VALUES, "weight": VALUES}
    )
    | st.fixed_dictionaries({"from": WORDS, "value": WORDS | VALUES}),
    max_size=4,
)
ROWS = (
    VALUES
    | st.dictionaries(KEYS, VALUES, max_size=5)
    | st.fixed_dictionaries({"messages": TURNS}, optional={"tools": VALUES})
    | st.fixed_dictionaries({"conversations": TURNS}, optional={"system": VALUES})
)


def sound(found: Example) -> bool:
    """What the rest relies on."""
    texts = [found.text, found.prompt, found.completion, *(message["content"] for message in found.messages)]
    assert all(isinstance(text, str) for text in texts)
    "".join(texts).encode()
    if not found.messages:
        return bool(found.text.strip() or found.completion.strip())
    roles = [message["role"] for message in found.messages]
    return bool(found.trained) and all(roles[index] == "assistant" for index in found.trained)


@given(ROWS)
def test_any_value_is_a_good_or_a_bad_row(row: Any) -> None:
    for form in (None, *FORMATS):
        try:
            found = example(row, form or recognise(row), "f", 1)
        except RowError:
            continue
        assert sound(found)


LINES = st.sampled_from(
    (b'{"text": "one"}', b'{"text":', b"[", b"]", b"\xff", b"a,text", b'"', b"", b"\x00", b"{}")
)
CONTENT = st.binary(max_size=60) | st.lists(LINES, max_size=6).map(b"\n".join)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz", "a.csv.gz"])
@given(content=CONTENT, whole=st.booleans())
def test_any_file_is_read_to_its_end(name: str, content: bytes, whole: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.write_bytes(gzip.compress(content) if whole and name.endswith(".gz") else content)
        rows = read(path, skip_bad_rows=True)
        found = list(rows)
        assert all(map(sound, found))
        assert (len(found), len(rows.bad)) == (rows.good, rows.bad_count)
