"""An embedding engine on the real vLLM, against sentence-transformers called directly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.acceptance.embeddings import NEIGHBOURS, TEXTS, differ, dot, run_python
from tests.acceptance.harness import Daemon, free_port

pytestmark = [pytest.mark.heavy, pytest.mark.vllm]

START = 300.0
TOLERANCE = 1e-5
"""In float32; vLLM computes attention and the mean in another order."""
LENGTH = 256
"""Tokens that the model was made for."""

OPENAI = """
import json, os, sys
import openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
made = client.embeddings.create(model="minilm", input=json.load(sys.stdin))
errors = {}
for name, asked in {
    "model": {"model": "other", "input": "a"},
    "wide": {"model": "minilm", "input": "a", "dimensions": 64},
    "long": {"model": "minilm", "input": "word " * 400},
}.items():
    try:
        client.embeddings.create(**asked)
    except openai.APIStatusError as error:
        errors[name] = [error.status_code, str(error)]
models = [model.id for model in client.models.list()]
vectors = [one.embedding for one in made.data]
json.dump({"models": models, "vectors": vectors, "errors": errors}, sys.stdout)
"""


@dataclass(frozen=True)
class Engine:
    """The engine that the tests of this module share."""

    daemon: Daemon
    url: str

    async def ask(self, path: str, **body: Any) -> Any:
        """The answer to a POST."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + path, json={"model": "minilm"} | body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json()


@pytest.fixture(scope="module")
def engine(vllm_python: str, minilm: str) -> Iterator[Engine]:
    """A daemon with one embedding engine whose interpreter has vLLM alone, ready."""
    daemon = Daemon({"HF_HUB_OFFLINE": "1"})
    port = free_port()
    daemon.configure(
        f"""
        [defaults.embedding]
        python = {json.dumps(vllm_python)}
        [engines.embed]
        kind = "embedding"
        model = {json.dumps(minilm)}
        served_model_name = "minilm"
        port = {port}
        restart = {{ delay = 0, limit = 0 }}
        """
    )
    try:
        daemon.start()
        daemon.client.start("embed")
        daemon.until_state("embed", "ready", "failed", timeout=START)
        assert daemon.show("embed")["substate"] == "ready", daemon.cli("logs", "embed").stdout
        yield Engine(daemon, f"http://127.0.0.1:{port}")
        daemon.terminate()  # killed with its shim it would leave shared memory behind
    finally:
        daemon.close()


def test_automatic_choice_says_that_it_took_vllm(engine: Engine) -> None:
    """`sagectl explain` of an engine with `backend = "auto"` whose interpreter has vLLM.

    Result: the back end, its version, and where it runs.
    """
    assert "backend vllm 0.32" in engine.daemon.cli("explain", "embed").stdout


async def test_embeddings_equal_those_of_sentence_transformers(
    engine: Engine, directly: dict[str, Any]
) -> None:
    """The texts, each on its own and all at once.

    Result: the vectors that sentence-transformers computes from the same weights.
    """
    answer = await engine.ask("/v1/embeddings", input=list(TEXTS))
    for one, expected in zip(answer["data"], directly["vectors"], strict=True):
        assert differ(one["embedding"], expected) < TOLERANCE
    assert answer["usage"]["prompt_tokens"] == sum(map(len, directly["tokens"]))


async def test_nearest_neighbours_make_sense(engine: Engine) -> None:
    """Three pairs of sentences on three subjects.

    Result: the nearest of each is the other one on its subject.
    """
    answer = await engine.ask("/v1/embeddings", input=list(TEXTS[:6]))
    vectors = [one["embedding"] for one in answer["data"]]
    for one, other in NEIGHBOURS:
        others = [index for index in range(6) if index != one]
        assert max(others, key=lambda index: dot(vectors[one], vectors[index])) == other


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_reranking_puts_the_relevant_document_first(engine: Engine, path: str) -> None:
    """Documents about three subjects, and a question about one.

    Result: sorted by relevance, the fitting one first, each with its place in the request.
    """
    documents = [TEXTS[4], TEXTS[2], TEXTS[0]]
    answer = await engine.ask(path, query="What does the central bank do?", documents=documents, top_n=2)
    assert len(answer["results"]) == 2
    assert answer["results"][0]["index"] == 1
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True)


async def test_scores_are_the_cosines_of_the_embeddings(engine: Engine, directly: dict[str, Any]) -> None:
    """A text scored against two others.

    Result: what one computes from the vectors by hand.
    """
    answer = await engine.ask("/v1/score", text_1=TEXTS[0], text_2=[TEXTS[1], TEXTS[2]])
    vectors = directly["vectors"]
    expected = [dot(vectors[0], vectors[1]), dot(vectors[0], vectors[2])]
    assert differ([one["score"] for one in answer["data"]], expected) < TOLERANCE * 10


def test_the_openai_client_works_and_bad_requests_are_400(
    engine: Engine, transformers_python: str, directly: dict[str, Any]
) -> None:
    """The real client: embeddings, an unknown model, `dimensions` of a model without, a text too long.

    Result: the same vectors; 404, 400 and 400 with words that say why.
    """
    answer = run_python(transformers_python, OPENAI, f"{engine.url}/v1", given=list(TEXTS))
    assert answer["models"] == ["minilm"]
    for vector, expected in zip(answer["vectors"], directly["vectors"], strict=True):
        assert differ(vector, expected) < TOLERANCE
    errors = answer["errors"]
    assert errors["model"][0] == 404
    assert errors["wide"][0] == 400
    assert "Matryoshka" in errors["wide"][1]
    assert errors["long"][0] == 400
    assert str(LENGTH) in errors["long"][1]
