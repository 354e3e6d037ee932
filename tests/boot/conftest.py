"""The machine of the boot tests, booted once for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.machine import Machine

TREE = "SAGECTL_BOOT_TREE"


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A booted Debian with sagectl installed and not yet enabled."""
    tree = os.environ.get(TREE)
    if not tree:
        pytest.skip(f"{TREE} names no tree; `make test-boot` makes one and sets it")
    one = Machine(Path(tree))
    try:
        one.install()
        one.boot()
        yield one
    finally:
        one.close()
