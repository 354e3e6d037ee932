"""Our trainer beside plain TRL: the same model, tokens, batches and adapter, turn by turn in one run.

Each run is a process of its own on one CPU thread. What is measured lies between two of its steps, so that
neither loading nor saving is in it: wall time as the process wrote it, and CPU time. Memory is the most that
the process ever had resident, with all libraries, and on a GPU what torch reserved.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sagectl_finetune import planning
from tests.acceptance.finetuning import Run
from tests.benchmarks.lab import Figures, sized
from tests.benchmarks.test_embedding import PROSE

pytestmark = pytest.mark.heavy

TRL = "SAGECTL_TRL_PYTHON"
HERE = Path(__file__).parent
ROUNDS = sized(5, 1)
WARM = 3
"""Steps before those that are measured."""
STEPS = WARM + sized(20, 5)
TICK = os.sysconf("SC_CLK_TCK")
WIDE = {
    **{"vocab_size": 32_768, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
HALF_BILLION = {
    **{"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
    **{"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
}


@dataclass(frozen=True, slots=True)
class Ran:
    """Of the measured steps: seconds and CPU seconds. memory: GiB at most. loss: mean of all steps."""

    wall: float
    cpu: float
    memory: float
    loss: float


def prepare(python: str, *words: str) -> str:
    """What prepare.py prints."""
    told = [python, str(HERE / "prepare.py"), *words]
    return subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def device(transformers_python: str) -> str:
    """What torch trains on here."""
    return prepare(transformers_python, "device")


@pytest.fixture(scope="module")
def models(
    transformers_python: str, starter_model: Path, device: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Models of random weights, by what they show."""
    wanted = {"half a billion, 151,936 words": HALF_BILLION} if device == "cuda" else {"32,768 words": WIDE}
    made = {} if device == "cuda" else {"tiny": starter_model}
    for name, config in wanted.items():
        made[name] = tmp_path_factory.mktemp("model") / "random"
        prepare(transformers_python, "model", str(made[name]), str(starter_model), json.dumps(config))
    return made


