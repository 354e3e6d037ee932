"""How much of the daemon a client can take up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes.

    connections: open at once; beyond, the one that is idle longest is closed.
    long_requests: requests that follow or wait, at once. Below `connections`, so that there is
        always room for a command.
    idle: a connection without a request. header: from a request's first byte to its body.
    body_time: for the body. stalled: a reader that takes nothing of what is written to it.
    heartbeat: a comment in a silent event stream. sweep: how often all of this is looked at.
    """

    connections: int = 256
    long_requests: int = 192
    idle: float = 75.0
    header: float = 10.0
    body_time: float = 30.0
    body_size: int = 1024 * 1024
    stalled: float = 30.0
    heartbeat: float = 15.0
    sweep: float = 1.0
    wait: float = 86400.0
    farewell: float = 2.0
