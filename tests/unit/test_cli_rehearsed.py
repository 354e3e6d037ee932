"""The words of a dry run's report."""

from __future__ import annotations

from typing import Any

import pytest

from sagectl.cli import rehearsed

REPORT: dict[str, Any] = {
    **{"files": 2, "format": "messages", "rows": 43, "bad": 2},
    "bad_rows": [{"file": "d.jsonl", "row": 41, "reason": "has no assistant turn"}],
    **{"sequences": 41, "tokens": 2848, "tokens_trained": 1320, "share_trained": 0.4635},
    "average_tokens": 69.5,
    "truncated": {"rows": 1, "tokens": 512, "trained": 500, "lost": 0, "split": 0},
    "longest": [{"file": "d.jsonl", "row": 43, "tokens": 1024}, {"file": "d.jsonl", "row": 1, "tokens": 62}],
    "template": {"name": "model", "marks": "prefixes", "forms": ["plain"], "unrolled": 0},
    **{"max_length": 512, "packed": None, "sha256": {"all": "d40dcc"}, "train_rows": 37, "eval_rows": 4},
    **{"steps": 30, "rows_per_step": 4, "tokens_computed": 8000, "parameters": 394624},
    **{"parameters_trained": 34816, "checkpoint_bytes": 417792, "checkpoints": 2, "result_bytes": 139264},
    **{"disk_bytes": 1 << 21, "disk_free_bytes": 42 << 30, "served_as": "adapter", "served_why": "of rank 8"},
    "time": {
        **{"seconds": 720.0, "tokens_per_second": 1234.5, "job": "tune-1", "device": "cpu"},
        "differs": {"batch_size": 8, "threads": None},
    },
}


def told(**changes: Any) -> dict[str, str]:
    """The lines by name; those without one go with the name before."""
    found: dict[str, str] = {}
    name = ""
    for key, value in rehearsed.properties({**REPORT, **changes}):
        name = key or name
        found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def test_every_key_of_the_report_has_its_place_and_no_other() -> None:
    assert told() == {
        "Data": "43 rows of 2 files as messages; 2 bad, left out",
        "Bad rows": "d.jsonl:41: has no assistant turn",
        "Tokens": "2,848, loss on 1,320, 46.3% of them",
        "Sequences": "41 of 70 tokens on average",
        "Longest": "d.jsonl:43: 1,024 tokens\nd.jsonl:1: 62 tokens",
        "Cut": "1 sequence of more than 512 tokens: 512 tokens gone, 500 of them to be trained on",
        "Template": "the model's own",
        "Steps": "30 of 4 rows from 37; 8,000 tokens in all; 4 rows kept back to evaluate",
        "Parameters": "34,816 trained, the model has 394,624",
        "Disk": "2 checkpoints of 408 KiB, the result 136 KiB; 42.0 GiB free",
        "vLLM serves": "as an adapter: of rank 8",
        "Time": "about 12m of training, as tune-1 did 1,234 tokens/s on this machine's CPU, "
        "with batch size 8, threads not set",
    }


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"disk_free_bytes": 1 << 20}, "Disk", "1.0 MiB free, which is too little: 2.0 MiB are needed"),
        ({"packed": {"rows": 1, "fill": 0.987}}, "Packed", "into 1 row, 99% full"),
        ({"truncated": dict.fromkeys(("rows", "lost", "split"), 0)}, "Cut", "nothing, at 512 tokens"),
        ({"template": {"name": "sagectl"}}, "Template", "sagectl's, as the model has none"),
        ({"served_as": "merged", "served_why": "too large"}, "vLLM serves", "only merged: too large"),
        ({"bad": 0}, "Data", "43 rows of 2 files as messages"),
        ({"new_key": {"a_b": 1, "c": [1, 2]}}, "New key", "a b 1, c 1, 2"),
    ],
)
def test_what_else_may_be_said(changes: dict[str, Any], name: str, words: str) -> None:
    assert told(**changes)[name].endswith(words)


@pytest.mark.parametrize("absent", ["time", "served_as", "steps", "tokens", "rows", "template", "truncated"])
def test_what_a_report_lacks_is_left_out(absent: str) -> None:
    without = {key: value for key, value in REPORT.items() if key != absent}
    assert len(rehearsed.properties(without)) >= 8
    assert rehearsed.properties({}) == []