def chats(path: Path, rows: int, most: int) -> Path:
    """Short questions; answers of up to so many words, most of them short. The same in each run."""
    dice = random.Random(11)
    lines = []
    for _ in range(rows):
        length = min(most, max(2, round(dice.lognormvariate(0, 0.9) * most / 6)))
        asked = " ".join(dice.choices(PROSE.split(), k=max(2, most // 8)))
        answer = " ".join(dice.choices(PROSE.split(), k=length))
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines))
    return path


def observe(run: Run, start: Callable[[], Any]) -> Ran:
    """Run to the end; a look at the process's CPU time as soon as a step is told."""
    process = start()
    cpu: dict[int, float] = {}

    def seen(step: int) -> bool:
        if len(run.history) >= step:
            cpu[step] = _cpu_seconds(process.pid)
        return step in cpu

    for step in (WARM, STEPS):
        run.until(lambda step=step: seen(step), patience=3600)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, run.log
    at = {entry["step"]: entry["at"] for entry in run.history}
    last = run.history[-1]
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    loss = last["mean_loss"] if "mean_loss" in last else statistics.fmean(losses)
    on_gpu = last["memory_gb"] if run.settings["device"] == "cuda" else 0.0
    memory = on_gpu or usage.ru_maxrss / 2**20
    return Ran(at[STEPS] - at[WARM], cpu[STEPS] - cpu[WARM], memory, loss)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def say(figures: Figures, what: str, tokens: float, found: list[Ran]) -> None:
    """One row. tokens: of the measured steps."""

    def each(values: list[float], digits: int) -> str:
        low, high = min(values), max(values)
        return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"

    figures.add(
        f"fine-tuning, {what}",
        f"{each([tokens / ran.wall for ran in found], 0)} tokens/s, "
        f"{each([1e6 * ran.cpu / tokens for ran in found], 0)} µs of CPU a token, "
        f"{each([ran.memory for ran in found], 2)} GiB",
    )


def test_beside_trl(
    transformers_python: str, models: dict[str, Path], device: str, tmp_path: Path, figures: Figures
) -> None:
    trl = os.environ.get(TRL)
    if not trl:
        pytest.skip(f"{TRL} names no interpreter with trl, datasets and peft; `make bench` builds one")
    large = device == "cuda"
    data = chats(tmp_path / "chats.jsonl", rows=256, most=200 if large else 60)
    for name, model in models.items():
        options = {
            "model": model,
            "dataset": data,
            "max_steps": STEPS,
            "save_steps": 10_000,
            "device": device,
        }
        options |= {
            "lora_dropout": 0.0,
            "max_length": 1024 if large else 512,
            "lora_rank": 8,
            "lora_alpha": 16,
        }
        options |= {"batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-4, "seed": 42}
        options |= {"target_modules": "all-linear", "gradient_checkpointing": True}
        tokens = tmp_path / f"{model.name}.jsonl"
        found: dict[str, list[Ran]] = {"sagectl": [], "TRL": []}
        for number in range(ROUNDS):
            ours = Run(transformers_python, tmp_path / f"{model.name}-{number}", **options)
            theirs = Run(trl, tmp_path / f"{model.name}-{number}-trl", **options)
            if not tokens.exists():
                told = json.dumps(ours.settings)
                prepare(transformers_python, "tokens", str(tokens), told, planning.TRAINER)
            found["sagectl"].append(observe(ours, ours.start))
            command = [trl, str(HERE / "sft_trainer.py"), json.dumps(theirs.settings), str(tokens)]
            found["TRL"].append(observe(theirs, lambda run=theirs, words=command: started(run, words)))
        mean = statistics.fmean(
            len(json.loads(line)["input_ids"]) for line in tokens.read_text().splitlines()
        )
        for who, rans in found.items():
            say(figures, f"{name}: {who}", mean * 4 * (STEPS - WARM), rans)
        # They did the same work: the rows come in the same order, only the adapters begin with other numbers.
        assert found["sagectl"][0].loss == pytest.approx(found["TRL"][0].loss, rel=0.05)


def started(run: Run, words: list[str]) -> subprocess.Popen[bytes]:
    """Another program in place of the trainer."""
    with (run.home / "log").open("ab") as log:
        run.process = subprocess.Popen(
            words,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return run.process


def test_what_packing_gains(
    transformers_python: str, models: dict[str, Path], device: str, tmp_path: Path, figures: Figures
) -> None:
    """Batches of four rows: examples of different lengths, padded to the longest; or rows full of them."""
    data = chats(tmp_path / "chats.jsonl", rows=2048, most=80)
    model = next(iter(models.values()))
    found: dict[str, list[tuple[int, Ran]]] = {}
    for number in range(ROUNDS):
        for packing in (False, True):
            run = Run(
                transformers_python,
                tmp_path / f"{number}-{packing}",
                model,
                data,
                **{"packing": packing, "batch_size": 4, "max_length": 512, "device": device},
                **{"lora_dropout": 0.0, "max_steps": STEPS, "save_steps": 10_000},
            )
            ran = observe(run, run.start)
            steps = {entry["step"]: entry["trained_tokens"] for entry in run.history}
            found.setdefault("packed" if packing else "alone", []).append((steps[STEPS] - steps[WARM], ran))
    for name, rans in found.items():
        rates = [trained / ran.wall for trained, ran in rans]
        costs = [1e6 * ran.cpu / trained for trained, ran in rans]
        figures.add(
            f"fine-tuning, short rows {name}",
            f"{statistics.median(rates):,.0f} trained tokens/s ({min(rates):,.0f}–{max(rates):,.0f}), "
            f"{statistics.median(costs):,.0f} µs of CPU each ({min(costs):,.0f}–{max(costs):,.0f})",
        )
