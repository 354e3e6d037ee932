"""Adapters that PEFT wrote: a directory with adapter_config.json, served together with its base model."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sagectl.plugin import EngineRequest, Facts, FileFacts, FileQuery, Refusal

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# With weights of its own beside it, the directory is a whole model.
WHOLE = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER = "tokenizer_config.json"
_MOST_READ = 1 << 20
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank`."""
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
MERGE = "merge it into its base (PEFT: merge_and_unload, then save_pretrained) and serve the result"

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in a directory.

    base: the model that it was trained on, as adapter_config.json names it; revision: of that on the hub.
    name: what clients ask for, unless the engine says otherwise.
    size: bytes of its weights, 0 where they are in no safetensors file.
    tokenizer: the directory has one of its own.
    """

    directory: str
    name: str
    base: str
    revision: str | None
    size: int
    tokenizer: bool
    config: Mapping[str, Any]

    @property
    def rank(self) -> int:
        """The highest rank of its matrices."""
        pattern = self.config.get("rank_pattern")
        ranks = [self.config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
        return max((rank for rank in ranks if isinstance(rank, int)), default=0)

    @property
    def vllm_rank(self) -> int | None:
        """The smallest of vLLM's ranks that holds it; None where there is none."""
        return next((rank for rank in VLLM_RANKS if rank >= self.rank), None)


def queries(request: EngineRequest[Any]) -> tuple[FileQuery, ...]:
    """The files by which one knows an adapter, in the directory that `model` means."""
    directory = _directory(request)
    if directory is None:
        return ()
    config = FileQuery(posixpath.join(directory, CONFIG), read=_MOST_READ)
    return (config, *(FileQuery(posixpath.join(directory, name)) for name in (WEIGHTS, TOKENIZER, *WHOLE)))


def read(request: EngineRequest[Any], facts: Facts) -> Adapter | Refusal | None:
    """The adapter that `model` names; None where it names something else."""
    directory = _directory(request)
    if directory is None:
        return None
    config, weights, tokenizer, *whole = (facts.file(query) for query in queries(request))
    if config.type != "file" or any(file.type == "file" for file in whole):
        return None
    path = posixpath.join(directory, CONFIG)
    found = _parsed(path, config)
    if isinstance(found, Refusal):
        return found
    base = found.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return Refusal(
            f"{path} does not say of which model it is an adapter",
            "write the base model's directory, or its name on the hub, there as base_model_name_or_path",
        )
    if base.startswith((".", "~")):
        return Refusal(
            f"{path} names its base model {base!r}, relative to a directory that nobody knows any more",
            "write the base model's absolute path there as base_model_name_or_path",
        )
    revision = found.get("revision")
    model = str(request.model).rstrip("/")
    return Adapter(
        directory=directory,
        name=posixpath.basename(model) if model.startswith("/") else model,
        base=base,
        revision=revision if isinstance(revision, str) and revision and not base.startswith("/") else None,
        size=weights.size,
        tokenizer=tokenizer.type == "file",
        config=found,
    )


def based(request: EngineRequest[OptionsT], adapter: Adapter) -> EngineRequest[OptionsT]:
    """The same engine with the adapter's base as its model."""
    return replace(request, model=adapter.base)


def of_base(adapter: Adapter, refusal: Refusal) -> Refusal:
    """What is wrong with the base model of an adapter, in its user's words."""
    return replace(
        refusal,
        reason=f"the base of the adapter {adapter.directory}: {refusal.reason}",
        remedy=f"put the base model there, or correct base_model_name_or_path in {CONFIG}",
    )


def vllm_trouble(adapter: Adapter) -> Refusal | None:
    """Why vLLM cannot serve this adapter as one (what its own PEFTHelper of 0.32 refuses)."""
    config = adapter.config
    kind = config.get("peft_type", "LORA")
    init = config.get("init_lora_weights", True)
    lacks = {
        f"adapters of the sort {kind}": kind != "LORA",
        "DoRA (use_dora)": config.get("use_dora"),
        f"modules that were trained whole (modules_to_save = {json.dumps(config.get('modules_to_save'))})": (
            config.get("modules_to_save")
        ),
        "biases (bias, lora_bias)": config.get("bias", "none") != "none" or config.get("lora_bias"),
        f"init_lora_weights = {json.dumps(init)}, which changes the base": (
            isinstance(init, str) and init.lower() not in _PLAIN_INITS
        ),
        "activated LoRA (alora_invocation_tokens)": config.get("alora_invocation_tokens"),
        "layer_replication": config.get("layer_replication"),
        "block-diagonal LoRA (use_bdlora)": config.get("use_bdlora"),
        "QALoRA (use_qalora)": config.get("use_qalora"),
        f"a rank of {adapter.rank}": adapter.vllm_rank is None,
    }
    found = next((what for what, so in lacks.items() if so), None)
    if found is None:
        return None
    return Refusal(f"vLLM does not serve {found}, which the adapter {adapter.directory} has", MERGE)


def _directory(request: EngineRequest[Any]) -> str | None:
    model = request.model or ""
    if not model or model.startswith((".", "~")):
        return None
    return model.rstrip("/") or "/" if model.startswith("/") else posixpath.join(request.models_dir, model)


def _parsed(path: str, file: FileFacts) -> Mapping[str, Any] | Refusal:
    why = file.error or ("it is larger than 1 MiB" if file.size > _MOST_READ else None)
    if why is None:
        try:
            found = json.loads(file.text or "")
            if isinstance(found, dict):
                return found
            why = "it is no JSON object"
        except (ValueError, RecursionError) as error:
            why = f"it is not valid JSON: {error}"
    return Refusal(f"{path} cannot be read: {why}", "save the adapter again, or mend that file")
