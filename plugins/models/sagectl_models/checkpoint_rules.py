"""What the hub and the loading of a checkpoint say when they fail, whichever server asked for them.

The texts are those of transformers 5.23, huggingface_hub 2.4 and safetensors.
"""

from __future__ import annotations

from sagectl_models.rules import Rule

_REACH = (
    "Check the network, or download the model elsewhere and set `model` to its directory; "
    "`env = { HF_ENDPOINT = … }` names a mirror of the hub, HF_HUB_OFFLINE there forbids to ask it."
)

HUB = (
    Rule(
        r"(?P<code>401|403) Client Error[\s\S]{0,400}?Cannot access gated repo",
        "{model} is gated: the hub refused the download ({code}).",
        "Accept its licence on the hub, then put `HF_TOKEN=…` in a file and name it in `env_file`.",
    ),
    Rule(
        r"RepositoryNotFoundError|not a valid model identifier|not a local folder and is not",
        "The hub knows no model {model}, or it is private.",
        "Correct `model` (ORGANISATION/NAME, or a directory); a private one needs HF_TOKEN in `env_file`.",
    ),
    Rule(
        r"(?P<revision>\S+) is not a valid git identifier",
        "{model} has no revision {revision}.",
        "Correct what follows the @ in `model`.",
    ),
    Rule(
        r"RevisionNotFoundError",
        "{model} has no such revision.",
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
        r"is not a valid JSON file|JSONDecodeError",
        "A JSON file of {model}, such as config.json, is not valid JSON.",
        "Restore it, or point `model` to a whole checkpoint.",
    ),
    Rule(
        r"Unrecognized processing class|Can't load tokenizer",
        "{model} has no tokenizer that transformers can load.",
        "Put tokenizer.json and tokenizer_config.json beside the weights that `model` names.",
    ),
)
