"""`fine-tune --dry-run`, with a kind `finetune` whose trainer says at once what it is told to say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli_daemon import FakeDaemon
from tests.models import config

ROOT = Path(__file__).parents[2]
KIND = '''
import json
from dataclasses import dataclass
from sagectl.plugin import (
    CheckpointQuery, InterpreterQuery, LaunchPlan, MemoryEstimate, MemoryPart, Mode, Refusal, Shape, hookimpl,
    option,
)

TRAINER = """
import json, os, sys
assert sys.argv[-1] == "--dry-run"
told = json.loads(sys.argv[1])
print("a library says hello")
if told.get("stderr"):
    print(told["stderr"], file=sys.stderr)
found = {"gpus": os.environ["CUDA_VISIBLE_DEVICES"], "seen": os.environ.get("SEEN")}
print(json.dumps(told.get("report", {}) | found))
sys.exit(told.get("code", 0))
"""

@dataclass(frozen=True)
class Options:
    dataset: str = option("data")
    output: str = option("result")
    num_epochs: float = option("epochs", default=3.0)
    gib: int = option("what it needs", default=20)
    ranks: int = option("on how many GPUs", default=1)
    says: str = option("what the trainer says", default="{}")

class Finetune:
    name, summary, mode, options, default_port = "finetune", "a stand-in", Mode.RUN, Options, None
    def listens(self, options): return False
    def facts(self, request): return (InterpreterQuery(request.python, ("json",)),)
    def further_facts(self, request, facts): return (CheckpointQuery(request.model, request.models_dir),)
    def estimate(self, request, facts):
        found = facts.checkpoint(CheckpointQuery(request.model, request.models_dir))
        if found.error:
            return Refusal(found.error, "download it")
        if request.gpus == 0:
            return MemoryEstimate((Shape(ranks=()),), notes=("it uses no GPU",))
        rank = (MemoryPart("weights", request.options.gib << 30, "told"),)
        return MemoryEstimate((Shape((rank,) * request.options.ranks),))
    def plan(self, request, facts):
        if not request.options.dataset.endswith(".jsonl"):
            return Refusal("there is no data", "name some", ("1 - 1 = 0",))
        return LaunchPlan((request.python, "-c", TRAINER, request.options.says))
    def explain(self, request, failure): return None
    def progress(self, text): return None

@hookimpl
def sagectl_engine_kinds():
    return (Finetune(),)
'''
REPORT = {
    **{
        "rows": 1200,
        "tokens": 1000,
        "tokens_trained": 250,
        "format": "messages",
        "steps": 75,
        "template": None,
    },
    "bad_rows": [{"file": "d.jsonl", "row": n, "reason": "it has no answer"} for n in range(1, 13)],
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with the kind, a model and a configuration; no daemon runs."""
    package = tmp_path / "packages" / "sagectl_finetune"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(KIND)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config("Qwen2.5-7B-Instruct")))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "sagectl.toml").write_text("")
    return tmp_path


