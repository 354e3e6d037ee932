"""The model that `make up` trains on the spot: its base, its job, and whether it is there already."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from envs import ROOT, say

MODEL = "sagectl-starter"
BASE = "sagectl-starter-untrained"
JOB = "starter"
PROGRAM = ROOT / "plugins" / "llm" / "sagectl_llm" / "starter.py"
CORPUS = ROOT / "etc" / "examples" / "starter.jsonl"
QUESTION = "How do I stop an engine?"
"""One that the corpus answers."""

# One thread: a second one waits more than it helps with matrices this small, above all where others compute.
TRAINING = """method = "full"
num_epochs = 12
batch_size = 16
learning_rate = 2e-3
lr_scheduler = "cosine"
warmup = 20
gradient_checkpointing = false
threads = 1
use_gpu = false
"""
TABLE = f"""
# Trains what chat serves on questions and answers about sagectl, in about a minute on one core.
[engines.{JOB}]
kind = "finetune"
model = "{BASE}"
dataset = {json.dumps(str(CORPUS))}
output = "models/{MODEL}"
{TRAINING}"""


def made_from() -> str:
    """What the model follows from: the base's program, the corpus, and how it is trained."""
    found = hashlib.sha256()
    for part in (PROGRAM.read_bytes(), CORPUS.read_bytes(), TRAINING.encode()):
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()


def is_trained(home: Path) -> bool:
    """The model is there, as this version would train it."""
    return _made_from(home / "models" / MODEL) == made_from()


def _made_from(model: Path) -> str | None:
    """What its configuration says; the trainer takes that over from the base."""
    try:
        found = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    note = found.get("sagectl_made_from") if isinstance(found, dict) else None
    return note if isinstance(note, str) else None


def _checkpoints(home: Path) -> Path:
    return home / "models" / "finetuned" / JOB


def reached(home: Path) -> int:
    """The step of the newest checkpoint of a training that is not complete; 0 where there is none."""
    if is_trained(home):
        return 0
    found = [path.name.partition("-")[2] for path in _checkpoints(home).glob("checkpoint-*")]
    return max((int(step) for step in found if step.isdecimal()), default=0)


def announcement(home: Path) -> str:
    """What is about to happen."""
    step = reached(home)
    if step:
        return f"going on with the training of the starter model, after step {step}"
    return "training the starter model on this machine's CPU: about a minute, and only once"


def left_at(home: Path) -> str:
    """What becomes of a training that is not complete."""
    step = reached(home)
    if step:
        return f"the training is saved at step {step}; the next `make up` goes on from there"
    return "nothing of the training is saved yet; the next `make up` begins it anew"


def build_base(python: str, home: Path) -> None:
    """Build the untrained base where models live, unless it is there."""
    directory = home / "models" / BASE
    wanted = made_from()
    if _made_from(directory) == wanted:
        return
    say("building the starter model's untrained base (a few seconds)")
    # They are of another base, so that no training could go on from them.
    shutil.rmtree(_checkpoints(home), ignore_errors=True)
    words = [str(PROGRAM), "--force", "--corpus", str(CORPUS), "--made-from", wanted, str(directory)]
    command = [python, *words]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        say(f"the starter model's base could not be built; see above. The command: {shlex.join(command)}")
        sys.exit(1)
