"""Fixtures of the acceptance tests: real daemons on directories of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.harness import Daemon


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
