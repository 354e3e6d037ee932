"""How much GPU memory an engine asks for: by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sagectl.core.engine import EngineSpec
from sagectl.core.gpu import Gpu
from sagectl.core.placement import Layout, Need, Placement
from sagectl.core.sizes import GIB
from sagectl.core.sizing import Demand, demand, footprint_key, reserve
from sagectl.plugin import KV_CACHE, OVERHEAD, WEIGHTS, MemoryEstimate, MemoryPart, Refusal, Shape


def shape(tensor: int = 1, pipeline: int = 1) -> Shape:
    """12 GiB of weights shared out, 2 of cache, 1 of overhead on each."""
    ranks = tensor * pipeline
    parts = (
        MemoryPart(WEIGHTS, 12 * GIB // ranks),
        MemoryPart(KV_CACHE, 2 * GIB // ranks),
        MemoryPart(OVERHEAD, GIB),
    )
    return Shape((parts,) * ranks, tensor, pipeline)


ONE = MemoryEstimate((shape(),), "m|8192", elastic=True, notes=("eager",))
AUTO = MemoryEstimate((shape(), shape(2), shape(2, 2)), "m|8192", elastic=True)
JOB = MemoryEstimate((shape(),), "m|lora")


def asked(estimate: MemoryEstimate | None, learned: dict[str, int] | None = None, **spec: Any) -> Demand:
    found = demand(EngineSpec("chat", "llm", model="m", **spec), estimate, learned or {})
    assert isinstance(found, Demand)
    return found


@pytest.mark.parametrize(
    ("estimate", "learned", "spec", "sizes", "source"),
    [
        (ONE, {}, {}, (15.0,), "estimate"),
        (ONE, {}, {"gpu_memory": 20 * GIB}, (20.0,), "gpu_memory"),
        # What was learned is the part that is no cache: never below the weights, and with the cache again.
        (ONE, {"llm|m|8192|tp1pp1": 13 * GIB}, {}, (13 * 1.03 + 2,), "learned"),
        (ONE, {"llm|m|8192|tp1pp1": 3 * GIB}, {}, (12 + 2,), "learned"),
        (ONE, {"llm|m|4096|tp1pp1": 30 * GIB}, {}, (15.0,), "estimate"),
        (ONE, {"llm|m|8192|tp1pp1": 13 * GIB}, {"gpu_memory": GIB}, (1.0,), "gpu_memory"),
        (JOB, {"llm|m|lora|tp1pp1": 14 * GIB}, {}, (14 * 1.03,), "learned"),
        (None, {}, {}, (2.0,), "assumed"),
        (None, {}, {"gpus": 2}, (2.0, 2.0), "assumed"),
        (None, {"llm|chat|m|tp1pp1": 5 * GIB}, {"gpus": 2}, (5.15, 5.15), "learned"),
        (None, {}, {"gpu_memory": GIB, "gpus": 2}, (1.0, 1.0), "gpu_memory"),
        (AUTO, {}, {"gpus": 2}, (8.0, 8.0), "estimate"),
        (AUTO, {}, {"gpu_ids": (3, 1, 2, 0)}, (4.5, 4.5, 4.5, 4.5), "estimate"),
    ],
)
def test_where_the_size_comes_from(
    estimate: MemoryEstimate | None,
    learned: dict[str, int],
    spec: dict[str, Any],
    sizes: tuple[float, ...],
    source: str,
) -> None:
    found = asked(estimate, learned, **spec)
    needs = found.wanted.layouts[0].needs
    assert [need.size / GIB for need in needs] == pytest.approx(sizes)
    assert found.source == source
    assert found.wanted.gpu_ids == spec.get("gpu_ids")


def test_a_share_is_one_of_whichever_gpu_it_becomes() -> None:
    [need] = asked(ONE, gpu_memory="40%").wanted.layouts[0].needs
    assert [need.on(total * GIB) for total in (10, 80)] == [4 * GIB, 32 * GIB]


def test_a_share_that_the_engine_takes_anyhow_is_reserved() -> None:
    [need] = asked(replace(ONE, share=0.5)).wanted.layouts[0].needs
    assert need.on(80 * GIB) == 40 * GIB
    [need] = asked(replace(ONE, share=0.5), gpu_memory=3 * GIB).wanted.layouts[0].needs
    assert need.on(80 * GIB) == 3 * GIB


def test_every_layout_is_asked_for_in_the_kinds_order_where_the_user_leaves_it_open() -> None:
    layouts = asked(AUTO).wanted.layouts
    assert [(one.tensor_parallel, one.pipeline_parallel, len(one.needs)) for one in layouts] == [
        (1, 1, 1),
        (2, 1, 2),
        (2, 2, 4),
    ]


def test_another_number_of_gpus_than_the_engine_is_laid_out_for_is_refused() -> None:
    found = demand(EngineSpec("chat", "llm", gpus=3), AUTO, {})
    assert found == Refusal(
        "it is given 3 GPUs, and is laid out for 1 or 2 or 4",
        "correct `gpus` or `gpu_ids`, or its tensor and pipeline parallelism",
    )


def placed(found: Demand, layout: int, *gpu_ids: int) -> Placement:
    chosen = found.wanted.layouts[layout]
    return Placement(gpu_ids, tuple(need.on(24 * GIB) for need in chosen.needs), chosen, ("it fits",))


GPUS = {index: Gpu(index, f"u{index}", "g", 24 * GIB, 0) for index in range(4)}


def test_what_is_kept_of_a_grant() -> None:
    found = asked(AUTO)
    held = reserve(found, placed(found, 1, 2, 3), GPUS)
    assert (held.gpu_ids, held.sizes, held.totals) == ((2, 3), (8 * GIB,) * 2, (24 * GIB,) * 2)
    assert (held.tensor_parallel, held.pipeline_parallel) == (2, 1)
    assert (held.kv_cache, held.floor) == (GIB, 6 * GIB)
    assert (held.source, held.filed_under, held.elastic) == ("estimate", "m|8192", True)
    assert held.reasons == (
        "the size is an estimate: weights 6.0 GiB + kv-cache 1.0 GiB + overhead 1.0 GiB = 8.0 GiB",
        "it fits",
    )
    assert [held.on(gpu) for gpu in (2, 3, 0)] == [8 * GIB, 8 * GIB, 0]


def test_a_users_size_leaves_the_cache_to_the_engine() -> None:
    found = asked(ONE, gpu_memory=20 * GIB)
    held = reserve(found, placed(found, 0, 0), GPUS)
    assert held.kv_cache is None
    assert held.reasons == ("the size is `gpu_memory`", "it fits", "eager")


def test_the_same_layout_twice_is_no_trouble() -> None:
    need = Need(GIB)
    assert Layout((need,)) == Layout((need,))
    assert footprint_key("llm", "m", 2, 1) == "llm|m|tp2pp1"
