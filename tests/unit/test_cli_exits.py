"""Exit codes."""

from __future__ import annotations

import pytest

from sagectl import errors
from sagectl.cli import exits


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NoDaemon("x"), 5),
        (errors.UnknownEngine("x"), 4),
        (errors.Conflict("x"), 1),
        (errors.InvalidConfig([]), 1),
        (errors.Forbidden("x"), 1),
    ],
)
def test_an_error_has_its_exit_code(error: errors.SagectlError, code: int) -> None:
    assert exits.of_error(error) == code


@pytest.mark.parametrize(
    ("state", "code"),
    [("active", 0), ("inactive", 3), ("activating", 3), ("deactivating", 3), ("failed", 3)],
)
def test_a_state_has_its_exit_code(state: str, code: int) -> None:
    assert exits.of_engine({"state": state}) == code  # type: ignore[typeddict-item]
