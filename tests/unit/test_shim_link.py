from __future__ import annotations

from typing import Any

from sagectl.system.shim_link import current


def said(generation: int, **fields: str) -> dict[str, Any]:
    return {"op": "notify", "generation": generation, "fields": fields}


def test_of_an_engines_words_about_itself_the_last_is_left() -> None:
    exited = {"op": "exited", "generation": 1, "left": 0}
    messages = [
        said(1, STATUS="loads"),
        said(1, STATUS="loads more"),
        said(1, READY="1"),
        said(1, STATUS="serves", EXTEND_TIMEOUT_USEC="5"),
        said(1, STATUS="serves"),
        exited,
        said(2, STATUS="loads"),
        said(1, STOPPING="1"),
    ]
    assert current(messages) == messages[2:]
    assert current([]) == []
