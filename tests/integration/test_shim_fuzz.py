"""Whatever is said to a shim, it lives and so does its engine; nothing runs that it does not know of."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagectl.shim import tree
from sagectl.shim.channel import packed
from tests.integration.process_support import SLEEP
from tests.integration.shim_support import LoneShim, eventually, mutated, values

HELLO = {
    "op": str,
    "v": int,
    "name": str,
    "shim_pid": int,
    "generation": int,
    "left": int,
    "ready": bool,
    "log": dict,
    "adopted": bool,
}
IDENTITY = {
    "pid": int,
    "starttime": int,
    "boot_id": str,
    "started": int | float,
    "started_wall": int | float,
    "log_position": int,
}
BOUNDED = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[LoneShim]:
    one = LoneShim(tmp_path)
    yield one
    one.close()


def right_messages(shim: LoneShim) -> list[dict[str, Any]]:
    """One of each that a daemon sends, none of which harms the engine that runs now."""
    now = shim.generation
    return [
        {**shim.order(*SLEEP), "generation": now},
        {"op": "signal", "generation": now, "signal": 0},
        {"op": "kill-tree", "generation": now - 1},
        {"op": "context", "context": {"engine": "x"}},
        {"op": "measure", "id": 1},
        {"op": "pids", "id": 2},
        {"op": "end"},
        {"op": "from-a-newer-daemon", "generation": now},
    ]


def harms(message: Any, generation: int) -> bool:
    """It is an order to kill, by luck."""
    if not isinstance(message, dict):
        return False
    about, op = message.get("generation"), message.get("op")
    if op == "signal":
        return about == generation and message.get("signal") in range(1, 65)
    return op == "kill-tree" and isinstance(about, int | float) and about >= generation


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in pieces, as they may arrive."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


frames = st.one_of(
    st.binary(max_size=40),
    values.map(lambda value: packed(value)),
    st.builds(
        lambda size, data: struct.pack(">I", size) + data, st.integers(0, 2**32 - 1), st.binary(max_size=20)
    ),
    st.sampled_from([b"[" * 100_000, b'{"op":' * 50_000, b"9" * 5000, b"\xff\xfe", b"", b"NaN", b"null"]).map(
        lambda text: struct.pack(">I", len(text)) + text
    ),
)


def test_no_message_ends_the_shim_or_the_engine(shim: LoneShim) -> None:
    started = shim.launch(*SLEEP)
    right = right_messages(shim)
    shim.generation = started["generation"]

    @BOUNDED
    @given(st.data())
    def anything(data: st.DataObject) -> None:
        messages = data.draw(st.lists(st.sampled_from(right).flatmap(mutated) | values, max_size=3))
        sent = b"".join(packed(one) for one in messages if not harms(one, shim.generation))
        sent += data.draw(frames)
        pieces = data.draw(cut(sent))
        wire, _ = shim.talk()
        wire.say(*pieces)
        check_hello(shim.expect_alive(), shim, started)

    anything()


def check_hello(hello: dict[str, Any], shim: LoneShim, started: dict[str, Any]) -> None:
    for key, kind in HELLO.items():
        assert type(hello[key]) is kind, (key, hello)
    assert hello["engine"] == {key: started[key] for key in hello["engine"]}
    assert hello["generation"] == shim.generation
    assert list(shim.marked()) == [started["pid"]]


WRONG_FRAMES = {
    "no object": b"null",
    "a list": b"[1]",
    "nested without end": b"[" * 100_000,
    "nested just too deeply to write again": b'{"op":"context","context":' + b"[" * 960 + b"]" * 960 + b"}",
    "a launch with a nested context": b'{"op":"launch","generation":2,"context":{"a":'
    + b"[" * 960
    + b"]" * 960
    + b"}}",
    "a nested id": b'{"op":"pids","id":' + b"[" * 960 + b"]" * 960 + b"}",
    "a signal too high": b'{"op":"signal","generation":1,"signal":65}',
    "a signal far too high": b'{"op":"signal","generation":1,"signal":18446744073709551616}',
    "a negative signal": b'{"op":"signal","generation":1,"signal":-1}',
    "a signal in words": b'{"op":"signal","generation":1,"signal":"TERM"}',
    "a generation in words": b'{"op":"kill-tree","generation":"1"}',
    "no generation": b'{"op":"kill-tree"}',
    "no context": b'{"op":"context"}',
    "an op that is none": b'{"op":["launch"]}',
}


@pytest.mark.parametrize("text", WRONG_FRAMES.values(), ids=WRONG_FRAMES.keys())
def test_a_wrong_message_costs_its_connection_at_most(shim: LoneShim, text: bytes) -> None:
    started = shim.launch(*SLEEP)
    wire, _ = shim.talk()
    wire.say(struct.pack(">I", len(text)) + text)
    check_hello(shim.expect_alive(), shim, started)


@pytest.mark.parametrize(
    "wrong",
    [
        {"argv": []},
        {"argv": "true"},
        {"argv": [1]},
        {"argv": None},
        {"env": []},
        {"env": {"PATH": 5}},
        {"env": {"A": None}},
        {"cwd": 5},
        {"user": [0]},
        {"user": ["root", 0, []]},
        {"user": [1 << 64, 0, []]},
        {"user": [-1, 0, []]},
        {"nice": "high"},
        {"nice": 1 << 64},
        {"oom_score_adjust": "much"},
        {"oom_score_adjust": [1]},
        {"rlimits": [1]},
        {"rlimits": {"core": 5}},
        {"rlimits": {"core": ["a", "b"]}},
        {"rlimits": {"core": [1 << 70, 1 << 70]}},
        {"context": 5},
    ],
    ids=str,
)
def test_a_launch_that_is_wrong_is_refused_and_the_next_one_works(
    shim: LoneShim, wrong: dict[str, Any]
) -> None:
    wire, hello = shim.talk()
    wire.send(**(shim.order(*SLEEP) | wrong))
    answer = wire.until("started", "refused")
    assert answer, shim.expect_alive()
    assert answer["op"] == "refused", answer
    assert answer["text"]
    assert shim.marked() == {}
    wire.send(**shim.order(*SLEEP))
    assert wire.until("started")
    wire.close()
    assert shim.expect_alive()["shim_pid"] == hello["shim_pid"]


@pytest.mark.parametrize("generation", ["1", None, True, 0, -1, 1.5, [1], {}], ids=str)
def test_a_launch_of_no_generation_starts_nothing(shim: LoneShim, generation: Any) -> None:
    wire, _ = shim.talk()
    answers = wire.say(packed({**shim.order(*SLEEP), "generation": generation}))
    assert [one["op"] for one in answers if one["op"] == "started"] == []
    assert shim.marked() == {}
    shim.launch(*SLEEP)


def test_a_low_limit_of_open_files_is_the_engines_alone(shim: LoneShim) -> None:
    for _ in range(2):
        wire, _ = shim.talk()
        wire.send(**(shim.order(*SLEEP) | {"rlimits": {"nofile": [5, 5]}}))
        assert wire.until("started", "refused")
        wire.send(op="kill-tree", generation=shim.generation)
        assert wire.until("tree-empty"), shim.expect_alive()
        wire.close()
    shim.launch(*SLEEP)


def test_a_message_without_end_is_not_kept(shim: LoneShim) -> None:
    started = shim.launch(*SLEEP)
    wire, _ = shim.talk()
    wire.say(struct.pack(">I", 2**32 - 1), *[b"x" * (1 << 20)] * 100)
    check_hello(shim.expect_alive(), shim, started)
    fields = tree.process_stat(shim.pid)
    assert fields
    assert int(fields[21]) * resource.getpagesize() < 100 << 20


def test_no_launch_ends_the_shim_or_starts_what_it_does_not_know(shim: LoneShim) -> None:
    right = shim.order(*SLEEP)

    @BOUNDED
    @given(mutated(right, most=3))
    def anything(message: dict[str, Any]) -> None:
        shim.generation += 1
        if message.get("generation") == right["generation"]:
            message["generation"] = shim.generation
        wire, before = shim.talk()
        wire.say(packed(message))
        hello = shim.expect_alive()
        assert hello["shim_pid"] == before["shim_pid"]
        assert set(shim.marked()) <= {hello["engine"]["pid"] if hello["engine"] else None}
        shim.generation = max(shim.generation, hello["generation"])
        shim.empty()
        assert shim.marked() == {}

    anything()


# --- What a shim finds when it takes over, and what its engine says ------------------------------------


def replace_shim(shim: LoneShim) -> dict[str, Any]:
    """Kill the shim and have another take over; its hello."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(shim.pid, signal.SIGKILL)
    assert shim.ended()
    wire = shim.make("adopt")
    wire.close()
    return shim.expect_alive()


