"""Memory of fine-tuning as others published it, as far as their settings are known.

Sources: README of QwenLM/Qwen (LoRA rank 64 on c_attn, c_proj, w1, w2; batch 1, accumulation 8, an A100; the
unit is "G", read as GiB, which is the stricter reading); the wiki of LLaMA-Factory, "Performance-comparison"
(QLoRA with FlashAttention 2); README and tutorials of torchtune, which reports what torch allocated, without
the process's context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sagectl_models.trained_model import Linear, TrainedModel
from sagectl_models.training_memory import GIB, TrainingSetup, estimate, total
from tests.tools.finetune_evidence import model

GB = 10**9


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure in bytes. unknown: what the source does not say; empty where it says enough."""

    name: str
    model: TrainedModel
    setup: TrainingSetup
    size: float
    unknown: str = ""

    def error(self) -> float:
        """As `Run.error`."""
        return total(estimate(self.model, self.setup)) / self.size - 1


def _qwen(layers: int, hidden: int, intermediate: int, vocab: int = 151_936) -> TrainedModel:
    """The first Qwen: one matrix for queries, keys and values."""
    widths = {"c_attn": (hidden, 3 * hidden), "c_proj": (hidden, hidden), "w1": (hidden, intermediate)}
    widths |= {"w2": (hidden, intermediate), "mlp.c_proj": (intermediate, hidden)}
    linears = tuple(Linear(name.rpartition(".")[2], *pair, layers) for name, pair in widths.items())
    rest = layers * 5 * hidden + hidden
    heads = hidden // 128
    embedding = 2 * vocab * hidden
    return TrainedModel(layers, hidden, heads, hidden, hidden, intermediate, vocab, linears, embedding, rest)


QWEN_1_8B = _qwen(24, 2048, 5504)
QWEN_7B = _qwen(32, 4096, 11008)
QWEN_14B = _qwen(40, 5120, 13696, 152_064)
LLAMA2_7B = model(
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
    **{"intermediate_size": 11008, "vocab_size": 32000},
)
LLAMA3_8B = model(
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"intermediate_size": 14336, "vocab_size": 128256},
)
LENGTHS = (256, 1024, 4096, 8192)


def published() -> list[Published]:
    """All of them."""
    return [*_qwen_rows(), *_llama_factory(), *_torchtune()]


def _qwen_rows() -> Iterator[Published]:
    lora = TrainingSetup(lora_rank=64, batch_size=1, accumulation=8)
    rows = {
        "Qwen-1.8B LoRA": (QWEN_1_8B, (6.7, 8.4, 16.2, 21.8)),
        "Qwen-7B LoRA": (QWEN_7B, (20.1, 21.5, 29.7, 36.6)),
        "Qwen-14B LoRA": (QWEN_14B, (34.6, 35.3, 42.5, 55.2)),
    }
    for name, (trained, sizes) in rows.items():
        for length, size in zip(LENGTHS, sizes, strict=True):
            yield Published(f"{name} {length}", trained, replace(lora, sequence_length=length), size * GIB)
    # The base is GPTQ of groups of 128: half a byte, and 2.5 bytes of scale and zero a group.
    stored = round(QWEN_7B.linear * (0.5 + 2.5 / 128)) + 2 * (QWEN_7B.embedding + QWEN_7B.other)
    base = replace(QWEN_7B, stored=stored)
    setup = replace(lora, method="qlora", dtype="float16")
    for length, size in zip(LENGTHS, (11.5, 12.3, 16.9, 23.5), strict=True):
        name = f"Qwen-7B QLoRA {length}"
        one = replace(setup, sequence_length=length)
        yield Published(name, base, one, size * GIB, "what DeepSpeed, which its script runs under, takes")


def _llama_factory() -> Iterator[Published]:
    setup = TrainingSetup(method="qlora", quantisation="nf4-double", batch_size=1)
    for length, size in ((1024, 6), (4096, 9), (16384, 19), (32768, 32)):
        one = replace(setup, sequence_length=length)
        yield Published(f"Llama2-7B QLoRA FA2 {length}", LLAMA2_7B, one, size * GB)


def _torchtune() -> Iterator[Published]:
    bare = TrainingSetup(batch_size=2, sequence_length=1024, context=0)
    length = "the length of the rows: 1024 is assumed, which suits two of the three"
    pair = replace(bare, target_modules=("q_proj", "v_proj"))
    quantised = replace(bare, method="qlora", quantisation="nf4-double")
    rows = (
        ("qv r8", pair, 15.57),
        ("all r64", replace(bare, lora_rank=64), 17.04),
        ("QLoRA", quantised, 9.29),
    )
    for name, setup, size in rows:
        yield Published(f"Llama2-7B torchtune {name}", LLAMA2_7B, setup, size * GB, length)
    long = replace(bare, sequence_length=2048, fused_loss=True)
    yield Published(
        "Llama3.1-8B torchtune LoRA", LLAMA3_8B, long, 16.2 * GIB, "what the loss makes in chunks"
    )
    long = replace(long, method="qlora", quantisation="nf4-double")
    yield Published(
        "Llama3.1-8B torchtune QLoRA", LLAMA3_8B, long, 7.4 * GIB, "what the loss makes in chunks"
    )
