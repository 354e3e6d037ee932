"""The memory of fine-tuning against what was measured: `pytest -s` prints the tables."""

from __future__ import annotations

from dataclasses import fields
from statistics import mean

import pytest

from sagectl_models.training_memory import FIT, GIB, MARGIN, MIB, adapter_parameters, estimate, total
from tests.tools.finetune_evidence import Run, measured
from tests.tools.finetune_published import Published, published
from tests.tools.fit_training_memory import fitted, summary

RUNS = measured()
HELD_OUT = [run for run in RUNS if not run.fitted]

# Reservations below the published figure, and by how much at most. At short lengths Qwen's figures have 1.3
# to 2.6 GiB that its settings do not explain: in QLoRA's case DeepSpeed takes some. Read as 10⁹ bytes they
# would be 5% above the reservation at most. torchtune's 9.29 GB for 7B is more than its 7.4 GiB for 8B and
# longer rows: an older version, of which the settings are not known.
BELOW = {
    "Qwen-1.8B LoRA 256": 0.08,
    "Qwen-1.8B LoRA 1024": 0.03,
    "Qwen-7B QLoRA 256": 0.12,
    "Llama2-7B torchtune QLoRA": 0.24,
}
# How far the estimate itself is off the published figures at most, (under, over).
PUBLISHED_ERROR = {
    "Qwen-1.8B": (0.20, 0.08),
    "Qwen-7B LoRA": (0.12, 0.06),
    "Qwen-14B": (0.11, 0.01),
    "Qwen-7B QLoRA": (0.24, 0.26),
    "Llama2-7B QLoRA": (0.04, 0.21),
    "Llama2-7B torchtune QLoRA": (0.33, 0.0),
    "Llama2-7B torchtune": (0.0, 0.04),
    "Llama3.1-8B torchtune": (0.0, 0.19),
}


def test_the_archive_is_whole() -> None:
    assert len(RUNS) == 49
    assert len(HELD_OUT) == 16


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_parameters_of_adapters_are_exact(run: Run) -> None:
    assert adapter_parameters(run.model, run.setup) == run.trainable


def test_the_table_of_measured_steps() -> None:
    print(f"\n{'':<34}{'allocated':>12}{'off':>8}{'process':>10}{'estimate':>10}{'off':>8}  reserved")
    for run in RUNS:
        size = total(estimate(run.model, run.setup))
        allocated = f"{run.allocated / MIB:>12.0f}{run.allocated_error():>8.1%}"
        process = f"{run.process / MIB:>10.0f}{size / MIB:>10.0f}{run.error():>8.1%}"
        note = "" if run.fitted else "  held out"
        print(f"{run.name:<34}{allocated}{process}{size * MARGIN / MIB:>10.0f}{note}")
    for name, chosen in (("fitted", True), ("held out", False)):
        print(summary(f"process, {name}", [run.error() for run in RUNS if run.fitted is chosen]))
        print(summary(f"allocated, {name}", [run.allocated_error() for run in RUNS if run.fitted is chosen]))


@pytest.mark.parametrize("part", [True, False], ids=["fitted", "held out"])
def test_the_mean_error_is_below_5_percent(part: bool) -> None:
    runs = [run for run in RUNS if run.fitted is part]
    assert mean(abs(run.error()) for run in runs) < 0.05
    assert mean(abs(run.allocated_error()) for run in runs) < 0.02


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_no_estimate_is_under_by_5_percent_and_no_reservation_is_under(run: Run) -> None:
    assert run.error() > -0.05
    assert (1 + run.error()) * MARGIN > 1
    assert run.error() < 0.28  # eager attention over 2048 tokens, where the allocator wastes less


def test_only_eager_attention_is_overestimated_by_more_than_a_tenth() -> None:
    assert {run.setup.eager_attention for run in RUNS if run.error() > 0.1} == {True}


def test_the_constants_are_what_the_fit_finds() -> None:
    found = fitted([run for run in RUNS if run.fitted])
    for field in fields(FIT):
        assert getattr(FIT, field.name) == pytest.approx(getattr(found, field.name), rel=0.02), field.name


# --- published figures -----------------------------------------------------------------------------


def test_the_table_of_published_figures() -> None:
    print(f"\n{'':<32}{'published':>10}{'estimate':>10}{'off':>8}{'reserved':>10}  GiB")
    for one in published():
        size = total(estimate(one.model, one.setup)) / GIB
        row = f"{one.name:<32}{one.size / GIB:>10.1f}{size:>10.1f}{one.error():>8.1%}{size * MARGIN:>10.1f}"
        print(f"{row}  not known: {one.unknown}" if one.unknown else row)
    print(summary("published", [one.error() for one in published()]))


@pytest.mark.parametrize("one", published(), ids=lambda one: one.name)
def test_reservations_cover_published_figures(one: Published) -> None:
    short = 1 - (1 + one.error()) * MARGIN
    assert short <= BELOW.get(one.name, 0.0)
    assert one.name not in BELOW or short > 0, "it is covered now: take it out of BELOW"


@pytest.mark.parametrize("one", published(), ids=lambda one: one.name)
def test_estimates_of_published_figures(one: Published) -> None:
    name = max((key for key in PUBLISHED_ERROR if one.name.startswith(key)), key=len)
    under, over = PUBLISHED_ERROR[name]
    assert -under <= one.error() <= over
