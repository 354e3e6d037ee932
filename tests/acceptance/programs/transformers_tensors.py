"""Run by an interpreter with transformers: the tensors of the models whose config.json lie in a directory.

No memory is taken: the models are made on torch's device `meta`.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

found = {}
for file in sorted(Path(sys.argv[1]).glob("*.json")):
    values = json.loads(file.read_text())
    values.pop("quantization_config", None)
    kind = values.pop("model_type")
    loader = AutoModelForImageTextToText if "vision_config" in values else AutoModelForCausalLM
    with torch.device("meta"):
        model = (AutoModel if kind == "bert" else loader).from_config(AutoConfig.for_model(kind, **values))
    tensors, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied ones are in a file once
            seen.add(id(tensor))
            tensors[name] = list(tensor.shape)
    found[file.stem] = tensors
sys.stdout.write("\n" + json.dumps(found) + "\n")
