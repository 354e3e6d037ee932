"""Exit codes, all in one place. 2, 3 and 4 are click's and the LSB's (as `systemctl status`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagectl import errors

if TYPE_CHECKING:
    from sagectl.client import Engine

OK = 0
FAILURE = 1
USAGE = 2
NOT_ACTIVE = 3
UNKNOWN = 4
NO_DAEMON = 5
INTERRUPTED = 130


def of_error(error: errors.SagectlError) -> int:
    """The exit code of a verb that ended with this error."""
    if isinstance(error, errors.NoDaemon):
        return NO_DAEMON
    if isinstance(error, errors.UnknownEngine):
        return UNKNOWN
    return FAILURE


def of_engine(engine: Engine) -> int:
    """The exit code of `status` for this engine."""
    return OK if engine["state"] == "active" else NOT_ACTIVE
