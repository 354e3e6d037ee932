"""The kind `llm`: what it says it needs of GPUs, and what it makes of what it is granted."""

from __future__ import annotations

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
    InterpreterQuery,
    LaunchPlan,
    MemoryEstimate,
    Refusal,
)
from sagectl_llm import LlmKind
from sagectl_llm.estimates import LEAST
from sagectl_llm.options import LlmOptions
from tests.models import described

KIND = LlmKind()
GIB = 1 << 30
MODEL = "Qwen/Qwen2.5-7B-Instruct"
FILES = {MODEL: described("Qwen2.5-7B-Instruct")}


def request(options: LlmOptions | None = None, **changes: Any) -> EngineRequest[LlmOptions]:
    values: dict[str, Any] = {
        **{"name": "chat", "model": MODEL, "host": "127.0.0.1", "port": 8001, "gpu_ids": None, "gpus": None},
        **{"python": "/envs/vllm/bin/python", "options": options or LlmOptions(backend="vllm")},
        **{"probe": None, "models_dir": "/models", "state_dir": "/state/chat"},
    }
    return EngineRequest(**(values | changes))


def gathered(
    asked: EngineRequest[LlmOptions], found: CheckpointFacts | None = None, torch: str = "2.13.0"
) -> Facts:
    answers: dict[Any, Any] = {}
    for query in KIND.facts(asked):
        if isinstance(query, InterpreterQuery):
            versions = dict.fromkeys(query.modules, "5.23.0") | {"vllm": "0.32.0", "torch": torch}
            answers[query] = InterpreterFacts({m: versions[m] for m in query.modules})
        elif isinstance(query, FileQuery):
            answers[query] = FileFacts("missing")
        elif isinstance(query, CheckpointQuery):
            missing = CheckpointFacts(error=f"{query.model} is not on this machine")
            answers[query] = found or FILES.get(query.model, missing)
    return Facts(answers)


def estimated(asked: EngineRequest[LlmOptions], *known: Any, **more: Any) -> MemoryEstimate:
    answer = KIND.estimate(asked, gathered(asked, *known, **more))
    assert isinstance(answer, MemoryEstimate), answer
    return answer


def planned(asked: EngineRequest[LlmOptions], *known: Any, **more: Any) -> LaunchPlan:
    plan = KIND.plan(asked, gathered(asked, *known, **more))
    assert isinstance(plan, LaunchPlan), plan
    return plan


def vllm(**options: Any) -> LlmOptions:
    return LlmOptions(backend="vllm", **options)


def value_of(plan: LaunchPlan, flag: str) -> str | None:
    assert plan.argv.count(flag) < 2
    return plan.argv[plan.argv.index(flag) + 1] if flag in plan.argv else None


# --- what it needs -------------------------------------------------------------------------------


def test_one_gpu_holds_the_weights_and_one_sequence() -> None:
    found = estimated(request(vllm(max_model_len=8192)))
    (shape,) = found.shapes
    assert len(shape.ranks) == 1
    assert shape.part(WEIGHTS) == 2 * 7_615_616_512
    assert shape.part(KV_CACHE) == (8192 + 64) * 57344
    assert (found.context, found.kv_per_token, found.elastic) == (8192, 57344, True)
    assert MODEL in found.filed_under


def test_the_models_own_context_counts_where_none_is_set() -> None:
    assert estimated(request()).context == 32768
    assert estimated(request(vllm(max_model_len="auto"))).context == 8192
    assert estimated(request(vllm(extra_args=("--max-model-len=16k",)))).context == 16000


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({"gpus": 2}, 2),
        ({"gpu_ids": (3, 1)}, 2),
        ({"options": vllm(tensor_parallel_size=4)}, 4),
        ({"options": vllm(tensor_parallel_size=2, pipeline_parallel_size=2)}, 4),
        ({"options": vllm(pipeline_parallel_size=2), "gpus": 4}, 4),
    ],
)
def test_as_many_ranks_as_are_declared(changes: dict[str, Any], ranks: int) -> None:
    (shape,) = estimated(request(**changes)).shapes
    assert len(shape.ranks) == shape.tensor_parallel * shape.pipeline_parallel == ranks


