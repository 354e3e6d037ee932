"""What a fine-tuning job's table holds beside the keys that every engine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sagectl.plugin import option
from sagectl_models.training_memory import ALL_LINEAR

_POSITIVE = (
    *("lora_rank", "lora_alpha", "batch_size", "gradient_accumulation_steps", "max_length", "max_steps"),
    "yield_on_queue",
)
_MOST = 2**24
"""Larger numbers of rows, tokens or ranks are slips of the finger."""


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """The options of the kind `finetune`."""

    dataset: str | None = option(
        "the training data: a file or a directory of them", default=None, aliases=("dataset_path",)
    )
    output: str | None = option("where the result is written", default=None, aliases=("output_dir",))
    method: Literal["lora", "qlora", "full"] = option(
        "lora: an adapter; qlora: an adapter on a quantised base; full: all parameters", default="lora"
    )
    lora_rank: int = option("rank of the adapter's matrices", default=8, aliases=("lora_r",))
    lora_alpha: int = option("scale of the adapter, over its rank", default=16)
    lora_dropout: float = option("share of an adapter's inputs that is dropped in training", default=0.0)
    target_modules: tuple[str, ...] | str = option(
        'the matrices that get an adapter, as a list, or "all-linear"', default=ALL_LINEAR
    )
    learning_rate: float = option("the highest learning rate", default=1e-4)
    num_epochs: float = option("how often the data is gone through", default=3.0, aliases=("epochs",))
    max_steps: int | None = option("end after this many steps; default: by `num_epochs`", default=None)
    batch_size: int = option("rows that are computed at once, on each GPU", default=4)
    gradient_accumulation_steps: int = option("batches that make up one step", default=1)
    max_length: int = option(
        "tokens of a row; what is longer is cut", default=512, aliases=("max_seq_length",)
    )
    packing: bool = option("fill rows with several examples", default=False)
    quantization: Literal["nf4", "int8", 4, 8] | None = option(
        "the base in 4 bits (nf4, or 4) or 8 (int8, or 8), through bitsandbytes; default: nf4 with qlora, "
        "else as stored",
        default=None,
        aliases=("quantization_bits",),
    )
    double_quantization: bool = option("nf4: quantise the scales too, 0.4 bits less a weight", default=True)
    use_8bit: bool = option("the same as quantization = 8", default=False)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "what the base computes in; auto: bfloat16", default="auto"
    )
    gradient_checkpointing: bool = option(
        "compute activations again instead of keeping them: less memory, a fifth slower", default=True
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = option(
        "how attention is computed; eager keeps all scores in memory; auto: sdpa", default="auto"
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = option(
        "AdamW, with its state in 32 or 8 bits; paged: in the machine's memory where the GPU's runs out",
        default="adamw",
        aliases=("optim",),
    )
    seed: int = option("of everything random", default=42)
    policy: Literal["queue", "shared", "preempt"] = option(
        "what happens where it does not fit: wait, run within the kind's budget, or take the place of others",
        default="queue",
    )
    yield_on_queue: int | None = option(
        "give the GPU back when this many requests wait for what it displaced; default: never", default=None
    )

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise ValueError(f"{name}: {value} is not between 1 and {_MOST:,}")
        if not 0 < self.num_epochs <= 10_000:
            raise ValueError(f"num_epochs: {self.num_epochs:g} is not above 0 and at most 10,000")
        if not 0 < self.learning_rate < 10:
            raise ValueError(f"learning_rate: {self.learning_rate:g} is not above 0 and below 10")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout: {self.lora_dropout:g} is no share; write 0 or more, below 1")
        for name in ("dataset", "output"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}: is empty; write a path")
        self._check_targets()
        self._check_combination()

    @property
    def stored(self) -> Literal["none", "nf4", "nf4-double", "int8"]:
        """How the base is stored on the GPU, where the checkpoint is not quantised itself."""
        if self.quantization in ("int8", 8) or self.use_8bit:
            return "int8"
        if self.quantization is None and self.method != "qlora":
            return "none"
        return "nf4-double" if self.double_quantization else "nf4"

    def _check_targets(self) -> None:
        wanted = self.target_modules
        if wanted == ALL_LINEAR:
            return
        if isinstance(wanted, str):
            one = wanted or "q_proj"
            raise ValueError(f'target_modules: "{wanted}" is no list; write ["{one}"], or "{ALL_LINEAR}"')
        if not wanted or "" in wanted:
            raise ValueError(f'target_modules: names nothing; write ["q_proj", "v_proj"], or "{ALL_LINEAR}"')

    def _check_combination(self) -> None:
        if self.use_8bit and self.quantization in ("nf4", 4):
            raise ValueError("use_8bit: contradicts quantization; remove one of them")
        if self.method != "full":
            return
        for name in ("quantization", "use_8bit"):
            if getattr(self, name):
                raise ValueError(
                    f'{name}: quantised weights cannot be trained; remove it, or set method = "qlora"'
                )
        if self.target_modules != ALL_LINEAR or self.lora_dropout:
            name = "target_modules" if self.target_modules != ALL_LINEAR else "lora_dropout"
            raise ValueError(
                f'{name}: method = "full" has no adapter; remove it, or set method = "lora" or "qlora"'
            )
        if self.dtype == "float16":
            raise ValueError(
                'dtype: float16 cannot train all parameters; write "bfloat16" or "float32", or remove it'
            )
