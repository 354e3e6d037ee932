"""An embedding engine under a real sagectld, against sentence-transformers called directly."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.acceptance.embeddings import NEIGHBOURS, TEXTS, differ, dot, run_python
from tests.acceptance.harness import Daemon, free_port, kill

pytestmark = pytest.mark.heavy

START = 180.0
TOLERANCE = 1e-5
NAME = "minilm"

# The real client, in the engine's interpreter too, because ours has no openai.
OPENAI = """
import json, sys
import openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
texts = json.load(sys.stdin)
made = client.embeddings.create(model="minilm", input=texts)
floats = client.embeddings.create(model="minilm", input=texts, encoding_format="float", user="somebody")
short = client.embeddings.create(model="minilm", input=texts[0], dimensions=64)
errors = {}
for name, asked in {
    "empty": {"model": "minilm", "input": ""},
    "model": {"model": "gpt-none", "input": "a"},
    "many": {"model": "minilm", "input": ["a"] * 2049},
    "wide": {"model": "minilm", "input": "a", "dimensions": 4096},
}.items():
    try:
        client.embeddings.create(**asked)
    except openai.APIStatusError as error:
        errors[name] = [type(error).__name__, error.status_code, error.code, error.body["message"]]
json.dump({
    "models": [model.id for model in client.models.list()],
    "vectors": [one.embedding for one in made.data],
    "floats": [one.embedding for one in floats.data],
    "short": short.data[0].embedding,
    "order": [one.index for one in made.data],
    "usage": made.usage.prompt_tokens,
    "errors": errors,
}, sys.stdout)
"""


@dataclass(frozen=True)
class Engine:
    """The engine that the tests of this module share."""

    daemon: Daemon
    port: int
    url: str


@pytest.fixture(scope="module")
def engine(transformers_python: str, minilm: str) -> Iterator[Engine]:
    """A daemon with one embedding engine, ready."""
    daemon = Daemon({"HF_HUB_OFFLINE": "1"})
    port = free_port()
    daemon.configure(
        f"""
        [defaults.embedding]
        python = {json.dumps(transformers_python)}

        [engines.embed]
        kind = "embedding"
        model = {json.dumps(minilm)}
        served_model_name = "{NAME}"
        port = {port}
        autostart = true
        threads = 1
        matryoshka = true
        probe = {{ interval = 0.2, timeout = 5 }}
        restart = {{ delay = 0 }}
        stop = {{ drain = 0, timeout = 120 }}
        """
    )
    try:
        daemon.start()
        daemon.until_state("embed", "ready", "failed", timeout=START)
        assert daemon.show("embed")["substate"] == "ready", daemon.cli("logs", "embed").stdout
        yield Engine(daemon, port, f"http://127.0.0.1:{port}")
    finally:
        daemon.close()


async def ask(engine: Engine, **fields: Any) -> tuple[int, dict[str, Any]]:
    """POST /v1/embeddings."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine.url}/v1/embeddings", json={"model": NAME} | fields) as answer,
    ):
        return answer.status, await answer.json()


async def embedded(engine: Engine, given: Any, **fields: Any) -> list[list[float]]:
    """The vectors, in order."""
    status, answer = await ask(engine, input=given, **fields)
    assert status == 200, answer
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return [one["embedding"] for one in answer["data"]]


