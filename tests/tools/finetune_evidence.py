"""Measured memory of fine-tuning, and what the estimator says of the same runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagectl.plugin import CheckpointFacts
from sagectl_models.trained_model import TrainedModel, model_of
from sagectl_models.training_memory import FIT, MIB, Fit, TrainingSetup, estimate, total

DATA = Path(__file__).parents[1] / "data" / "finetune" / "memory_t4.json"
FITTED = ("TinyLlama-1.1B-Chat-v1.0", "SmolLM2-360M", "SmolLM2-135M")
"""The three smaller models are fitted; Qwen2.5-1.5B and SmolLM2-1.7B, which need the most memory for weights
and logits, are held out, so that the check is of models that the fit never saw."""
_LLAMA: Mapping[str, Any] = {"dtype": "bfloat16", "tie_word_embeddings": False}


def model(model_type: str = "llama", **config: Any) -> TrainedModel:
    """A model by the keys of its config.json."""
    facts = CheckpointFacts(documents={"config.json": {"model_type": model_type, **_LLAMA, **config}})
    found = model_of(facts)
    assert found is not None
    return found


@dataclass(frozen=True, slots=True)
class Run:
    """A measured step, in bytes. allocated: by torch's allocator; process: as the driver sees it."""

    name: str
    model_name: str
    model: TrainedModel
    setup: TrainingSetup
    allocated: float
    process: float
    trainable: int

    @property
    def fitted(self) -> bool:
        """Whether the fit has seen it."""
        return self.model_name in FITTED

    def error(self, fit: Fit = FIT) -> float:
        """How far the estimate, without margin, is off what the driver saw; below zero: too small."""
        return total(estimate(self.model, self.setup, fit)) / self.process - 1

    def allocated_error(self, fit: Fit = FIT) -> float:
        """The same of what torch had allocated."""
        parts = estimate(self.model, self.setup, fit)
        size = sum(part.size for part in parts if part.name != "overhead") + fit.workspace
        return size / self.allocated - 1


def measured() -> list[Run]:
    """The 49 runs of the archive of fitcheck-llm."""
    document = json.loads(DATA.read_text())
    models = {name: _archived(name, values) for name, values in document["models"].items()}
    return [_run(values, models[values["model"]]) for values in document["runs"]]


def _archived(name: str, values: Mapping[str, Any]) -> TrainedModel:
    return model(
        "qwen2" if name.startswith("Qwen") else "llama",
        hidden_size=values["hidden_size"],
        num_hidden_layers=values["num_layers"],
        num_attention_heads=values["num_attention_heads"],
        num_key_value_heads=values["num_kv_heads"],
        intermediate_size=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        head_dim=values["head_dim"],
        tie_word_embeddings=values["tie_word_embeddings"],
    )


def _run(values: Mapping[str, Any], trained: TrainedModel) -> Run:
    nf4 = values["quantization"] == "nf4"
    setup = TrainingSetup(
        method="qlora" if nf4 else "lora",
        lora_rank=values["lora_rank"],
        target_modules=tuple(values["lora_targets"]),
        batch_size=values["batch_size"],
        sequence_length=values["sequence_length"],
        dtype="float16",
        quantisation="nf4" if nf4 else "none",
        upcast=nf4,
        checkpointing=values["checkpointing"],
        eager_attention=values["attention"] == "eager",
        context=round(values["context"] * MIB),
    )
    short = values["model"].split("-Chat")[0].split("-Instruct")[0]
    name = (
        f"{short:<14} {values['attention']:<5} {'nf4' if nf4 else 'fp16':<4} "
        f"{setup.batch_size:>2} × {setup.sequence_length:<4}"
    )
    sizes = (values["allocated"] * MIB, values["process"] * MIB)
    return Run(name, values["model"], trained, setup, *sizes, values["trainable_params"])
