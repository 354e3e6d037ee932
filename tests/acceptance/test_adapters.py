"""An adapter that PEFT wrote, served with its base by the real servers: the answers are the adapter's."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.harness import Daemon, free_port

pytestmark = pytest.mark.heavy

START = 300.0
"""Seconds for a start of vLLM on two cores."""
TOKENS = 12
VOCABULARY = 259
"""Of the starter model."""
# Writes a LoRA adapter of random matrices, of rank 8 but for one of rank 12, and prints what both generate.
MAKE = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
base, directory, tokens = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base)
def text():
    given = tokenizer("Hello", return_tensors="pt")
    made = model.generate(**given, max_new_tokens=int(tokens), do_sample=False)
    return tokenizer.decode(made[0][given["input_ids"].shape[1]:])
before = text()
torch.manual_seed(1)
config = LoraConfig(r=8, rank_pattern={"o_proj": 12}, lora_alpha=64, target_modules="all-linear",
                    task_type="CAUSAL_LM", init_lora_weights=False)
model = get_peft_model(model, config)
model.save_pretrained(directory)
tokenizer.save_pretrained(directory)
print(json.dumps([before, text()]))
"""


@pytest.fixture(scope="module")
def adapter(
    starter_model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, str, str]:
    """Its directory, what the base generates, and what base and adapter generate together."""
    python = request.getfixturevalue("transformers_python")
    if subprocess.run([python, "-c", "import peft"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no peft")
    directory = tmp_path_factory.mktemp("tuned") / "support"
    made = subprocess.run(
        [python, "-c", MAKE, starter_model, directory, str(TOKENS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    before, after = json.loads(made.stdout.splitlines()[-1])
    assert before != after
    return directory, before, after


def completed(port: int, model: str, **more: Any) -> str:
    """What an engine generates greedily."""
    body = {"model": model, "prompt": "Hello", "max_tokens": TOKENS, "temperature": 0} | more
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    return str(json.loads(text)["choices"][0]["text"])


def test_transformers_serves_an_adapter_with_its_base(
    daemon: Daemon, adapter: tuple[Path, str, str], transformers_python: str
) -> None:
    """`engine start DIRECTORY` with the back end transformers, and once more under another name."""
    directory, _before, after = adapter
    daemon.environ |= {"HF_HUB_OFFLINE": "1"}
    daemon.start()
    for options, name in (((), "support"), (("-o", "served_model_name=team/help"), "team/help")):
        port = free_port()
        words = ("engine", "start", str(directory), "--python", transformers_python, "--no-gpu")
        started = daemon.cli(*words, "--port", str(port), "-o", "threads=1", *options, timeout=120)
        assert started.returncode == 0, started.stderr
        assert daemon.show(started.stdout.strip())["serves"] == [name]
        assert completed(port, name) == after
        assert daemon.cli("stop", started.stdout.strip()).returncode == 0


@pytest.mark.vllm
def test_vllm_serves_an_adapter_and_its_base(
    daemon: Daemon, adapter: tuple[Path, str, str], vllm_python: str
) -> None:
    """The same with vLLM in float32: the adapter answers under its name, the base under its own."""
    directory, before, after = adapter
    daemon.environ |= {"HF_HUB_OFFLINE": "1"}
    daemon.start()
    port = free_port()
    options = ("dtype=float32", "enforce_eager=true", "kv_cache_memory=256MiB", "backend=vllm")
    words = [word for option in options for word in ("-o", option)]
    start = ("engine", "start", str(directory), "--python", vllm_python, "--no-gpu", "--port", str(port))
    started = daemon.cli(*start, *words, timeout=START)
    assert started.returncode == 0, started.stderr
    assert daemon.show(started.stdout.strip())["serves"] == ["support"]
    base = json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"]
    # vLLM does not read these from generation_config.json as transformers does.
    generation = json.loads(Path(base, "generation_config.json").read_text())
    printable = sorted(set(range(VOCABULARY)) - set(generation["suppress_tokens"]))
    assert completed(port, "support", allowed_token_ids=printable) == after
    assert completed(port, base, allowed_token_ids=printable) == before


def test_an_adapter_whose_base_is_gone_is_refused_before_anything_runs(
    daemon: Daemon, adapter: tuple[Path, str, str], transformers_python: str, tmp_path: Path
) -> None:
    """adapter_config.json names a directory that was moved away."""
    directory, _, _ = adapter
    broken = tmp_path / "broken"
    broken.mkdir()
    config = json.loads((directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/nowhere/base"
    (broken / "adapter_config.json").write_text(json.dumps(config))
    daemon.start()
    started = daemon.cli("engine", "start", str(broken), "--python", transformers_python, "--no-gpu")
    assert started.returncode == 1
    assert "/nowhere/base does not exist" in started.stderr
    assert "adapter_config.json" in started.stderr


def test_a_base_in_the_hubs_cache_is_found_offline(
    daemon: Daemon, adapter: tuple[Path, str, str], starter_model: Path, transformers_python: str
) -> None:
    """The base is named as on the hub, and lies in the local cache of it; there is no network."""
    directory, _, after = adapter
    repository = daemon.home / "hub" / "models--team--starter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir()
    snapshot.symlink_to(starter_model)
    tuned = daemon.home / "tuned"
    tuned.mkdir()
    for file in directory.iterdir():
        (tuned / file.name).symlink_to(file)
    config = json.loads((directory / "adapter_config.json").read_text())
    (tuned / "adapter_config.json").unlink()
    (tuned / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "team/starter"})
    )
    daemon.start()
    port = free_port()
    words = ("engine", "start", str(tuned), "--python", transformers_python, "--no-gpu", "--port", str(port))
    offline = ("-o", "env.HF_HUB_OFFLINE=1", "-o", f"env.HF_HUB_CACHE={daemon.home / 'hub'}")
    started = daemon.cli(*words, "-o", "threads=1", *offline, timeout=120)
    assert started.returncode == 0, started.stderr
    assert completed(port, "tuned") == after
