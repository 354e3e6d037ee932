from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sagectl.shim.log import Log


def contents(path: Path) -> bytes:
    """All of a log, oldest first."""
    numbers = sorted(
        (int(p.name.rpartition(".")[2]) for p in path.parent.glob(f"{path.name}.[0-9]*")), reverse=True
    )
    return b"".join([*(path.with_name(f"{path.name}.{n}").read_bytes() for n in numbers), path.read_bytes()])


chunks = st.lists(
    st.one_of(st.binary(max_size=40), st.sampled_from([b"\n", b"a line\n", b"x" * 30])), max_size=60
)


@settings(deadline=None, max_examples=60)
@given(chunks=chunks, limit=st.integers(1, 50), reopen=st.integers(0, 60))
def test_every_byte_is_in_the_files_in_order(
    tmp_path_factory: object, chunks: list[bytes], limit: int, reopen: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "a.log"  # type: ignore[attr-defined]
    log = Log(str(path), limit, 10_000)
    for number, chunk in enumerate(chunks):
        if number == reopen:
            os.close(log.fd)
            log = Log(str(path), limit, 10_000)
        log.write(chunk)
    os.close(log.fd)
    assert contents(path) == b"".join(chunks)
    assert log.written == sum(map(len, chunks))
    assert log.dropped == 0


def test_rotation_happens_at_newlines(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "a.log"), 100, 50)
    for number in range(100):
        log.write(f"line {number}, in two".encode())
        log.write(b" parts\n")
    rotated = list(tmp_path.glob("a.log.[0-9]*"))
    assert len(rotated) > 10
    assert all(path.read_bytes().endswith(b"\n") and path.stat().st_size <= 130 for path in rotated)


def test_only_so_many_files_are_kept(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "a.log"), 10, 2)
    for number in range(9):
        log.write(b"line %03d\n" % number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2", "a.log.state"]
    assert contents(tmp_path / "a.log") == b"line 006\nline 007\nline 008\n"


def test_output_without_newlines_does_not_grow_without_end(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "a.log"), 1000, 100)
    for _ in range(100):
        log.write(b"." * 100)
    assert max(path.stat().st_size for path in tmp_path.glob("a.log*")) <= 2000
    assert contents(tmp_path / "a.log") == b"." * 10_000


def test_positions_count_on_over_rotations_and_restarts(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = Log(str(path), 10, 1)
    for _ in range(10):
        log.write(b"1234567\n")
    again = Log(str(path), 10, 1)
    assert again.written == log.written == 80
    assert json.loads((tmp_path / "a.log.state").read_text())["written"] == 72


def test_a_kill_in_the_middle_of_a_rotation_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = Log(str(path), 1000, 3)
    log.write(b"before\n")
    os.rename(path, tmp_path / "a.log.1")  # as far as the killed shim came
    log = Log(str(path), 1000, 3)
    log.write(b"after\n")
    assert contents(path) == b"before\nafter\n"
    assert log.written == 13


def test_a_full_disk_drops_and_counts_and_says_so_once(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.symlink_to("/dev/full")
    log = Log(str(path), 1000, 3)
    said: list[str] = []
    log.report = said.append
    for _ in range(5):
        log.write(b"0123456789")
    assert log.dropped == 50
    assert len(said) == 1
    assert "No space left" in said[0]


def test_a_loss_that_goes_on_is_told_each_time_it_has_doubled(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.symlink_to("/dev/full")
    log = Log(str(path), 1000, 3)
    said: list[str] = []
    log.report = said.append
    for _ in range(100):
        log.write(b"0123456789")
        log.retry_at = 0.0
    told = [int(text.rpartition(", ")[2].split()[0]) for text in said[1:]]
    assert told == [10, 30, 70, 150, 310, 630]
    assert all(text.endswith(" bytes so far") for text in said[1:])
    assert log.trouble == said[-1]


def test_when_there_is_room_again_the_log_tells_its_gap(tmp_path: Path) -> None:
    path = tmp_path / "directory" / "a.log"
    log = Log(str(path), 1000, 3)
    said: list[str] = []
    log.report = said.append
    log.write(b"lost\n")
    path.parent.mkdir()
    log.retry_at = 0.0
    log.write(b"kept\n")
    assert path.read_bytes() == b"[sagectl: 5 bytes of log lost here]\nkept\n"
    assert "5 bytes were lost" in said[-1]


def test_a_log_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = Log(str(path), 1000, 3)
    log.write(b"one\n")
    path.unlink()
    log.write(b"two\n")
    assert path.read_bytes() == b"two\n"
    assert log.written == 8
