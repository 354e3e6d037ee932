"""The base model, its tokenizer and the adapter, as the options say."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any

from sagectl_finetune.trainer.records import say
from sagectl_finetune.trainer.settings import Refused, Settings

FRACTION = "SAGECTL_GPU_MEMORY_FRACTION"
"""Variable with the share of each GPU that sagectl reserved for torch."""
_ATTENTION = {"auto": "sdpa"}


def device_of(settings: Settings) -> str:
    """`cuda` or `cpu`. Raises Refused where a GPU was given and torch finds none."""
    import torch

    if settings.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        if "LOCAL_RANK" in os.environ:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # else all load onto the first
        return "cuda"
    if settings.device == "auto":
        return "cpu"
    built = "was built without CUDA" if not torch.backends.cuda.is_built() else "finds no GPU"
    raise Refused(
        f"the job was given a GPU, and torch {torch.__version__} {built}",
        "install a build of torch with CUDA, or set `use_gpu = false` to train on the CPU",
    )


def device_name() -> str:
    """Of the GPU that is in use; `cpu` where none is."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_initialized() else "cpu"


def cap_memory() -> None:
    """Keep torch within what sagectl reserved on each GPU."""
    share = os.environ.get(FRACTION)
    if share is None:
        return
    import torch

    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_per_process_memory_fraction(float(share), device)
        say(f"torch may take {float(share):.2%} of GPU {device}, as sagectl reserved")


def compute_dtype(settings: Settings, device: str) -> str:
    """What the base computes in: bfloat16 where the hardware has it, unless the options say."""
    import torch

    if settings.dtype != "auto":
        return settings.dtype
    if device == "cpu":
        return "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32" if settings.method == "full" else "float16"


def tokenizer_of(settings: Settings) -> Any:
    """The base model's tokenizer, with a token to pad with."""
    from transformers import AutoTokenizer

    name, revision = settings.base
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=revision, trust_remote_code=settings.trust_remote_code
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def parameters(settings: Settings) -> tuple[int, int]:
    """How many are trained, and how many there are; from the configuration, no weights are read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    name, revision = settings.base
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=settings.trust_remote_code)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
        whole = sum(one.numel() for one in empty.parameters())
        made = with_adapter(settings, empty)
    return sum(one.numel() for one in made.parameters() if one.requires_grad), whole


def own_dtype(settings: Settings) -> str:
    """What the base model is stored in."""
    from transformers import AutoConfig

    name, revision = settings.base
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=settings.trust_remote_code)
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def load_base(settings: Settings, dtype: str, device: str, *, stored: str | None = None) -> Any:
    """The base model. stored: how it is quantised; None as the options say."""
    import torch
    from transformers import AutoModelForCausalLM

    name, revision = settings.base
    # Full fine-tuning keeps float32 parameters and computes in `dtype`: 16 bits lose small updates.
    held = "float32" if settings.method == "full" else dtype
    more: dict[str, Any] = {}
    quantisation = quantised(settings.stored if stored is None else stored, dtype)
    if quantisation is not None:
        more["quantization_config"] = quantisation
        more["device_map"] = {"": torch.cuda.current_device() if device == "cuda" else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        name,
        revision=revision,
        dtype=getattr(torch, held),
        attn_implementation=_ATTENTION.get(settings.attention, settings.attention),
        trust_remote_code=settings.trust_remote_code,
        **more,
    )
    model.config.use_cache = False
    return model.to(device) if quantisation is None else model


def quantised(stored: str, dtype: str) -> Any:
    """What transformers calls a quantisation config; None for none."""
    if stored == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if stored == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=stored == "nf4-double",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def with_adapter(settings: Settings, model: Any) -> Any:
    """The model that is trained: with an adapter, unless all parameters are."""
    if settings.method == "full":
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = settings.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        revision=settings.base[1],
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        if "arget module" not in str(error):
            raise
        raise Refused(
            f"target_modules: {error}", 'correct `target_modules`, or write "all-linear"'
        ) from error


def fingerprint(settings: Settings) -> str:
    """What tells one base model from another: its configuration and the sizes of its files."""
    name, revision = settings.base
    directory = Path(name)
    if not directory.is_dir():
        return f"{name}@{revision}" if revision else name
    found = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.name == "config.json":
            found.update(path.read_bytes())
        if path.suffix in (".safetensors", ".bin", ".gguf") or path.name.startswith("tokenizer"):
            found.update(f"{path.name} {path.stat().st_size}\n".encode())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Of what changes bits."""
    found = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
