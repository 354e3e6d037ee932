"""The script that SAGE's users had, with `sagectl` for its words: from a data set to an answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.finetuning import write_chats
from tests.acceptance.harness import BIN, Daemon, free_port

pytestmark = pytest.mark.heavy

SCRIPT = r"""
set -euo pipefail
cd "$WORK"
ENGINE_ID=$(sagectl engine start ./base --engine-kind finetune --dataset data.jsonl --output tuned \
    --num-epochs 1 | grep -oP 'engine-\w+')
echo "== $ENGINE_ID"
sagectl engine list
echo "== log"
sagectl logs $ENGINE_ID --tail 20
echo "== end"
sagectl fine-tune --follow --name $ENGINE_ID
echo "== stopped"
sagectl engine stop $ENGINE_ID
sagectl engine status $ENGINE_ID || echo "code $?"
echo "== served"
sagectl engine start tuned --engine-kind llm --port $PORT
echo "== answer"
curl --silent --show-error --fail http://127.0.0.1:$PORT/v1/chat/completions \
    -H 'Content-Type: application/json' \
    -d '{"model": "tuned", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}'
echo
echo "== done"
sagectl engine stop --port $PORT
"""


def test_the_old_script_goes_from_data_to_an_answer(
    daemon: Daemon, transformers_python: str, starter_model: Path, tmp_path: Path
) -> None:
    """Start of a job whose id is taken out of what is printed, list, log, stop, start of the result, a chat.

    Result: the list has the id; the log is the trainer's; a completed job may be stopped;
    the result answers at its own port under its directory's name.
    """
    python = json.dumps(transformers_python)
    daemon.configure(
        f"[defaults.finetune]\npython = {python}\nuse_gpu = false\nthreads = 1\n"
        f"[defaults.llm]\npython = {python}\nuse_gpu = false\nthreads = 1\n"
    )
    daemon.environ |= {"HF_HUB_OFFLINE": "1"}
    daemon.start()
    (tmp_path / "base").symlink_to(starter_model)
    write_chats(tmp_path / "data.jsonl", rows=160)
    places = {"WORK": str(tmp_path), "PORT": str(free_port()), "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", SCRIPT],
        env={**daemon.environ, **places},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    parts = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    job = next(iter(parts))
    assert re.fullmatch(r"engine-[0-9a-f]{8}", job)
    [listed] = [line for line in parts[job].splitlines() if job in line]
    assert re.search(r"finetune +base +(active \(running\)|inactive \(completed\))", listed), listed
    assert f"{job}: inactive (completed)" in done.stderr
    assert "inactive (completed)" in parts["stopped"]
    assert "code 3" in parts["stopped"]
    assert re.fullmatch(r"engine-[0-9a-f]{8}\n", parts["served"])
    answer = json.loads(parts["answer"])
    assert (answer["choices"][0]["message"]["role"], answer["usage"]["completion_tokens"]) == ("assistant", 8)
    log = daemon.cli("logs", job).stdout
    assert re.search(r"step 40/40: loss \d", log)
    assert (tmp_path / "tuned" / "adapter_config.json").exists()
