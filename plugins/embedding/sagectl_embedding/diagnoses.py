"""Failures of the embedding server in the user's words, recognised by what it logs.

The texts are those of sentence-transformers 6.2, transformers 5.23, huggingface_hub 2.4 and of the server
itself; tests/data/embedding holds excerpts. Every remedy names what to change in the TOML, or the command to
run.
"""

from __future__ import annotations

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport
from sagectl_embedding.options import EmbeddingOptions
from sagectl_models.checkpoint_rules import CHECKPOINT, HUB
from sagectl_models.memory_rules import reserved
from sagectl_models.rules import Rule, Words, recognise

_HOST_MEMORY = "Choose a smaller model or a smaller `max_batch_tokens`, or stop other programs."
_WHOLE = "Point `model` to a whole copy of the model, or download it again."

WORDS = Words("embedding", _HOST_MEMORY, {"alternative": "sentence-transformers"})

# What vLLM says of models that it cannot embed with.
POOLING: tuple[Rule, ...] = (
    Rule(
        r"does not support `--runner pooling`|does not support `--convert embed"
        r"|[Tt]his model does not support (?:the )?(?:`?embed|[Ee]mbeddings)",
        "vLLM computes no embeddings with {model}.",
        'Point `model` to a model of text embeddings, or set `kind = "llm"` to let it write.',
    ),
)

# In this order: the first that matches is the cause, so wrappers come after what they wrap.
RULES: tuple[Rule, ...] = (
    Rule(
        r"\[Errno 98\]|address already in use",
        "Port {port} is in use by another process.",
        "Stop that process (`ss -ltnp` names it), or choose another `port`.",
        retryable=True,
    ),
    Rule(
        r"cannot listen on (?P<where>\S+): (?P<why>[^\n]+)",
        "The server cannot listen on {where}: {why}.",
        "Correct `host` and `port`.",
    ),
    reserved('`dtype = "bfloat16"` or a smaller `max_batch_tokens`'),
    Rule(
        r"CUDA out of memory|CUDA error: out of memory|HIP out of memory",
        "The GPU has too little free memory for {model}.",
        'Free memory on the card, set `dtype = "bfloat16"` or a smaller `max_batch_tokens`, or take '
        "`use_gpu` or `gpu_ids` out to run on the CPU.",
        retryable=True,
    ),
    Rule(
        r"DefaultCPUAllocator: |Cannot allocate memory|MemoryError",
        "The machine has too little free memory for {model}.",
        _HOST_MEMORY,
        retryable=True,
    ),
    Rule(
        r"Torch not compiled with CUDA enabled",
        "{python} has a torch without CUDA, so the model cannot run on a GPU.",
        "Take `use_gpu`, `gpu_ids` and `device` out to run on the CPU, or install a CUDA build of torch "
        "there.",
    ),
    Rule(
        r"Found no NVIDIA driver|NVIDIA driver on your system is too old|No CUDA GPUs are available"
        r"|CUDA error: invalid device ordinal",
        "torch finds no usable GPU.",
        "Check `nvidia-smi`, `gpu_ids` and `device`, or take them and `use_gpu` out to run on the CPU.",
    ),
    Rule(
        r"the model cannot be loaded: "
        r"max_input_tokens = (?P<wanted>\d+) is more than the model's (?P<most>\d+)",
        "{model} takes inputs of up to {most} tokens, and `max_input_tokens` asks for {wanted}.",
        "Set `max_input_tokens` to {most} or less, or take it out.",
    ),
    Rule(
        r"the model cannot be loaded: the tokenizer knows no words",
        "{model} has no tokenizer.",
        "Put tokenizer.json and tokenizer_config.json beside the weights that `model` names.",
    ),
    Rule(
        r"the model cannot be loaded: the model begins with the module (?P<module>\w+)",
        "{model} begins with the module {module}, through which this server cannot take texts.",
        "Choose a `model` of text embeddings built on a transformer or on static word vectors.",
    ),
    Rule(
        r"the model cannot be loaded: this server prepares texts differently",
        "The server's embeddings of {model} are not those of sentence-transformers: it does not serve them.",
        "Choose another `model`; please report this one.",
    ),
    *HUB,
    Rule(
        r"unrecognized arguments: (?P<flags>[^\n]+)",
        "The embedding server knows no flag {flags}.",
        "Correct `extra_args`.",
    ),
    *CHECKPOINT,
    Rule(
        r"Module \"[^\"]+\" does not define a \"(?P<module>\w+)\"",
        "sentence-transformers in {python} has no module {module}, which modules.json of {model} names.",
        "Upgrade it: {python} -m pip install --upgrade sentence-transformers; or choose another `model`.",
    ),
    Rule(
        r"TypeError: (?P<module>\w+)\.__init__\(\) missing \d+ required",
        "The module {module} of {model} has no configuration: a directory named in modules.json is missing.",
        _WHOLE,
    ),
    Rule(
        r"No module named '(?P<module>[\w.]+)'",
        "{python} lacks the module {module}, which {model} or the server needs.",
        "Install the package that has it with {python} -m pip, or set `[defaults.embedding] python = …`.",
    ),
)


def explain(request: EngineRequest[EmbeddingOptions], failure: FailureReport) -> Diagnosis | None:
    """The first recognised cause, or None."""
    return recognise(RULES, WORDS, request, failure, "\n".join(failure.log))
