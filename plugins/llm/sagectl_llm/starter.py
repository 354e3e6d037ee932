"""Build the starter model: a tiny untrained Llama, so that a chat answers with no hub and no GPU.

Run by the engine's interpreter (it needs torch and transformers), never imported by the daemon:

    python starter.py DIRECTORY

Deterministic: the same versions write the same bytes. What it writes is complete or absent: it is
built beside its place and renamed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

NAME = "sagectl-starter-untrained"

# Bytes are the vocabulary, so that every text can be written and read without training a tokenizer.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

README = f"""# {NAME}

A Llama of a few hundred thousand random weights, built on this machine by `sagectl`.
It was never trained: what it writes is noise. It is here to show that the machinery works
(loading, chat completions, streaming, restarts) on a machine without a GPU or a model hub.

Serve a real model instead: `make up MODEL=Qwen/Qwen2.5-0.5B-Instruct`.
"""


def build_tokenizer() -> Any:
    """A byte-level tokenizer without merges: 256 bytes and the chat markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=2048,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def unprintable(tokenizer: Any) -> list[int]:
    """Every token but the printable ASCII characters."""
    printable = {chr(code) for code in range(ord(" "), ord("~") + 1)}
    return [index for index in range(len(tokenizer)) if tokenizer.decode([index]) not in printable]


def build_model(tokenizer: Any) -> Any:
    """A Llama with a head size of 64, which every attention kernel supports."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(20260101)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    config.sagectl_note = f"{NAME}: random weights, its answers mean nothing"
    model = LlamaForCausalLM(config)
    # A random model would end a chat with its first token, or answer in markers and control characters.
    model.generation_config.suppress_tokens = unprintable(tokenizer)
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 128
    return model


def write(directory: Path) -> None:
    """Write the model to `directory`, replacing what an earlier run left there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer)
        tokenizer.save_pretrained(scratch)
        model.save_pretrained(scratch)
        (scratch / "README.md").write_text(README, encoding="utf-8")
        # An engine that runs as another user reads them; safetensors writes 0600, mkdtemp makes 0700.
        os.chmod(scratch, 0o755)
        for path in scratch.iterdir():
            os.chmod(path, 0o644)
        if directory.exists():
            shutil.rmtree(directory)
        scratch.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    """Build the model where the first argument says; an existing one stays unless `--force`."""
    parser = argparse.ArgumentParser(description="Build sagectl's untrained starter model.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--force", action="store_true", help="replace an existing one")
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    if (directory / "model.safetensors").exists() and not arguments.force:
        return 0
    write(directory)
    sys.stdout.write(f"{directory}: {NAME}, random weights\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
