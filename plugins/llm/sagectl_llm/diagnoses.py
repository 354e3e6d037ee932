"""Failures of `transformers serve` in the user's words, recognised by what it logs.

The texts are those of transformers 5.23 and huggingface_hub 2.4; tests/data/transformers holds excerpts.
Every remedy names what to change in the TOML, or the command to run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport
from sagectl_llm.options import LlmOptions


@dataclass(frozen=True, slots=True)
class Rule:
    """One cause. `pattern` is searched in the log; `{python}`, `{model}`, `{port}`, `{name}` and the
    pattern's named groups are filled into `summary` and `remedy`.
    """

    pattern: str
    summary: str
    remedy: str
    retryable: bool = False


_GPU_MEMORY = (
    'Free memory on the card, choose a smaller model, or set `dtype = "bfloat16"` or '
    '`quantization = "bnb-4bit"`; `gpu_ids` chooses another card.'
)
_HOST_MEMORY = 'Choose a smaller model or `dtype = "bfloat16"`, or stop other programs.'
_REACH = (
    "Check the network, or download the model elsewhere and set `model` to its directory; "
    "`env = { HF_ENDPOINT = … }` names a mirror of the hub, HF_HUB_OFFLINE there forbids to ask it."
)

_MACHINE = (
    Rule(
        r"\[Errno 98\]|address already in use",
        "Port {port} is in use by another process.",
        "Stop that process (`ss -ltnp` names it), or choose another `port`.",
        retryable=True,
    ),
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

# What the hub and the loading of a checkpoint say, whichever server asks for them.
HUB = (
    Rule(
        r"(?P<code>401|403) Client Error[\s\S]{0,400}?Cannot access gated repo",
        "{model} is gated: the hub refused the download ({code}).",
        "Accept its licence on the hub, then put `HF_TOKEN=…` in a file and name it in `env_file`.",
    ),
    Rule(
        r"not a valid model identifier|not a local folder and is not",
        "The hub knows no model {model}, or it is private.",
        "Correct `model` (ORGANISATION/NAME, or a directory); a private one needs HF_TOKEN in `env_file`.",
    ),
    Rule(
        r"(?P<revision>\S+) is not a valid git identifier",
        "{model} has no revision {revision}.",
        "Correct what follows the @ in `model`.",
    ),
    Rule(
        r"outgoing traffic has been disabled|offline mode is enabled|HF_HUB_OFFLINE",
        "{model} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it.",
        "Take HF_HUB_OFFLINE out of `env`, or set `model` to a directory.",
    ),
    Rule(
        r"We couldn't connect to|thrown while requesting (?:HEAD|GET)|Max retries exceeded",
        "The hub cannot be reached, and {model} is not in the local cache.",
        _REACH,
        retryable=True,
    ),
    Rule(
        r"No space left on device",
        "The disk is full; a model of the hub is downloaded below HF_HOME.",
        'Free some space, or set `env = { HF_HOME = "/larger/disk" }`.',
    ),
    Rule(
        r"Permission denied: '(?P<path>[^']+)'",
        "The engine may not access {path}.",
        "Give its user access to it, or set `env = { HF_HOME = … }` to a directory of its own.",
    ),
    Rule(
        r"contains custom code which must be executed",
        "{model} brings Python code of its own, which is not run unless allowed.",
        "Read that code, then set `trust_remote_code = true`.",
    ),
    Rule(
        r"model type `(?P<type>[^`]+)` but Transformers does not recognize",
        "transformers in {python} does not know the architecture {type} of {model}.",
        "Upgrade it: {python} -m pip install --upgrade transformers; or choose another `model`.",
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

CHECKPOINT = (
    Rule(
        r"Error while deserializing header|file not fully covered|PytorchStreamReader failed",
        "A weights file of {model} is damaged or cut off.",
        "Download it again (remove it from the cache below HF_HOME first), or point `model` to a whole copy.",
    ),
    Rule(
        r"no file named (?:model\.safetensors|pytorch_model)|does not appear to have a file named \S*model",
        "{model} holds no weights (model.safetensors).",
        "Point `model` to a whole checkpoint; a LoRA adapter alone is none.",
    ),
    Rule(
        r"ignore_mismatched_sizes",
        "The weights of {model} do not have the shapes that its config.json says.",
        "Point `model` to a checkpoint whose config.json and weights belong together.",
    ),
    Rule(
        r"is not a valid JSON file",
        "config.json of {model} is not valid JSON.",
        "Restore it, or point `model` to a whole checkpoint.",
    ),
    Rule(
        r"Unrecognized processing class|Can't load tokenizer",
        "{model} has no tokenizer that transformers can load.",
        "Put tokenizer.json and tokenizer_config.json beside the weights that `model` names.",
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
    return recognise(RULES, request, failure, "\n".join(failure.log))


def recognise(
    rules: Sequence[Rule], request: EngineRequest[LlmOptions], failure: FailureReport, log: str
) -> Diagnosis | None:
    """The first of the rules that matches the log, its words filled in."""
    known = {
        "python": request.python,
        "model": request.model or "the model",
        "port": str(request.port),
        "name": request.name,
    }
    if failure.exit is not None and failure.exit.oom_kill:
        return Diagnosis(f"The kernel killed {request.name} because memory ran out.", _HOST_MEMORY)
    for rule in rules:
        match = re.search(rule.pattern, log)
        if match is None:
            continue
        words = known | {key: value or "" for key, value in match.groupdict().items()}
        return Diagnosis(_fill(rule.summary, words), _fill(rule.remedy, words), rule.retryable)
    return None


def _fill(text: str, words: dict[str, str]) -> str:
    # Not str.format: remedies show TOML, which has braces of its own.
    return re.sub(r"\{(\w+)\}", lambda match: words[match[1]], text)