def damaged(record: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """The file's content with something wrong in it."""
    return st.binary(max_size=30) | (mutated(record, most=3) | values).map(
        lambda value: json.dumps(value).encode()
    )


@pytest.mark.parametrize("file", ["started.json", "exit.json", "../../../chat.log.state"])
def test_a_damaged_record_does_not_keep_a_shim_from_its_engine(shim: LoneShim, file: str) -> None:
    shim.launch("/bin/false")
    wire, hello = shim.talk()
    assert hello["exit"] or wire.until("exited")
    started = shim.launch(*SLEEP)
    path = shim.directory / file
    right = path.read_bytes()

    @settings(BOUNDED, max_examples=80)
    @given(damaged(json.loads(right)))
    def anything(text: bytes) -> None:
        path.write_bytes(text)
        hello = replace_shim(shim)
        assert type(hello["generation"]) is int
        assert hello["exit"] is None or type(hello["exit"]["code"]) in (int, type(None))
        if hello["engine"]:
            assert all(isinstance(hello["engine"][key], kind) for key, kind in IDENTITY.items())
            assert hello["engine"]["pid"] == started["pid"]
        else:
            assert hello["left"] == 1
        assert list(shim.marked()) == [started["pid"]]

    anything()
    path.write_bytes(right)


def test_whatever_an_engine_notifies_is_passed_on_or_dropped(shim: LoneShim) -> None:
    relay = "import os, socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    relay += "l = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); l.bind(sys.argv[1])\n"
    relay += "while True: s.sendto(l.recv(65536), os.environ['NOTIFY_SOCKET'])"
    mouth = str(shim.home / "mouth")
    shim.launch(sys.executable, "-I", "-S", "-c", relay, mouth)
    said = st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace"))
    fields = st.lists(st.sampled_from(["READY=1", "STOPPING=1", "STATUS=\0", "=", "A=b", "MAINPID=0"]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        eventually(lambda: (shim.home / "mouth").exists())
        wire, _ = shim.talk()

        @settings(BOUNDED, max_examples=100)
        @given(said | fields.map("\n".join).map(str.encode), st.integers(0, 1000))
        def anything(datagram: bytes, number: int) -> None:
            line.sendto(datagram, mouth)
            line.sendto(b"ECHO=%d" % number, mouth)
            answers = []
            while not answers or answers[-1] != {"ECHO": str(number)}:
                message = wire.receive()
                assert message, shim.expect_alive()
                assert message["op"] == "notify"
                answers.append(message["fields"])
            assert all(isinstance(text, str) for one in answers for text in (*one, *one.values()))

        anything()
        wire.close()
