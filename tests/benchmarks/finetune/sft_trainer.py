"""Train with TRL's SFTTrainer as it comes, with the settings of our trainer; its steps go to history.jsonl.

sft_trainer.py SETTINGS TOKENS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class History(TrainerCallback):
    """Notes when each step ended, and at the end the mean loss and what torch reserved."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _note(self, **values: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps({"at": time.time(), **values}) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step is done once the GPU is; ours waits for its loss."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._note(step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The mean loss of all steps comes last."""
        if "train_loss" in logs:
            peak = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
            self._note(step=0, mean_loss=logs["train_loss"], memory_gb=peak)


def main(told: dict[str, Any], tokens: str) -> None:
    """What is not set here is as TRL has it."""
    cuda = torch.cuda.is_available()
    rows = [json.loads(line) for line in Path(tokens).read_text().splitlines()]
    trainer = SFTTrainer(
        model=told["model"],
        args=SFTConfig(
            output_dir=told["checkpoints"],
            model_init_kwargs={"dtype": "bfloat16" if cuda else "float32"},
            per_device_train_batch_size=told["batch_size"],
            gradient_accumulation_steps=told["gradient_accumulation_steps"],
            max_steps=told["max_steps"],
            max_length=told["max_length"],
            learning_rate=told["learning_rate"],
            seed=told["seed"],
            bf16=cuda,
            use_cpu=not cuda,
            activation_checkpointing=told["gradient_checkpointing"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=told["lora_rank"],
            lora_alpha=told["lora_alpha"],
            lora_dropout=told["lora_dropout"],
            target_modules=told["target_modules"],
        ),
        callbacks=[History(Path(told["state"], "history.jsonl"))],
    )
    trainer.train()
    trainer.save_model(told["output"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