async def figures(engine: Engine) -> dict[str, float]:
    """What /metrics says, by name with labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


async def until(engine: Engine, name: str, value: float) -> None:
    """Wait until a figure is at least this."""
    async with asyncio.timeout(30):
        while (await figures(engine)).get(name, 0) < value:  # noqa: ASYNC110 - it can only be asked
            await asyncio.sleep(0.01)


async def test_embeddings_equal_those_of_sentence_transformers(
    engine: Engine, directly: dict[str, Any]
) -> None:
    found = await embedded(engine, list(TEXTS))
    for vector, expected in zip(found, directly["vectors"], strict=True):
        assert differ(vector, expected) < TOLERANCE


async def test_base64_carries_the_same_numbers(engine: Engine, directly: dict[str, Any]) -> None:
    status, answer = await ask(engine, input=list(TEXTS), encoding_format="base64")
    assert status == 200
    for one, expected in zip(answer["data"], directly["vectors"], strict=True):
        raw = base64.b64decode(one["embedding"])
        assert differ(struct.unpack(f"<{len(raw) // 4}f", raw), expected) < TOLERANCE


async def test_token_ids_mean_their_text_and_are_counted(engine: Engine, directly: dict[str, Any]) -> None:
    status, answer = await ask(engine, input=directly["tokens"])
    assert status == 200
    for one, expected in zip(answer["data"], directly["vectors"], strict=True):
        assert differ(one["embedding"], expected) < TOLERANCE
    count = sum(map(len, directly["tokens"]))
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    (single,) = await embedded(engine, directly["tokens"][0])
    assert differ(single, directly["vectors"][0]) < TOLERANCE


async def test_nearest_neighbours_make_sense(engine: Engine) -> None:
    vectors = await embedded(engine, list(TEXTS[:6]))
    for one, other in NEIGHBOURS:
        for index in (one, other):
            others = [n for n in range(6) if n != index]
            nearest = max(others, key=lambda n: dot(vectors[index], vectors[n]))
            assert {index, nearest} == {one, other}


async def test_shorter_dimensions_are_cut_and_made_unit_vectors_again(
    engine: Engine, directly: dict[str, Any]
) -> None:
    (short,) = await embedded(engine, TEXTS[0], dimensions=64)
    cut = directly["vectors"][0][:64]
    length = dot(cut, cut) ** 0.5
    assert differ(short, [value / length for value in cut]) < TOLERANCE


async def test_the_openai_client_works(
    engine: Engine, transformers_python: str, directly: dict[str, Any]
) -> None:
    answer = await asyncio.to_thread(
        run_python, transformers_python, OPENAI, f"{engine.url}/v1", given=list(TEXTS)
    )
    assert answer["models"] == [NAME]
    assert answer["order"] == list(range(len(TEXTS)))
    assert answer["usage"] == sum(map(len, directly["tokens"]))
    for kind in ("vectors", "floats"):
        for vector, expected in zip(answer[kind], directly["vectors"], strict=True):
            assert differ(vector, expected) < TOLERANCE
    assert len(answer["short"]) == 64
    errors = answer["errors"]
    assert errors["empty"][:2] == ["BadRequestError", 400]
    assert errors["model"][:3] == ["NotFoundError", 404, "model_not_found"]
    assert errors["many"][:3] == ["APIStatusError", 413, "request_too_large"]
    assert errors["wide"][:2] == ["BadRequestError", 400]


async def test_64_clients_get_their_own_embeddings_from_shared_batches(
    engine: Engine, directly: dict[str, Any]
) -> None:
    before = await figures(engine)

    async def client(number: int) -> None:
        for turn in range(3):
            index = (number + turn) % len(TEXTS)
            (vector,) = await embedded(engine, TEXTS[index])
            assert differ(vector, directly["vectors"][index]) < TOLERANCE

    await asyncio.gather(*(client(number) for number in range(64)))
    after = await figures(engine)
    inputs = after["embedding_inputs_total"] - before["embedding_inputs_total"]
    batches = after["embedding_batch_inputs_count"] - before["embedding_batch_inputs_count"]
    assert inputs == 64 * 3
    assert batches < inputs / 2
    assert after["embedding_queue_inputs"] == 0


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[1]", 400, None),
        (b'{"model": "minilm"}', 400, "input"),
        (b'{"model": "minilm", "input": []}', 400, "input"),
        (b'{"model": "minilm", "input": ["a", 1]}', 400, "input"),
        (b'{"model": "minilm", "input": [[1], [30522]]}', 400, "input"),
        (b'{"model": "minilm", "input": "a", "encoding_format": "int8"}', 400, "encoding_format"),
        (b'{"model": "minilm", "input": "a", "dimensions": 385}', 400, "dimensions"),
        (b'{"model": "minilm", "input": "\\ud800"}', 400, "input"),
        (b'{"input": "a"}', 400, "model"),
        (b'{"model": "other", "input": "a"}', 404, "model"),
        (json.dumps({"model": NAME, "input": "word " * 400}).encode(), 400, "input"),
        (json.dumps({"model": NAME, "input": "a" * 20000}).encode(), 413, "input"),
        (json.dumps({"model": NAME, "input": ["a"] * 2049}).encode(), 413, "input"),
        (b" " * (33 << 20), 413, None),
    ],
    ids=lambda value: value[:40].decode() if isinstance(value, bytes) else str(value),
)
async def test_a_bad_request_is_answered_in_openais_shape_and_harms_nobody(
    engine: Engine, body: bytes, status: int, param: str | None
) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine.url}/v1/embeddings", data=body) as answer,
    ):
        assert answer.status == status
        error = (await answer.json())["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert (await ask(engine, input="a"))[0] == 200


async def test_a_client_that_leaves_takes_its_inputs_with_it(engine: Engine) -> None:
    before = await figures(engine)
    asked = asyncio.create_task(ask(engine, input=["A sentence of some words."] * 2000))
    await until(engine, "embedding_queue_inputs", 1)
    asked.cancel()
    withdrawn = "embedding_withdrawn_inputs_total"
    await until(engine, withdrawn, before[withdrawn] + 1)
    after = await figures(engine)
    assert after["embedding_queue_inputs"] == 0
    assert (await ask(engine, input="a"))[0] == 200


async def test_more_than_may_wait_is_refused_with_the_time_to_come_again(engine: Engine) -> None:
    asked = [asyncio.create_task(ask(engine, input=["Some words."] * 2048)) for _ in range(2)]
    await until(engine, "embedding_requests_in_flight", 2)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine.url}/v1/embeddings", json={"model": NAME, "input": "a"}) as answer,
    ):
        assert answer.status == 503
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert (await answer.json())["error"]["code"] == "overloaded"
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await until(engine, 'embedding_requests_total{status="499"}', 3)


def test_it_sees_no_gpu(engine: Engine) -> None:
    pid = engine.daemon.show("embed")["pid"]
    assert b"CUDA_VISIBLE_DEVICES=" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


async def test_killed_it_is_restarted_on_its_port_and_serves(engine: Engine) -> None:
    daemon = engine.daemon
    before = daemon.show("embed")
    assert before["pid"] is not None
    kill(before["pid"])
    again = await asyncio.to_thread(
        daemon.until,
        "embed",
        lambda e: e["substate"] == "ready" and e["pid"] != before["pid"],
        "restarted",
        START,
    )
    assert again["restart_count"] == before["restart_count"] + 1
    assert (await ask(engine, input="a"))[0] == 200


async def test_a_stop_finishes_the_requests_in_flight(engine: Engine) -> None:
    large = asyncio.create_task(ask(engine, input=["A sentence of some words."] * 300))
    small = [asyncio.create_task(ask(engine, input=f"text {number}")) for number in range(8)]
    await until(engine, "embedding_requests_in_flight", 9)
    stop = asyncio.create_task(asyncio.to_thread(engine.daemon.cli, "stop", "embed"))
    statuses = [status for status, _ in await asyncio.gather(large, *small)]
    assert statuses == [200] * 9
    assert (await stop).returncode == 0
    stopped = engine.daemon.show("embed")
    assert (stopped["state"], stopped["last_exit_code"]) == ("inactive", 0)
