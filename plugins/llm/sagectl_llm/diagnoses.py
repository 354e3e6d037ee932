"""Failures of `transformers serve` in the user's words, recognised by what it logs.

The texts are those of transformers 5.23 and huggingface_hub 2.4; tests/data/transformers holds excerpts.
Every remedy names what to change in the TOML, or the command to run.
"""

from __future__ import annotations

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport
from sagectl_llm.options import LlmOptions
from sagectl_models.checkpoint_rules import CHECKPOINT, HUB
from sagectl_models.memory_rules import reserved
from sagectl_models.rules import Rule, Words, recognise

_GPU_MEMORY = (
    'Free memory on the card, choose a smaller model, or set `dtype = "bfloat16"` or '
    '`quantization = "bnb-4bit"`; `gpu_ids` chooses another card.'
)
_HOST_MEMORY = 'Choose a smaller model or `dtype = "bfloat16"`, or stop other programs.'
WORDS = Words("llm", _HOST_MEMORY, {"alternative": "transformers"})

_MACHINE = (
    Rule(
        r"\[Errno 98\]|address already in use",
        "Port {port} is in use by another process.",
        "Stop that process (`ss -ltnp` names it), or choose another `port`.",
        retryable=True,
    ),
    reserved('shorter prompts, `dtype = "bfloat16"` or `quantization = "bnb-4bit"`'),
    Rule(
        r"CUDA out of memory|CUDA error: out of memory|HIP out of memory",
        "The GPU has too little free memory for {model}.",
        _GPU_MEMORY,
        retryable=True,
    ),
    Rule(
        r"DefaultCPUAllocator: |unable to mmap .* Cannot allocate memory|MemoryError",
        "The machine has too little free memory for {model}.",
        _HOST_MEMORY,
        retryable=True,
    ),
    Rule(
        r"Torch not compiled with CUDA enabled",
        "{python} has a torch without CUDA, so `device` cannot be a GPU.",
        'Set `device = "cpu"`, or install a CUDA build of torch there.',
    ),
    Rule(
        r"Found no NVIDIA driver|NVIDIA driver on your system is too old|No CUDA GPUs are available"
        r"|CUDA error: invalid device ordinal",
        "torch finds no usable GPU.",
        "Check `nvidia-smi` and `gpu_ids`, or set `use_gpu = false` to run on the CPU.",
    ),
)

_FLAGS = (
    Rule(
        r"FlashAttention\d? has been toggled on, but it cannot be used",
        "`attn_implementation` asks for FlashAttention, which {python} lacks.",
        'Set `attn_implementation = "sdpa"`, or install the package flash-attn there.',
    ),
    Rule(
        r"Unsupported attention implementation: '(?P<value>[^']*)'",
        "`attn_implementation` = {value} does not exist.",
        "Write eager, sdpa, flash_attention_2, flash_attention_3, flex_attention or a hub kernel.",
    ),
    Rule(
        r"Unsupported dtype: '(?P<value>[^']*)'",
        "`dtype` = {value} does not exist.",
        "Write auto, float32, bfloat16 or float16.",
    ),
    Rule(
        r"requires (?P<package>[\w-]+)[:.] ?(?:Please install it with )?"
        r"`pip install (?:-U )?(?P<arguments>[^`]+)`",
        "{model} with these options needs the package {package}, which {python} lacks.",
        "Install it: {python} -m pip install '{arguments}'; or choose another `model` or `quantization`.",
    ),
    Rule(
        r"No such option '?(?P<flag>-[\w-]+)",
        "`transformers serve` knows no flag {flag}.",
        "Correct `extra_args`; `{python} -m transformers.cli.transformers serve --help` lists what there is.",
    ),
    Rule(
        r"serve --help' for full details",
        "`transformers serve` refuses its flags.",
        "Correct `extra_args`; `{python} -m transformers.cli.transformers serve --help` lists what there is.",
    ),
)

_MODEL = (
    Rule(
        r"config\.architectures\[0\]",
        "config.json of {model} names no architecture.",
        'Add "architectures" to it, or point `model` to a whole checkpoint.',
    ),
    Rule(
        r"object has no attribute 'generation_config'|is not compatible with `\.generate"
        r"|Unknown modality for",
        "{model} is loaded but cannot generate text: it is no language model.",
        "Point `model` to a causal language model.",
    ),
    Rule(
        r"No module named '(?P<module>[\w.]+)'|Missing dependencies for serving",
        "{python} lacks a module that `transformers serve` needs.",
        "Install it: {python} -m pip install 'transformers[serving]>=5.6' torch accelerate; or set "
        "`[defaults.llm] python = …`.",
    ),
)

# In this order: the first that matches is the cause, so wrappers come after what they wrap.
RULES: tuple[Rule, ...] = (*_MACHINE, *HUB, *_FLAGS, *CHECKPOINT, *_MODEL)


def explain(request: EngineRequest[LlmOptions], failure: FailureReport) -> Diagnosis | None:
    """The first recognised cause, or None."""
    return recognise(RULES, WORDS, request, failure, "\n".join(failure.log))