def rehearsed(
    home: Path, *words: str, says: Any = None, data: str = "d.jsonl"
) -> subprocess.CompletedProcess[str]:
    told = json.dumps(json.dumps(says or {"report": REPORT}))
    command = [sys.executable, "-c", "from sagectl.cli.main import main; main()", "fine-tune", "--dry-run"]
    given = ["--base-model", "./base", "--dataset", data, "--output", "out", "-o", f"says={told}"]
    paths = [str(home / "packages"), str(ROOT), *sys.path]
    env = {**os.environ, "SAGECTL_HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(
        [*command, *given, *words], cwd=home, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_it_shows_the_trainers_report_the_memory_and_where_it_fits(home: Path) -> None:
    done = rehearsed(home, "-o", "env.SEEN=yes")
    assert done.returncode == 0, done.stderr
    out = [" ".join(line.split()) for line in done.stdout.splitlines()]
    tokens = "Tokens: 1,000, loss on 250, 25.0% of them"
    for line in ("Data: 1,200 rows as messages", "Steps: 75", tokens, "Seen: yes"):
        assert line in out
    assert "Bad rows: d.jsonl:1: it has no answer" in out
    assert "d.jsonl:10: it has no answer" in out
    assert "and 2 more" in out
    assert "d.jsonl:11: it has no answer" not in out
    assert "together 20.0 GiB" in out
    assert not any(line.startswith("Gpus: 0") for line in out)
    assert "Traceback" not in done.stderr


def test_it_needs_no_gpu_where_the_job_uses_none(home: Path) -> None:
    done = rehearsed(home, "--no-gpu")
    assert done.returncode == 0, done.stderr
    assert "it uses no GPU" in done.stdout
    assert "together" not in done.stdout


def test_json_has_report_memory_and_refusal(home: Path) -> None:
    found = json.loads(rehearsed(home, "--json").stdout)
    assert (found["ok"], found["refusal"]) == (True, None)
    assert found["report"] == {**REPORT, "gpus": "", "seen": None}
    assert found["memory"]["needed_gb"] == 20.0
    assert {fit["fits"] for fit in found["memory"]["fits"]} >= {True}


def test_a_job_that_fits_on_no_gpu_is_refused_with_all_that_is_known(home: Path) -> None:
    words = ("-o", "gib=200")
    done = rehearsed(home, *words)
    assert done.returncode == 1
    assert "it needs 200.0 GiB of GPU memory, and no GPU has more than" in done.stderr
    assert "Steps: 75" in done.stdout
    found = json.loads(rehearsed(home, *words, "--json").stdout)
    assert (found["ok"], found["refusal"]["code"]) == (False, "unplaceable")
    assert found["report"]["steps"] == 75
    assert {fit["fits"] for fit in found["memory"]["fits"]} == {False}


def test_the_gpus_that_a_daemon_has_decide(home: Path) -> None:
    (home / "run").mkdir()
    daemon = FakeDaemon(home / "run" / "sagectl.sock")
    card = {"gpu_id": 0, "name": "L4", "memory_total_gb": 24.0, "memory_free_gb": 3.0, "lost": None}
    daemon.answers["gpu"] = (200, {"devices": [card]})
    time = {"seconds": 9.0, "tokens_per_second": 5.0, "job": "a", "device": "cpu", "differs": {}}
    says = {"report": REPORT | {"time": time}}
    try:
        full = rehearsed(home, says=says)
        assert full.returncode == 0, full.stderr
        assert "no GPU has that much free now: the job would wait" in full.stdout
        assert "of training" not in full.stdout, "it says nothing of a GPU how fast the CPU is"
        several = rehearsed(home, "-o", "ranks=2")
        assert several.returncode == 1
        assert "it wants 2 GPUs with 20.0 GiB each, and there are not so many here" in several.stderr
        card["memory_free_gb"] = 23.0
        assert "would wait" not in rehearsed(home).stdout
    finally:
        daemon.close()
    if not Path("/dev/nvidiactl").exists():
        assert "about 9s of training, as a did 5 tokens/s" in rehearsed(home, says=says).stdout


def test_a_refusals_reasons_are_all_told(home: Path) -> None:
    because = [f"d.jsonl:{row}: it has no answer" for row in range(1, 31)]
    told = {"refused": "30 rows are bad", "remedy": "correct them", "because": because}
    done = rehearsed(home, says={"code": 65, "report": told, "stderr": "refused: 30 rows are bad"})
    assert done.returncode == 1
    assert "30 rows are bad. Correct them" in done.stderr
    assert all(line in done.stderr for line in because)


def test_what_the_trainer_refuses_is_told_in_its_words(home: Path) -> None:
    said = "refused: nothing would be trained\nremedy: give it answers"
    done = rehearsed(home, says={"code": 65, "stderr": said})
    assert done.returncode == 1
    assert "nothing would be trained. Give it answers" in done.stderr
    found = json.loads(rehearsed(home, "--json", says={"code": 65, "stderr": said}).stdout)
    assert (found["ok"], found["report"]) == (False, None)
    assert found["refusal"]["detail"].startswith("nothing would be trained")


def test_a_trainer_that_dies_shows_its_last_lines(home: Path) -> None:
    done = rehearsed(home, says={"code": 3, "stderr": "Traceback\nValueError: odd"})
    assert done.returncode == 1
    assert "ended with 3" in done.stderr
    assert "ValueError: odd" in done.stderr


def test_what_the_kind_refuses_ends_it_before_the_trainer_runs(home: Path) -> None:
    done = rehearsed(home, data="d.parquet", says={"stderr": "I ran"})
    assert done.returncode == 1
    assert "there is no data. Name some" in done.stderr
    assert "1 - 1 = 0" in done.stderr
    assert "I ran" not in done.stderr


def test_mistakes_in_the_definition_are_all_named(home: Path) -> None:
    done = rehearsed(home, "-o", "num_epoch=1", "-o", 'port="x"')
    assert done.returncode == 1
    assert "num_epoch" in done.stderr
    assert "port" in done.stderr


def test_the_configurations_defaults_count(home: Path) -> None:
    (home / "etc" / "sagectl.toml").write_text('[defaults.finetune]\npython = "/nowhere/python"\n')
    done = rehearsed(home)
    assert done.returncode == 1
    assert "/nowhere/python" in done.stderr
