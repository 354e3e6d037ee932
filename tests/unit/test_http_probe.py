from __future__ import annotations

import gzip
import json

import pytest

from sagectl.plugin import HttpProbe
from sagectl.system.http_probe import (
    MAX_BODY,
    Answer,
    MalformedResponse,
    ResponseReader,
    judge,
    request_bytes,
    resolve,
)

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n7;name=value\r\n, world\r\n0\r\nTrailer: x\r\n\r\n"
)


@pytest.mark.parametrize(
    ("raw", "body", "keep_alive"),
    [
        (PLAIN, b"hello", True),
        (CHUNKED, b"hello, world", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length:0\r\nConnection: close\r\n\r\n", b"", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive\r\n\r\nok", b"ok", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + PLAIN, b"hello", True),
        (PLAIN + b"surplus", b"hello", False),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 100000])
def test_a_response_is_read_however_it_is_cut(raw: bytes, body: bytes, keep_alive: bool, step: int) -> None:
    reader = ResponseReader()
    pieces = [raw[i : i + step] for i in range(0, len(raw), step)]
    done = False
    for piece in pieces:
        done = reader.feed(piece)
        if done:
            break
    assert done
    assert bytes(reader.body) == body
    if step == 100000 or not raw.endswith(b"surplus"):
        assert reader.keep_alive == keep_alive


def test_a_body_without_length_ends_with_the_connection() -> None:
    reader = ResponseReader()
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert not reader.feed(b" world")
    assert reader.end()
    assert bytes(reader.body) == b"hello world"
    assert not reader.keep_alive


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel", CHUNKED[:-5]]
)
def test_a_connection_closed_in_the_middle_is_no_answer(raw: bytes) -> None:
    reader = ResponseReader()
    assert not reader.feed(raw)
    assert not reader.end()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 70000,
    ],
)
def test_what_is_not_http_is_said_to_be_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedResponse):
        ResponseReader().feed(raw)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
    ],
)
def test_a_huge_body_is_judged_by_its_first_mebibyte(head: bytes) -> None:
    reader = ResponseReader()
    assert not reader.feed(head)
    fed = 0
    while not reader.feed(b"x" * 65536):
        fed += 65536
        assert fed <= MAX_BODY
    assert MAX_BODY <= len(reader.body) <= MAX_BODY + 65536
    assert not reader.keep_alive


def test_an_answer_to_head_has_no_body() -> None:
    reader = ResponseReader("HEAD")
    assert reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    assert reader.keep_alive


BODY = json.dumps({"choices": [{"message": {"content": "hi"}}], "n": 0, "no": None, "empty": []}).encode()


@pytest.mark.parametrize(
    ("probe", "answer", "why"),
    [
        (HttpProbe("/"), Answer(200), None),
        (HttpProbe("/"), Answer(399), None),
        (HttpProbe("/"), Answer(503, b"loading\n the model"), "GET / answered 503: loading the model"),
        (HttpProbe("/"), Answer(404), "GET / answered 404"),
        (HttpProbe("/"), Answer(101), "GET / answered 101"),
        (HttpProbe("/", contains="ok"), Answer(200, b"all ok"), None),
        (HttpProbe("/", contains="ok"), Answer(200, b"no"), "GET / answered 200 without 'ok' in its body"),
        (HttpProbe("/", json_path=("choices", 0, "message")), Answer(200, BODY), None),
        (
            HttpProbe("/", json_path=("choices", 1)),
            Answer(200, BODY),
            "GET / answered 200, but choices.1 is missing",
        ),
        (
            HttpProbe("/", json_path=("n", "x")),
            Answer(200, BODY),
            "GET / answered 200, but n.x is missing",
        ),
        (HttpProbe("/", json_path=("n",)), Answer(200, BODY), "GET / answered 200, but n is 0"),
        (HttpProbe("/", json_path=("no",)), Answer(200, BODY), "GET / answered 200, but no is null"),
        (HttpProbe("/", json_path=("empty",)), Answer(200, BODY), "GET / answered 200, but empty is []"),
        (
            HttpProbe("/", json_path=("n",)),
            Answer(200, gzip.compress(b"{}")),
            "GET / answered 200, but its body is not JSON",
        ),
    ],
)
def test_an_answer_is_judged(probe: HttpProbe, answer: Answer, why: str | None) -> None:
    assert judge(probe, answer) == why


def test_a_request_carries_host_and_body() -> None:
    raw = request_bytes(HttpProbe("/v1/x?y=1", method="POST", body='{"é": 1}'), "::1", 8001)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[:2] == [b"POST /v1/x?y=1 HTTP/1.1", b"Host: [::1]:8001"]
    assert b"Content-Type: application/json" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"é": 1}


def test_who_listens_everywhere_is_probed_on_loopback() -> None:
    assert resolve("0.0.0.0", 80)[0][1] == ("127.0.0.1", 80)
    assert resolve("::", 80)[0][1][0] == "::1"


@pytest.mark.parametrize(
    ("env", "header"),
    [
        ({"KEY": "s3cret"}, b"\r\nAuthorization: Bearer s3cret\r\n"),
        ({"KEY": " padded\n"}, b"\r\nAuthorization: Bearer padded\r\n"),
        ({}, None),
        ({"KEY": ""}, None),
        ({"KEY": "a\r\nInjected: yes"}, None),
        ({"KEY": "schlüssel"}, None),
    ],
)
def test_a_secret_is_sent_from_the_engines_environment(env: dict[str, str], header: bytes | None) -> None:
    raw = request_bytes(HttpProbe("/v1/models", bearer_env="KEY"), "127.0.0.1", 8001, env)
    assert (header in raw) if header else (b"Authorization" not in raw and b"Injected" not in raw)


def test_no_secret_is_sent_unless_the_probe_asks_for_it() -> None:
    assert b"Authorization" not in request_bytes(
        HttpProbe("/health"), "127.0.0.1", 8001, {"": "x", "KEY": "y"}
    )
