"""The kind `embedding`: what it says it needs of GPUs, and what it makes of what it is granted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sagectl.plugin import (
    KV_CACHE,
    WEIGHTS,
    CheckpointFacts,
    CheckpointQuery,
    EngineRequest,
    Facts,
    FileFacts,
    FileQuery,
    GpuGrant,
    InterpreterFacts,
    LaunchPlan,
    MemoryEstimate,
    Refusal,
)
from sagectl_embedding import EmbeddingKind
from sagectl_embedding.options import EmbeddingOptions
from tests.models import described

KIND = EmbeddingKind()
GIB = 1 << 30
BGE = described("bge-small-en-v1.5")
QWEN = described("Qwen2.5-0.5B-Instruct")


def request(options: EmbeddingOptions | None = None, **changes: Any) -> EngineRequest[EmbeddingOptions]:
    values: dict[str, Any] = {
        **{"name": "embed", "model": "BAAI/bge", "host": "127.0.0.1", "port": 8090, "gpu_ids": None},
        **{"gpus": None, "python": "/envs/embed/bin/python", "options": options or EmbeddingOptions()},
        **{"probe": None, "models_dir": "/models", "state_dir": "/state/embed"},
    }
    return EngineRequest(**(values | changes))


def gathered(asked: EngineRequest[EmbeddingOptions], found: CheckpointFacts) -> Facts:
    answers: dict[Any, Any] = {}
    for query in KIND.facts(asked):
        if isinstance(query, CheckpointQuery):
            answers[query] = found
        elif isinstance(query, FileQuery):
            answers[query] = FileFacts("missing")
        else:
            answers[query] = InterpreterFacts(dict.fromkeys(query.modules, "6.2.0"), version="3.12.1")
    return Facts(answers)


def estimated(asked: EngineRequest[EmbeddingOptions], found: CheckpointFacts = BGE) -> MemoryEstimate:
    answer = KIND.estimate(asked, gathered(asked, found))
    assert isinstance(answer, MemoryEstimate), answer
    return answer


def planned(asked: EngineRequest[EmbeddingOptions]) -> LaunchPlan:
    plan = KIND.plan(asked, gathered(asked, BGE))
    assert isinstance(plan, LaunchPlan), plan
    return plan


VLLM = EmbeddingOptions(backend="vllm")


def test_bge_small_needs_little() -> None:
    found = estimated(request())
    (shape,) = found.shapes
    assert shape.part(WEIGHTS) == 133_440_000
    assert shape.part(KV_CACHE) == 0
    assert GIB < shape.sizes[0] < 2 * GIB  # most of it CUDA's own and one batch
    assert not found.elastic
    (pooling,) = estimated(request(VLLM)).shapes
    assert pooling.part(WEIGHTS) == 133_440_000 // 2  # vLLM computes in 16 bits
    assert pooling.part(KV_CACHE) == 0
    assert pooling.sizes[0] < 2 * GIB


def test_larger_batches_need_more() -> None:
    small, large = (
        estimated(request(EmbeddingOptions(max_batch_tokens=tokens))).shapes[0].sizes
        for tokens in (4096, 65536)
    )
    assert small < large
    half = estimated(request(EmbeddingOptions(dtype="float16"))).shapes[0]
    assert half.part(WEIGHTS) == 133_440_000  # loaded as stored, converted on the GPU
    assert half.sizes < estimated(request()).shapes[0].sizes


def test_a_decoder_in_vllm_has_a_cache() -> None:
    found = estimated(request(EmbeddingOptions(backend="vllm", max_input_tokens=8192)), QWEN)
    assert found.elastic
    assert found.shapes[0].part(KV_CACHE) == (8192 + 64) * 12288
    asked = request(EmbeddingOptions(backend="vllm", tensor_parallel_size=4))
    answer = KIND.estimate(asked, gathered(asked, QWEN))
    assert isinstance(answer, Refusal)
    assert "14 attention heads" in answer.reason


@pytest.mark.parametrize(
    "changes", [{"gpus": 0}, {"gpu_ids": ()}, {"options": EmbeddingOptions(device="cpu")}]
)
def test_on_the_cpu_nothing_is_read_and_nothing_needed(changes: dict[str, Any]) -> None:
    asked = request(**changes)
    assert not any(isinstance(query, CheckpointQuery) for query in KIND.facts(asked))
    assert [shape.ranks for shape in estimated(asked).shapes] == [()]


def test_a_model_of_which_nothing_is_known_says_so() -> None:
    found = estimated(request(), CheckpointFacts(error="BAAI/bge is not on this machine"))
    assert not found.exact
    assert "set gpu_memory" in found.notes[0]
    assert found.shapes[0].sizes[0] > 0


GRANT = GpuGrant((1,), (2 * GIB,), (80 * GIB,), kv_cache=GIB // 2)


def test_our_server_is_capped_by_its_grant() -> None:
    plan = planned(request(gpu_ids=(1,), grant=GRANT))
    share = float(plan.env["SAGECTL_GPU_MEMORY_FRACTION"])
    assert share * 80 * GIB < 2 * GIB - 600 * (1 << 20)
    assert "SAGECTL_GPU_MEMORY_FRACTION" not in planned(request(gpu_ids=(1,))).env
    assert "SAGECTL_GPU_MEMORY_FRACTION" not in planned(request(gpu_ids=())).env


def test_vllm_keeps_within_its_grant() -> None:
    plan = planned(request(VLLM, gpu_ids=(1,), grant=GRANT))
    assert plan.argv[plan.argv.index("--gpu-memory-utilization") + 1] == "0.025"
    assert plan.argv[plan.argv.index("--kv-cache-memory-bytes") + 1] == str(GIB // 2)
    own = planned(
        request(EmbeddingOptions(backend="vllm", gpu_memory_utilization=0.3), gpu_ids=(1,), grant=GRANT)
    )
    assert own.argv.count("--gpu-memory-utilization") == 1
    assert "--kv-cache-memory-bytes" not in own.argv


@pytest.mark.parametrize(("share", "cards"), [("0.25", 2), (None, 2), ("0.25", 0)])
def test_the_server_limits_torch_on_each_gpu(
    share: str | None, cards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch is a stand-in: where there is no GPU the real one cannot be told a limit."""
    from sagectl_embedding.server.main import _limit_gpu_memory

    limits: list[tuple[float, int]] = []
    cuda = SimpleNamespace(
        is_available=lambda: cards > 0,
        device_count=lambda: cards,
        set_per_process_memory_fraction=lambda fraction, device: limits.append((fraction, device)),
    )
    monkeypatch.delenv("SAGECTL_GPU_MEMORY_FRACTION", raising=False)
    if share is not None:
        monkeypatch.setenv("SAGECTL_GPU_MEMORY_FRACTION", share)
    _limit_gpu_memory(SimpleNamespace(cuda=cuda))
    assert limits == ([(0.25, 0), (0.25, 1)] if share and cards else [])
