"""Failures of the embedding server in the user's words, recognised by what it logs.

The texts are those of sentence-transformers 6.2, transformers 5.23, huggingface_hub 2.4 and of the server
itself; tests/data/embedding holds excerpts. Every remedy names what to change in the TOML, or the command to
run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sagectl.plugin import Diagnosis, EngineRequest, FailureReport
from sagectl_embedding.options import EmbeddingOptions


@dataclass(frozen=True, slots=True)
class Rule:
    """One cause. `pattern` is searched in the log; `{python}`, `{model}`, `{port}`, `{name}` and the
    pattern's named groups are filled into `summary` and `remedy`.
    """

    pattern: str
    summary: str
    remedy: str
    retryable: bool = False


_HOST_MEMORY = "Choose a smaller model or a smaller `max_batch_tokens`, or stop other programs."
_WHOLE = "Point `model` to a whole copy of the model, or download it again."

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
    Rule(
        r"CUDA out of memory|CUDA error: out of memory|HIP out of memory",
        "The GPU has too little free memory for {model}.",
        'Free memory on the card, set `dtype = "bfloat16"` or a smaller `max_batch_tokens`, or take '
        "`gpu_ids` out to run on the CPU.",
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
        "Take `gpu_ids` and `device` out to run on the CPU, or install a CUDA build of torch there.",
    ),
    Rule(
        r"Found no NVIDIA driver|NVIDIA driver on your system is too old|No CUDA GPUs are available"
        r"|CUDA error: invalid device ordinal",
        "torch finds no usable GPU.",
        "Check `nvidia-smi`, `gpu_ids` and `device`, or take both out to run on the CPU.",
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
    Rule(
        r"GatedRepoError: (?P<code>\d+)|Cannot access gated repo",
        "{model} is gated: the hub refused the download.",
        "Accept its licence on the hub, then put `HF_TOKEN=…` in a file and name it in `env_file`.",
    ),
    Rule(
        r"RevisionNotFoundError|is not a valid git identifier",
        "{model} has no such revision.",
        "Correct what follows the @ in `model`.",
    ),
    Rule(
        r"RepositoryNotFoundError|not a valid model identifier|not a local folder and is not",
        "The hub knows no model {model}, or it is private.",
        "Correct `model` (ORGANISATION/NAME, or a directory); a private one needs HF_TOKEN in `env_file`.",
    ),
    Rule(
        r"couldn't connect to[\s\S]*HF_HUB_OFFLINE is set|outgoing traffic has been disabled",
        "{model} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it.",
        "Take HF_HUB_OFFLINE out of `env`, or set `model` to a directory.",
    ),
    Rule(
        r"We couldn't connect to|thrown while requesting (?:HEAD|GET)|Max retries exceeded",
        "The hub cannot be reached, and {model} is not in the local cache.",
        "Check the network, or download the model elsewhere and set `model` to its directory; "
        "`env = { HF_ENDPOINT = … }` names a mirror of the hub.",
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
        "Upgrade it: {python} -m pip install --upgrade transformers sentence-transformers; or choose another "
        "`model`.",
    ),
    Rule(
        r"unrecognized arguments: (?P<flags>[^\n]+)",
        "The embedding server knows no flag {flags}.",
        "Correct `extra_args`.",
    ),
    Rule(
        r"Error while deserializing header|file not fully covered|PytorchStreamReader failed",
        "A weights file of {model} is damaged or cut off.",
        _WHOLE,
    ),
    Rule(
        r"no file named (?:model\.safetensors|pytorch_model)|does not appear to have a file named \S*model",
        "{model} holds no weights (model.safetensors).",
        _WHOLE,
    ),
    Rule(
        r"ignore_mismatched_sizes",
        "The weights of {model} do not have the shapes that its config.json says.",
        "Point `model` to a checkpoint whose config.json and weights belong together.",
    ),
    Rule(
        r"is not a valid JSON file|JSONDecodeError",
        "A JSON file of {model} (config.json, modules.json) is not valid JSON.",
        _WHOLE,
    ),
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
    known = {
        "python": request.python,
        "model": request.model or "the model",
        "port": str(request.port),
        "name": request.name,
    }
    if failure.exit is not None and failure.exit.oom_kill:
        return Diagnosis(f"The kernel killed {request.name} because memory ran out.", _HOST_MEMORY)
    log = "\n".join(failure.log)
    for rule in RULES:
        match = re.search(rule.pattern, log)
        if match is None:
            continue
        words = known | {key: value or "" for key, value in match.groupdict().items()}
        return Diagnosis(_fill(rule.summary, words), _fill(rule.remedy, words), rule.retryable)
    return None


def _fill(text: str, words: dict[str, str]) -> str:
    # Not str.format: remedies show TOML, which has braces of its own.
    return re.sub(r"\{(\w+)\}", lambda match: words[match[1]], text)
