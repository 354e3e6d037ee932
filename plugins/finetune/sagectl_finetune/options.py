"""What a fine-tuning job's table holds beside the keys that every engine has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sagectl.plugin import option
from sagectl_models.training_memory import ALL_LINEAR

_POSITIVE = (
    *("lora_rank", "lora_alpha", "batch_size", "gradient_accumulation_steps", "max_length", "max_steps"),
    *("yield_on_queue", "save_steps", "early_stopping", "threads"),
)
_MOST = 2**24
"""Larger numbers of rows, tokens or ranks are slips of the finger."""
_ENGINE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")


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
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"] = option(
        "how the rows of the data are laid out; auto: by their columns", default="auto"
    )
    skip_bad_rows: bool = option("go on without rows that cannot be used, instead of refusing", default=False)
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
    weight_decay: float = option("how much the optimizer shrinks weights at each step", default=0.0)
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = option(
        "how the learning rate goes down", default="linear", aliases=("lr_scheduler_type",)
    )
    warmup: float = option(
        "steps until the learning rate is reached; below 1: a share of all steps",
        default=0.0,
        aliases=("warmup_steps", "warmup_ratio"),
    )
    eval_split: float = option(
        "share of the rows that is not trained on, and evaluated at each checkpoint", default=0.0
    )
    early_stopping: int | None = option(
        "end after this many evaluations that got no better; the result is then the best one; default: never",
        default=None,
    )
    save_steps: int = option("steps between checkpoints", default=100)
    keep: int = option("checkpoints that are kept, at least 2", default=2, aliases=("save_total_limit",))
    resume_from_checkpoint: bool | str = option(
        "true: go on from the job's newest valid checkpoint; false: each start begins anew; "
        "a directory: begin there where the job has none of its own",
        default=True,
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = option(
        "where figures go beside sagectl's own; these have to be installed", default=()
    )
    on_nan: Literal["warn", "stop"] = option(
        "what happens when the loss is no number: an event, or the job fails too", default="warn"
    )
    merge: bool = option("write a whole model with the adapter in it, not the adapter alone", default=False)
    serve_as: str | None = option(
        "serve the result under this name when it is complete: by a running vLLM of the same base with "
        "enable_lora, else by an engine of its own",
        default=None,
    )
    threads: int | None = option("CPU threads; default: torch's own choice", default=None)
    trust_remote_code: bool = option("run Python code that the model brings", default=False)
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
        self._check_numbers()
        for name in ("dataset", "output"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}: is empty; write a path")
        if self.serve_as is not None and not _ENGINE_NAME.fullmatch(self.serve_as):
            raise ValueError(
                f"serve_as: {self.serve_as!r} is not a name for an engine; "
                "use a-z, 0-9, _ and -, beginning with a letter or digit, at most 48"
            )
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

    def _check_numbers(self) -> None:
        if not 2 <= self.keep <= _MOST:
            raise ValueError(f"keep: {self.keep} is not at least 2; the newest may turn out to be damaged")
        if not 0 <= self.eval_split < 1:
            raise ValueError(f"eval_split: {self.eval_split:g} is no share; write 0 or more, below 1")
        if self.early_stopping is not None and not self.eval_split:
            raise ValueError("early_stopping: needs evaluations; set eval_split = 0.1, say")
        if not 0 <= self.warmup <= _MOST:
            raise ValueError(f"warmup: {self.warmup:g} is not between 0 and {_MOST:,}")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay: {self.weight_decay:g} is not at least 0 and below 1")
        named = self.resume_from_checkpoint
        if isinstance(named, str) and not named.startswith("/"):
            raise ValueError(f"resume_from_checkpoint: {named!r} is no absolute path; write true, or one")

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
        for name in ("quantization", "use_8bit", "merge"):
            if name == "merge" and self.merge:
                raise ValueError('merge: method = "full" has no adapter to merge; remove it')
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
