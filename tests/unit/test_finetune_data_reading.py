"""Files of each kind, whole and broken, and what is said of their rows."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sagectl_finetune.data import DataError, read

CHAT = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
ONE, TWO = json.dumps({"text": "one"}), json.dumps({"text": "two"})


def written(directory: Path, name: str, content: str | bytes) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def texts(path: Path) -> list[tuple[str, int]]:
    rows = read(path)
    found = [(example.text, example.row) for example in rows]
    rows.check()
    return found


def bad(path: Path) -> list[tuple[int, str]]:
    rows = read(path, skip_bad_rows=True)
    list(rows)
    return [(row.row, row.reason) for row in rows.bad]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", f"{ONE}\n{TWO}\n", [("one", 1), ("two", 2)]),
        ("a.jsonl", f"\ufeff{ONE}\r\n\r\n{TWO}", [("one", 1), ("two", 3)]),  # rows are lines
        ("a.ndjson", f"{ONE}\n", [("one", 1)]),
        ("a.jsonl.gz", f"{ONE}\n{TWO}\n", [("one", 1), ("two", 2)]),
        ("a.JSONL", f"{ONE}\n", [("one", 1)]),
        ("a.jsonl", f"[\n{ONE},\n{TWO}\n]", [("one", 1), ("two", 2)]),  # an array with the wrong name
        ("a.json", f"[{ONE}, {TWO}]", [("one", 1), ("two", 2)]),
        ("a.json", f"\ufeff[{ONE},\n{TWO}]", [("one", 1), ("two", 2)]),
        ("a.json.gz", f"[{ONE}]", [("one", 1)]),
        ("a.json", f'{{"data": [{ONE}]}}', [("one", 1)]),
        ("a.json", f'{{\n"train": [{ONE}],\n"test": [{TWO}]}}', [("one", 1)]),
        ("a.json", '{\n"text": "one"\n}', [("one", 1)]),
        ("a.json", f"{ONE}\n{TWO}\n", [("one", 1), ("two", 2)]),  # lines with the wrong name
        ("a.json", f"\n{ONE}", [("one", 2)]),
        ("a.csv", 'id,text\n1,one\n\n2,"two\nlines"\n', [("one", 1), ("two\nlines", 2)]),
        ("a.csv", "\ufeffid;text\r\n1;one\r\n", [("one", 1)]),
        ("a.csv.gz", "text,id\none,1\n", [("one", 1)]),
        ("a.tsv", "text\tid\none, more\t1\n", [("one, more", 1)]),
        ("a.txt", "one\ntwo\n\n", [("one", 1), ("two", 2)]),
        ("a.txt", "\none\nmore\n \n\ntwo", [("one\nmore", 2), ("two", 6)]),
        ("a.txt", "\ufeffone", [("one", 1)]),
        ("a.txt.gz", "\n\none\n", [("one", 3)]),
    ],
)
def test_a_file_is_read(tmp_path: Path, name: str, content: str, expected: list[tuple[str, int]]) -> None:
    assert texts(written(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", f'{ONE}\n{{"text": \n{TWO}', [(2, "is not JSON: Expecting value at column 10")]),
        ("a.jsonl", f'{ONE}\n{{"te', [(2, "is not JSON: Unterminated string starting at column 2")]),
        (
            "a.jsonl",
            ONE.encode() + b'\n{"text": "\xff"}\n',
            [(2, "is not UTF-8: byte 0xff at byte 11 of it")],
        ),
        (
            "a.jsonl",
            f"{ONE}\n" + "[" * 100_000,
            [(2, "is not JSON that can be read: it is nested too deeply")],
        ),
        ("a.jsonl", f"{ONE}\n{json.dumps(CHAT)}\n{TWO}", [(2, "is in the format messages, and most of the")]),
        ("a.jsonl", f"{json.dumps(CHAT)}\n{ONE}\n{TWO}", [(1, "is in the format messages, and most of the")]),
        ("a.jsonl", '{"text": "\\ud83d"}', [(1, '"text" is not UTF-8')]),
        ("a.jsonl", ONE.encode("utf-16"), [(0, "is UTF-16; write it as UTF-8")]),
        ("a.json", f"[{ONE},\n{TWO}", [(2, "is not JSON: Expecting ',' delimiter")]),
        ("a.json", "", [(0, "is empty")]),
        ("a.json", f"[{ONE}, null, 3]", [(2, "is null, not"), (3, "is a number, not")]),
        ("a.json", b'[{"text": "one"},\n{"text": "\xe9"}]', [(2, '"text" is not UTF-8')]),
        ("a.csv", "text,id\none,1\ntwo\nthree,3,3\n", [(2, "has 1 fields, and"), (3, "has 3 fields, and")]),
        ("a.csv", b"text,id\n\xe9,1\n", [(1, '"text" is not UTF-8')]),
        ("a.csv", "text,id\n,1\n", [(1, '"text" is empty')]),
        ("a.csv", "", [(0, "is empty: it has no header")]),
        ("a.csv", "text\rone\r", [(0, "is not CSV: new-line character")]),
        ("a.txt", b"one\n\xff\n", [(2, "is not UTF-8")]),
    ],
)
def test_a_broken_row_is_named_with_its_reason(
    tmp_path: Path, name: str, content: str | bytes, expected: Sequence[tuple[int, str]]
) -> None:
    found = bad(written(tmp_path, name, content))
    assert [row for row, _ in found] == [row for row, _ in expected]
    for (_, reason), (_, start) in zip(found, expected, strict=True):
        assert reason.startswith(start)


def test_a_broken_archive_gives_what_comes_before_the_break(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f'{{"text": "{n * 7919}"}}\n' for n in range(5000)).encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    rows = read(path, skip_bad_rows=True)
    assert 1000 < len(list(rows)) < 4000
    assert [(row.row, row.reason.partition(":")[0]) for row in rows.bad] == [(0, "cannot be read")]
    path.write_bytes(b"no archive")
    assert [row for row, _ in bad(path)] == [0]


def test_a_directory_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    written(tmp_path, "b.jsonl", ONE)
    written(tmp_path, "a/z.txt", "zed")
    written(tmp_path, "a.csv", "text,id\ncomma,1\n")
    written(tmp_path, ".hidden.jsonl", "broken")
    written(tmp_path, ".git/a.jsonl", "broken")
    written(tmp_path, "README.md", "# no data")
    written(tmp_path, "dataset_info.json", "{}")
    rows = read(tmp_path)
    assert [(example.file, example.text) for example in rows] == [
        ("a/z.txt", "zed"),
        ("a.csv", "comma"),
        ("b.jsonl", "one"),
    ]
    assert rows.names() == ["a/z.txt", "a.csv", "b.jsonl"]


def test_bad_rows_are_refused_and_the_first_twenty_listed(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", f"{ONE}\n" + '{"text": null}\n' * 30)
    rows = read(path)
    assert len(list(rows)) == 1
    with pytest.raises(DataError) as raised:
        rows.check()
    said = str(raised.value)
    assert said.startswith("30 rows are bad of 31, of which the first 20 are:\n  a.jsonl:2: ")
    assert said.count('"text" is null') == 20
    assert "--skip-bad-rows" in said
    skipping = read(path, skip_bad_rows=True)
    assert len(list(skipping)) == 1
    skipping.check()
    assert (skipping.good, skipping.bad_count) == (1, 30)


@pytest.mark.parametrize(
    ("content", "what"),
    [("", "it has no rows"), ('{"text": ""}', "all 1 rows are bad"), ("\n\n", "it has no rows")],
)
def test_data_of_which_nothing_is_good_is_refused(tmp_path: Path, content: str, what: str) -> None:
    rows = read(written(tmp_path, "a.jsonl", content), skip_bad_rows=True)
    assert list(rows) == []
    with pytest.raises(DataError, match=f"Nothing in the data can be trained on: {what}"):
        rows.check()


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no data at"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="No data files are in"):
        read(tmp_path)
    with pytest.raises(DataError, match="is no data file by its name"):
        read(written(tmp_path, "a.xlsx", ""))
    with pytest.raises(DataError, match='The data format "chatml" is unknown'):
        read(written(tmp_path, "a.jsonl", ONE), format="chatml")  # type: ignore[arg-type]


def test_a_named_format_is_held_to(tmp_path: Path) -> None:
    rows = read(written(tmp_path, "a.jsonl", f"{ONE}\n{json.dumps(CHAT)}"), format="messages")
    assert [example.row for example in rows] == [2]
    assert [row.row for row in rows.bad] == [1]


def test_messages_in_a_cell_of_a_csv_file(tmp_path: Path) -> None:
    cell = json.dumps(CHAT["messages"]).replace('"', '""')
    rows = read(written(tmp_path, "a.csv", f'id,messages\n1,"{cell}"\n'))
    assert [[message["content"] for message in example.messages] for example in rows] == [["Q", "A"]]


def test_what_is_no_file_or_cannot_be_opened_is_a_bad_row_of_its_own(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", ONE)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    for name in ("pipe.jsonl", "pipe.parquet"):
        os.mkfifo(tmp_path / name)  # whoever opened it would wait for ever
    rows = read(tmp_path, skip_bad_rows=True)
    assert [example.text for example in rows] == ["one"]
    assert [str(row) for row in rows.bad] == [
        "gone.jsonl: cannot be read: No such file or directory",
        "loop.jsonl: cannot be read: Too many levels of symbolic links",
        "pipe.jsonl: cannot be read: it is no regular file",
        "pipe.parquet: cannot be read: it is no regular file",
    ]
    assert rows.sha256 == read(written(tmp_path, "b/a.jsonl", ONE)).sha256


def test_numbers_that_python_does_not_read_are_bad_rows(tmp_path: Path) -> None:
    number = '{"text": ' + "1" * 5000 + "}"
    assert "thousands of digits" in bad(written(tmp_path, "a.jsonl", number))[0][1]
    assert "thousands of digits" in bad(written(tmp_path, "a.json", f"[{number}]"))[0][1]


def test_the_name_of_a_file_can_be_printed(tmp_path: Path) -> None:
    os.rename(written(tmp_path, "a.jsonl", "x"), os.fsencode(tmp_path) + b"/\xff.jsonl")
    rows = read(tmp_path)
    assert list(rows) == []
    assert rows.bad[0].file == rows.names()[0] == "\ufffd.jsonl"


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", f"{ONE}\n" * 1000)
    written(tmp_path, "b.jsonl.gz", f"{ONE}\n" * 1000)
    told: list[tuple[int, int]] = []
    list(read(tmp_path, progress=lambda done, total: told.append((done, total))))
    sizes = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(told) > 4
    assert told == sorted(told)
    assert told[-1] == (sizes, sizes)


def test_the_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    one = read(written(tmp_path, "x/a.jsonl", ONE)).sha256
    assert read(written(tmp_path, "y/b.jsonl", ONE)).sha256 == one
    assert read(tmp_path / "x").sha256 == one
    assert read(written(tmp_path, "z/a.jsonl", TWO)).sha256 != one
    assert re.fullmatch("[0-9a-f]{64}", one)


def test_two_passes_give_the_same(tmp_path: Path) -> None:
    rows = read(written(tmp_path, "a.jsonl", f'{ONE}\n{{"text": 3}}\n{TWO}'), skip_bad_rows=True)
    assert list(rows) == list(rows)
    assert rows.bad_count == 1


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow, which this environment lacks")
    from importlib import import_module

    import_module("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
    return path


def test_parquet_is_read(tmp_path: Path) -> None:
    tool = {"messages": [{"role": "user", "content": "Q", "name": "me"}, *CHAT["messages"][1:]]}
    path = parquet(tmp_path / "a.parquet", [CHAT, tool, {"messages": None}])
    rows = read(path, skip_bad_rows=True)
    assert [example.messages[0] for example in rows] == [
        {"role": "user", "content": "Q"},
        {"role": "user", "content": "Q", "name": "me"},
    ]
    assert [(row.row, row.reason) for row in rows.bad] == [(3, '"messages" is null, not a list')]
    path.write_bytes(path.read_bytes()[:-20])
    assert [row for row, _ in bad(path)] == [0]


def test_without_pyarrow_parquet_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match="lacks the package pyarrow"):
        list(read(written(tmp_path, "a.parquet", b"PAR1")))
