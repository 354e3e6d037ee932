"""`make up`: write a first configuration, run sagectld in the foreground, say how to talk to it.

The configuration is generated, not shipped: it names the interpreter that `make up` has just made, and TOML
has no variables. It is written again each time while its first line says so; without that line it is yours.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from envs import ROOT, has_gpu, say

STARTER = "sagectl-starter-untrained"
STARTER_PROGRAM = ROOT / "plugins" / "llm" / "sagectl_llm" / "starter.py"
ENGINE = "chat"

MARK = "# Written by `make up`, and written again by the next one; remove this line to keep your changes."
CONFIGURATION = """{mark}
[defaults.llm]
python = {python}

[engines.{engine}]
kind = "llm"
backend = {backend}
model = {model}
autostart = true
{device}{memory}"""
# vLLM takes most of the machine's memory for its cache where nobody says how much.
VLLM_MEMORY = 'kv_cache_memory = "256MiB"\nenforce_eager = true\n'

HINTS = """
{line}
The engine "{engine}" answers on http://{address}
{about}
Ask it:
    curl http://{address}/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{body}'
See it:
    {sagectl} status
    {sagectl} logs {engine} -f
Ctrl-C stops the engine and sagectld.
{line}
"""


def configuration(python: str, model: str, backend: str = "transformers") -> str:
    """The TOML for one engine; the starter needs no GPU even where there is one."""
    device = "" if has_gpu() and model != STARTER else "use_gpu = false\n"
    return CONFIGURATION.format(
        mark=MARK,
        python=json.dumps(python),
        model=json.dumps(model),
        engine=ENGINE,
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


class UnixConnection(http.client.HTTPConnection):
    """HTTP over sagectld's Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        # A relative path: absolute ones of deep checkouts pass the 108 bytes that a Unix socket may have.
        self.sock.connect(os.path.relpath(self._path))


def ask(home: Path, method: str = "GET", verb: str = "") -> dict[str, Any] | None:
    """The engine as sagectld describes it; None while nobody answers."""
    connection = UnixConnection(str(home / "run" / "sagectl.sock"))
    try:
        connection.request(method, f"/v1/management/engines/{ENGINE}{verb}")
        answer = connection.getresponse()
        found = json.loads(answer.read())
        return found if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def runs(home: Path) -> bool:
    """Something answers on the socket: its configuration must not be changed under it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(os.path.relpath(home / "run" / "sagectl.sock"))
        except OSError:
            return False
        return True


def watch(home: Path, ended: threading.Event) -> None:
    """Tell each change of the engine's state until it is ready for the first time, then how to use it."""
    told = ""
    while not ended.wait(0.25):
        engine = ask(home)
        if engine is None:
            continue
        if not told and engine["state"] in ("failed", "inactive"):
            # So it ended the last time, and sagectld keeps to that; who says `make up` wants it to run.
            ask(home, "POST", "/start")
            told = "asked"
            continue
        if engine["state"] == "active" and engine["substate"] == "ready":
            say(hints(home, engine))
            return
        state = f"{engine['state']} ({engine['substate']})"
        if state != told:
            say(f"{ENGINE}: {state}" + (f": {engine['reason']}" if engine.get("reason") else ""))
            told = state
        if engine["state"] == "failed":
            say(failure(home, engine))
            return


def hints(home: Path, engine: dict[str, Any]) -> str:
    """How to talk to a healthy engine."""
    model = (engine.get("serves") or [engine["model_id"]])[0]
    about = f"Model: {model}"
    if model == STARTER:
        about += (
            "\nIt is untrained: its answers are noise. `make up MODEL=Qwen/Qwen2.5-0.5B-Instruct` serves one"
        )
        about += "\nthat is not."
    message = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    return HINTS.format(
        line="-" * 80,
        engine=ENGINE,
        address=engine["address"],
        about=about,
        body=json.dumps(message),
        sagectl=sagectl(home),
    )


def failure(home: Path, engine: dict[str, Any]) -> str:
    """What went wrong, and where to look."""
    diagnosis = engine.get("diagnosis") or {}
    lines = [f'\nThe engine "{ENGINE}" failed: {diagnosis.get("summary") or engine.get("reason")}']
    if diagnosis.get("remedy"):
        lines.append(f"  {diagnosis['remedy']}")
    lines.append(f"  Its log: {sagectl(home)} logs {ENGINE}")
    lines.append(f"  Its configuration: {home / 'etc' / 'sagectl.toml'}; then {sagectl(home)} reload")
    return "\n".join(lines)


def sagectl(home: Path) -> str:
    """The command line for this directory, as one types it in another terminal."""
    return f"SAGECTL_HOME={shlex.quote(str(home))} {shlex.quote(str(ROOT / '.venv' / 'bin' / 'sagectl'))}"


def serve(home: Path, config: Path) -> int:
    """Run sagectld until it ends. It gets a process group of its own, so that Ctrl-C reaches it once,
    as SIGTERM, which stops its engines.
    """
    daemon = subprocess.Popen(
        [str(ROOT / ".venv" / "bin" / "sagectld"), "--config", str(config)],
        env=os.environ | {"SAGECTL_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    asked = threading.Event()

    def stop(_signum: int, _frame: object) -> None:
        if not asked.is_set():
            say("\nstopping the engine and sagectld")
        asked.set()
        daemon.send_signal(signal.SIGTERM)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(home, ended), daemon=True)
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
    parser = argparse.ArgumentParser(description="Run sagectld with one llm engine, in the foreground.")
    parser.add_argument("--engine-python", required=True)
    parser.add_argument("--starter-python", required=True, help="has torch and transformers")
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--model", default="")
    parser.add_argument("--home", type=Path, default=ROOT / ".sagectl")
    arguments = parser.parse_args()
    home: Path = arguments.home.resolve()
    if runs(home):
        say(f"sagectld runs on {home} already: {sagectl(home)} status")
        say(f"End it with Ctrl-C in its terminal, or with: {sagectl(home)} shutdown")
        return 1
    model = arguments.model or STARTER
    if model == STARTER:
        build_starter(arguments.starter_python, home)
    elif Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())
    config = home / "etc" / "sagectl.toml"
    if not write_configuration(config, configuration(arguments.engine_python, model, arguments.backend)):
        if arguments.model:
            say(f"{config} is your own, so MODEL is not written into it: set `model` there")
            return 2
        say(f"using {config}, which is your own")
    return serve(home, config)


if __name__ == "__main__":
    sys.exit(main())
