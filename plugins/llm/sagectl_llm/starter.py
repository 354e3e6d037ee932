"""Build the starter models: tiny untrained Llamas, for machines with no hub and no GPU.

Run by the engine's interpreter (it needs torch and transformers), never imported by the daemon:

    python starter.py DIRECTORY                     writes noise: to try the machinery without training
    python starter.py DIRECTORY --corpus FILE       a base, large enough to learn the answers in FILE

FILE has a conversation a line, as OpenAI's messages. Deterministic: the same versions write the same bytes.
What it writes is complete or absent: it is built beside its place and renamed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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
# A model of this size cannot tell one turn from another, nor learn that capitals do not matter: it is shown
# the last question, in small letters.
QUESTION_TEMPLATE = (
    "{%- for message in messages if message['role'] == 'user' %}{% if loop.last %}"
    "<|im_start|>user\n {{ (message['content'] | lower).replace('`', '').strip(' ?!.\\n') }}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{%- if messages and messages[-1]['role'] == 'assistant' %}"
    "<|im_start|>assistant\n{{ messages[-1]['content'] }}<|im_end|>\n"
    "{%- elif add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MOST_TOKENS = 2000
"""Of the vocabulary that a corpus is given; a small one uses fewer."""

README = f"""# {NAME}

A Llama of a few hundred thousand random weights, built on this machine by `sagectl`.
It was never trained: what it writes is noise. It is here to show that the machinery works
(loading, chat completions, streaming, restarts) on a machine without a GPU or a model hub.

Serve a real model instead: `make up MODEL=Qwen/Qwen2.5-0.5B-Instruct`.
"""
BASE_README = f"""# {NAME}

A Llama of 1.7 million random weights, built on this machine by `sagectl`, with a tokenizer made from a
small corpus. It was never trained: what it writes is noise. `make up` trains it on that corpus, on the CPU
and in about a minute; the result answers the corpus' questions, one at a time, and knows nothing else.
Its template shows it the last question only, in small letters; it always takes the likeliest token.
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model. Its heads are of size 64, which every attention kernel supports."""

    hidden: int
    intermediate: int
    heads: int
    context: int
    tied: bool


NOISE = Shape(hidden=128, intermediate=256, heads=2, context=2048, tied=False)
# Measured: of what learns the corpus on one core in half a minute, this understands reworded questions best.
LEARNER = Shape(hidden=256, intermediate=512, heads=4, context=1024, tied=True)


def read_corpus(path: Path) -> list[list[dict[str, str]]]:
    """The conversations of a JSONL file of OpenAI's messages."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines if line.strip()]


def build_tokenizer(corpus: Sequence[Sequence[dict[str, str]]] = ()) -> Any:
    """A byte-level tokenizer: 256 bytes and the chat markers, and with a corpus its words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if not corpus:
        return _with_template(tokenizer, CHAT_TEMPLATE, NOISE)
    # The words as the model will see them, so as the template writes them.
    plain = _with_template(tokenizer, QUESTION_TEMPLATE, LEARNER)
    texts = [plain.apply_chat_template(list(messages), tokenize=False) for messages in corpus]
    _learn_words(tokenizer, texts, alphabet)
    return _with_template(tokenizer, QUESTION_TEMPLATE, LEARNER)


def _learn_words(tokenizer: Any, texts: Sequence[str], alphabet: list[str]) -> None:
    from tokenizers import trainers

    marks = re.compile("|".join(re.escape(mark) for mark in SPECIAL))
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_TOKENS,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([part for text in texts for part in marks.split(text)], trainer)


def _with_template(tokenizer: Any, template: str, shape: Shape) -> Any:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=shape.context,
    )
    fast.chat_template = template
    return fast


def unprintable(tokenizer: Any) -> list[int]:
    """Every token but the printable ASCII characters."""
    printable = {chr(code) for code in range(ord(" "), ord("~") + 1)}
    return [index for index in range(len(tokenizer)) if tokenizer.decode([index]) not in printable]


def build_model(tokenizer: Any, shape: Shape, made_from: str | None = None) -> Any:
    """A Llama of random weights.

    made_from: kept in its configuration, and in that of what is trained from it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(20260101)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=2,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=64,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    if made_from is not None:
        config.sagectl_made_from = made_from
    model = LlamaForCausalLM(config)
    generation = model.generation_config
    generation.max_new_tokens = 128
    if shape is NOISE:
        model.config.sagectl_note = f"{NAME}: random weights, its answers mean nothing"
        # A random model would end a chat with its first token, or answer in markers and control characters.
        generation.suppress_tokens = unprintable(tokenizer)
        generation.do_sample = False
    else:
        # Both back ends go by these where a client does not say; a likely token is not a true one.
        generation.do_sample, generation.top_k = True, 1
    return model


def write(directory: Path, corpus: Path | None = None, made_from: str | None = None) -> None:
    """Write the model to `directory`, replacing what an earlier run left there."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        tokenizer = build_tokenizer(read_corpus(corpus) if corpus else ())
        tokenizer.save_pretrained(scratch)
        build_model(tokenizer, LEARNER if corpus else NOISE, made_from).save_pretrained(scratch)
        (scratch / "README.md").write_text(BASE_README if corpus else README, encoding="utf-8")
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
    parser = argparse.ArgumentParser(description="Build one of sagectl's untrained starter models.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--corpus", type=Path, help="JSONL of messages: build a model that can learn it")
    parser.add_argument("--made-from", help="kept in the configuration as sagectl_made_from")
    parser.add_argument("--force", action="store_true", help="replace an existing one")
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    if (directory / "model.safetensors").exists() and not arguments.force:
        return 0
    write(directory, arguments.corpus, arguments.made_from)
    sys.stdout.write(f"{directory}: {NAME}, random weights\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
