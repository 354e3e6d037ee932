"""Models of random weights and tokens of chats for the benchmark, made in the engine's interpreter.

The first argument is the part to do: `model DIRECTORY STARTER CONFIG` with the keys of a Qwen2 model as JSON,
`tokens FILE SETTINGS TRAINER` for the trainer's own tokens, or `device`, which prints what torch computes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType


def make_model(directory: str, starter: str, config: str) -> None:
    """A Qwen2 in 16 bits where there is a GPU; with the starter model's tokenizer, which is of bytes."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(starter)
    model = Qwen2ForCausalLM(Qwen2Config(**json.loads(config), eos_token_id=tokenizer.eos_token_id))
    model.to(torch.bfloat16 if torch.cuda.is_available() else torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_tokens(file: str, settings: str, trainer: str) -> None:
    """One object with input_ids and labels on each line."""
    package = ModuleType("sagectl_finetune")
    package.__path__ = [str(Path(trainer).parent)]
    sys.modules["sagectl_finetune"] = package
    from sagectl_finetune.trainer import model, rows
    from sagectl_finetune.trainer.settings import parse

    told = parse(settings)
    made = rows.prepare(told, model.tokenizer_of(told)).train
    lines = [json.dumps({"input_ids": list(row["input_ids"]), "labels": list(row["labels"])}) for row in made]
    Path(file).write_text("\n".join(lines))


if __name__ == "__main__":
    if sys.argv[1] == "device":
        import torch

        print("cuda" if torch.cuda.is_available() else "cpu")
    else:
        {"model": make_model, "tokens": make_tokens}[sys.argv[1]](*sys.argv[2:])
