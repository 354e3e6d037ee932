"""The loss in tiles: what the model's own code computes, with a fraction of its memory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sagectl_finetune.planning import TRAINER

pytestmark = pytest.mark.heavy

KINDS = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 3.0},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
PROGRAM = """
import json, sys
from pathlib import Path
from types import ModuleType
package = ModuleType("sagectl_finetune")
package.__path__ = [str(Path(sys.argv[1]).parent)]
sys.modules["sagectl_finetune"] = package
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from sagectl_finetune.trainer import head

class Largest(TorchDispatchMode):
    numbers = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return found

def step(model, **inputs):
    model.zero_grad()
    with Largest() as largest:
        loss = model(**inputs, num_items_in_batch=torch.tensor(77)).loss
        loss.backward()
    return loss.item(), [one.grad for one in model.parameters()], largest.numbers

torch.set_num_threads(1)
head.LEAST, head.TILE_ON_CPU = 16, 1
small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
small |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 997, "pad_token_id": 0}
found = {}
for kind, more in json.loads(sys.argv[2]).items():
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **{**small, **more})
    model = AutoModelForCausalLM.from_config(config).train()
    rows = torch.randint(1, 997, (4, 50))
    labels = rows.clone()
    labels[:, :10] = labels[1] = -100
    loss, gradients, plain = step(model, input_ids=rows, labels=labels)
    fused = head.fuse(model)
    tiled, others, most = step(model, input_ids=rows, labels=labels)
    worst = max(
        float((one - other).abs().max() / one.abs().max())
        for one, other in zip(gradients, others) if one is not None
    )
    nothing, _, _ = step(model, input_ids=rows, labels=torch.full_like(labels, -100))
    found[kind] = [fused, loss, tiled, worst, plain, most, nothing]
print(json.dumps(found))
"""


def test_loss_in_tiles_is_the_models_own(transformers_python: str) -> None:
    """Scaled, capped, tied to the embeddings: loss and all gradients are those of the model's own code."""
    assert Path(TRAINER).exists()
    command = [transformers_python, "-c", PROGRAM, TRAINER, json.dumps(KINDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(KINDS)
    for kind, (fused, loss, tiled, worst, plain, most, nothing) in found.items():
        assert fused, kind
        assert tiled == pytest.approx(loss, rel=1e-5), kind
        assert worst < 1e-4, kind
        assert nothing == 0, kind
        assert plain >= 4 * 50 * 997, kind
        assert most <= 997 * 24, kind  # a tile, or the weights; not the logits of all 200 tokens