def test_automatic_parallelism_prefers_few_gpus() -> None:
    auto = vllm(tensor_parallel_size="auto")
    found = estimated(request(auto))
    layouts = [(shape.tensor_parallel, shape.pipeline_parallel) for shape in found.shapes]
    assert layouts[:6] == [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]
    assert any("28 attention heads" in note for note in found.notes)
    assert [s.tensor_parallel for s in estimated(request(auto, gpus=2)).shapes] == [2, 1]
    both = vllm(tensor_parallel_size="auto", pipeline_parallel_size=2)
    assert all(shape.pipeline_parallel == 2 for shape in estimated(request(both)).shapes)


def test_what_cannot_be_divided_is_refused_before_minutes_of_loading() -> None:
    asked = request(vllm(tensor_parallel_size=8))
    answer = KIND.estimate(asked, gathered(asked))
    assert isinstance(answer, Refusal)
    assert "28 attention heads cannot be divided by 8" in answer.reason
    none = request(vllm(tensor_parallel_size="auto", pipeline_parallel_size=5), gpus=7)
    answer = KIND.estimate(none, gathered(none))
    assert isinstance(answer, Refusal)
    assert "7 GPUs in 5 stages" in answer.reason


def test_nothing_is_read_and_nothing_needed_without_a_gpu() -> None:
    for changes in (
        {"gpu_ids": ()},
        {"gpus": 0},
        {"options": LlmOptions(device="cpu", backend="transformers")},
    ):
        asked = request(**changes)
        assert not any(isinstance(query, CheckpointQuery) for query in KIND.facts(asked))
        assert [shape.ranks for shape in estimated(asked).shapes] == [()]
    assert [shape.ranks for shape in estimated(request(), torch="2.13.0+cpu").shapes] == [()]


def test_no_engine_is_smaller_than_two_gib() -> None:
    tiny = described("Qwen2.5-0.5B-Instruct", num_hidden_layers=1, vocab_size=256)
    small = vllm(max_model_len=512, enforce_eager=True, max_num_batched_tokens=512, max_num_seqs=4)
    for options in (small, LlmOptions(backend="transformers", max_model_len=512)):
        (shape,) = estimated(request(options), tiny).shapes
        assert shape.sizes == (LEAST,)


def test_the_users_own_share_of_the_card_is_told_to_placement() -> None:
    assert estimated(request(vllm(gpu_memory_utilization=0.6))).share == 0.6
    assert estimated(request(vllm(extra_args=("--gpu-memory-utilization", "0.5")))).share == 0.5
    assert estimated(request()).share is None


def test_sizes_of_the_cache_and_of_quantised_weights() -> None:
    (shape,) = estimated(request(vllm(kv_cache_memory="3GiB"))).shapes
    assert shape.part(KV_CACHE) == 3 * GIB
    plain, nf4 = (estimated(request(vllm(quantization=q))).shapes[0] for q in (None, "bitsandbytes"))
    assert nf4.part(WEIGHTS) < 0.5 * plain.part(WEIGHTS)
    float32 = estimated(request(vllm(dtype="float32"))).shapes[0]
    assert float32.part(WEIGHTS) == 2 * plain.part(WEIGHTS)


def test_footprints_of_different_engines_are_kept_apart() -> None:
    variants = [
        {},
        {"options": vllm(max_model_len=4096)},
        {"options": vllm(kv_cache_dtype="fp8")},
        {"options": vllm(quantization="bitsandbytes")},
        {"options": vllm(dtype="float16")},
        {"options": vllm(max_num_seqs=8)},
        {"options": vllm(revision="other")},
        {"options": LlmOptions(backend="transformers")},
        {"model": "Qwen/other"},
    ]
    names = [estimated(request(**changes), FILES[MODEL]).filed_under for changes in variants]
    assert all(names)
    assert len(set(names)) == len(names)


def test_transformers_divides_layers_and_keeps_no_graphs() -> None:
    options = LlmOptions(backend="transformers", max_model_len=4096)
    (shape,) = estimated(request(options, gpus=2)).shapes
    assert (shape.tensor_parallel, shape.pipeline_parallel) == (1, 2)
    held = sum(part.size for rank in shape.ranks for part in rank if part.name == WEIGHTS)
    assert held == 2 * 7_615_616_512
    assert not estimated(request(options)).elastic
    eager = LlmOptions(backend="transformers", max_model_len=4096, attn_implementation="eager")
    assert estimated(request(eager)).shapes[0].sizes > estimated(request(options)).shapes[0].sizes


