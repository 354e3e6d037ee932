"""Run `transformers serve` for an adapter that PEFT wrote, together with its base model.

Run by its path in an interpreter that need not have sagectl:

    python run_adapter.py BASE ADAPTER NAME serve NAME …

`transformers serve` looks for a config.json beside whatever it is told to serve, and an adapter has none.
But it loads a whole model with an adapter embedded in it, so `served/NAME` below the working directory
becomes one: links to the files of both, the adapter's tokenizer before the base's. The server then runs in
`served`, because it answers to the name of the directory as it was told.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

CONFIG = "adapter_config.json"
PLACE = "served"
# What an adapter may bring beside itself; the rest (optimizers, notes) is no part of a model.
BROUGHT = (
    *("adapter_model*", "tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "spiece.model", "generation_config.json"),
)
# Weights in formats that are not loaded where there are safetensors.
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "original/*")


def fetched(base: str) -> Path:
    """The directory of the base: as named, or from the hub, with `@REVISION` at will."""
    if base.startswith("/"):
        return Path(base)
    from huggingface_hub import snapshot_download

    name, _, revision = base.partition("@")
    found = Path(snapshot_download(name, revision=revision or None, ignore_patterns=list(OTHER_FORMATS)))
    if not list(found.glob("*.safetensors")):
        found = Path(snapshot_download(name, revision=revision or None))
    return found


def assemble(base: Path, adapter: Path, place: Path) -> None:
    """Make `place` a model with an adapter embedded, anew."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    files = {path.name: path for path in base.iterdir() if not path.name.startswith("adapter_")}
    for pattern in BROUGHT:
        files |= {path.name: path for path in adapter.glob(pattern)}
    for name, path in files.items():
        (place / name).symlink_to(path.resolve())
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    # Older releases take the base from here even though it lies beside.
    config |= {"base_model_name_or_path": str(base), "revision": None}
    (place / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def main() -> None:
    """Assemble, and hand over."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    base, adapter, name = sys.argv[1:4]
    assemble(fetched(base), Path(adapter), Path(PLACE, name))
    os.chdir(PLACE)
    capped = here / "run_capped.py"
    sys.argv[:] = [str(capped), *sys.argv[4:]]
    runpy.run_path(str(capped), run_name="__main__")


if __name__ == "__main__":
    main()
