"""The estimator on a checkpoint of 400 tensors in four files: reading it, and reckoning with it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from sagectl.plugin import (
    CheckpointFacts,
    CheckpointQuery,
    EngineRequest,
    Facts,
    FileFacts,
    InterpreterFacts,
    InterpreterQuery,
    MemoryEstimate,
    estimate,
)
from sagectl.system import checkpoints
from sagectl_llm import LlmKind
from sagectl_llm.options import LlmOptions
from sagectl_models import architecture
from sagectl_models.blueprint import tensors_of
from tests.benchmarks.lab import Figures, sized
from tests.models import config, described, write_model


def milliseconds(work: Callable[[], object]) -> str:
    """Median and extremes of many calls."""
    taken = []
    for _ in range(sized(200, 10)):
        begin = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - begin))
    return f"{statistics.median(taken):.2f} ms (min {min(taken):.2f}, max {max(taken):.2f}, n {len(taken)})"


def test_estimate_of_400_tensors(figures: Figures, tmp_path: Path) -> None:
    name, layers = "Qwen2.5-7B-Instruct", 33
    found = architecture.read(described(name, num_hidden_layers=layers))
    assert found is not None
    tensors = tensors_of(found)
    write_model(tmp_path / "m", config(name, num_hidden_layers=layers), tensors, files=4)
    query = CheckpointQuery(str(tmp_path / "m"), "/models")
    text = milliseconds(lambda: checkpoints.read(query, {}))
    figures.add(f"headers of {len(tensors)} tensors in 4 files read", text, "under 20 ms")
    facts = checkpoints.read(query, {})
    assert len(facts.tensors) == len(tensors)
    for what, options in (
        ("one layout", LlmOptions(backend="vllm")),
        ("all layouts", LlmOptions(backend="vllm", tensor_parallel_size="auto")),
    ):
        text = milliseconds(_estimator(str(tmp_path / "m"), options, facts))
        figures.add(f"memory estimated from {len(tensors)} tensors, {what}", text, "under 20 ms")


def _estimator(model: str, options: LlmOptions, found: CheckpointFacts) -> Callable[[], object]:
    kind = LlmKind()
    request = EngineRequest(
        name="chat",
        model=model,
        host="127.0.0.1",
        port=8001,
        gpu_ids=None,
        python="/python",
        options=options,
        probe=None,
        models_dir="/models",
        state_dir="/state",
        gpus=None,
    )

    def answer(query: object) -> FileFacts | InterpreterFacts | CheckpointFacts:
        if isinstance(query, InterpreterQuery):
            return InterpreterFacts(dict.fromkeys(query.modules, "1.0"))
        return found if isinstance(query, CheckpointQuery) else FileFacts("file")

    facts = Facts({query: answer(query) for query in kind.facts(request)})
    assert isinstance(estimate(kind, request, facts), MemoryEstimate)
    return lambda: estimate(kind, request, facts)