def test_a_model_that_is_not_here_is_guessed_or_called_unknown() -> None:
    guess = estimated(request(model="Qwen/Qwen3-8B-AWQ"))
    assert not guess.exact
    assert guess.shapes[0].part(WEIGHTS) == int(8e9 * 0.75)
    assert "guessed from its name" in guess.notes[0]
    unknown = estimated(request(model="acme/thing"))
    assert unknown.shapes[0].sizes[0] >= LEAST
    assert "set gpu_memory" in unknown.notes[0]


# --- what it makes of a grant --------------------------------------------------------------------


def granted(options: LlmOptions, gpus: int = 1, **changes: Any) -> EngineRequest[LlmOptions]:
    ids = tuple(range(gpus))
    values = {"kv_cache": 2 * GIB, "tensor_parallel": gpus} | changes
    grant = GpuGrant(ids, (20 * GIB,) * gpus, (80 * GIB,) * gpus, **values)
    return request(options, gpu_ids=ids, grant=grant)


def test_vllm_keeps_within_its_grant() -> None:
    plan = planned(granted(vllm()))
    assert value_of(plan, "--gpu-memory-utilization") == "0.25"
    assert value_of(plan, "--kv-cache-memory-bytes") == str(2 * GIB)
    # Of these the activations that were reserved depend; large cards have other defaults.
    assert value_of(plan, "--max-num-seqs") == "256"
    assert value_of(plan, "--max-num-batched-tokens") == "2048"
    assert any("20.0 GiB" in note for note in plan.notes)


def test_a_size_of_the_users_leaves_the_rest_to_vllm() -> None:
    plan = planned(granted(vllm(), kv_cache=None))
    assert value_of(plan, "--gpu-memory-utilization") == "0.25"
    for flag in ("--kv-cache-memory-bytes", "--max-num-seqs", "--max-num-batched-tokens"):
        assert value_of(plan, flag) is None


def test_a_grant_lays_the_engine_out() -> None:
    auto = vllm(tensor_parallel_size="auto")
    plan = planned(granted(auto, 4, tensor_parallel=2, pipeline_parallel=2))
    assert value_of(plan, "--tensor-parallel-size") == value_of(plan, "--pipeline-parallel-size") == "2"
    assert value_of(planned(granted(auto, 2)), "--tensor-parallel-size") == "2"
    assert value_of(planned(granted(auto)), "--tensor-parallel-size") is None


def test_the_users_own_options_come_first() -> None:
    plan = planned(granted(vllm(gpu_memory_utilization=0.7)))
    assert value_of(plan, "--gpu-memory-utilization") == "0.7"
    assert value_of(plan, "--kv-cache-memory-bytes") is None
    assert any("user's own" in note for note in plan.notes)
    plan = planned(granted(vllm(kv_cache_memory="1GiB")))
    assert value_of(plan, "--kv-cache-memory-bytes") == str(GIB)
    assert value_of(plan, "--gpu-memory-utilization") == "0.25"
    plan = planned(granted(vllm(max_num_seqs=8, extra_args=("--max-num-batched-tokens", "512"))))
    assert value_of(plan, "--max-num-seqs") == "8"
    assert value_of(plan, "--max-num-batched-tokens") == "512"


def test_vllm_chooses_the_step_of_a_model_with_images() -> None:
    plan = planned(granted(vllm()), described("Qwen2-VL-7B-Instruct"))
    assert value_of(plan, "--max-num-seqs") == "256"
    assert value_of(plan, "--max-num-batched-tokens") is None


def test_without_a_grant_all_is_as_the_user_says() -> None:
    plan = planned(request(gpu_ids=(0,), gpu_memory="70%"))
    assert value_of(plan, "--gpu-memory-utilization") == "0.7"
    assert value_of(plan, "--max-num-seqs") is None


def test_transformers_is_capped_by_its_grant() -> None:
    plan = planned(granted(LlmOptions(backend="transformers"), kv_cache=None))
    assert plan.argv[1].endswith("/run_capped.py")
    assert plan.argv[2] == "serve"
    share = float(plan.env["SAGECTL_GPU_MEMORY_FRACTION"])
    assert 0.24 < share < 0.25
    alone = planned(request(LlmOptions(backend="transformers"), gpu_ids=(0,)))
    assert alone.argv[1:3] == ("-m", "transformers.cli.transformers")
    assert "SAGECTL_GPU_MEMORY_FRACTION" not in alone.env
