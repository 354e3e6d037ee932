"""Times and counts as people and scripts read them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(unix: float) -> str:
    """Unix seconds as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def counted(count: int, one: str, many: str) -> str:
    """`1 engine`, `2 engines`."""
    return f"{count} {one if count == 1 else many}"
