"""What is known of a data set before anything is trained, and what it must still be at a resume."""

from __future__ import annotations

import hashlib
import heapq
import json
from dataclasses import asdict
from typing import Any

from .encoding import Prepared
from .model import LISTED

LONGEST = 5


def report(prepared: Prepared) -> dict[str, Any]:
    """Of the preflight, as JSON's values. Shares are of 1."""
    tokens, corpus, rows, cut = prepared.tokens, prepared.tokens.corpus, prepared.rows, prepared.cut
    total, trained = tokens.tokens(), tokens.tokens_trained()
    names = rows.names()
    longest = heapq.nlargest(LONGEST, range(len(corpus)), key=lambda index: (corpus.full[index], -index))
    return {
        "files": len(names),
        "format": rows.format,
        "rows": rows.good + rows.bad_count,
        "bad": rows.bad_count,
        "bad_rows": [{"file": bad.file, "row": bad.row, "reason": bad.reason} for bad in rows.bad[:LISTED]],
        "sequences": len(corpus),
        "tokens": total,
        "tokens_trained": trained,
        "share_trained": round(trained / total, 4),
        "average_tokens": round(total / len(corpus), 1),
        "truncated": asdict(cut),
        "longest": [
            {"file": names[corpus.files[index]], "row": corpus.rows[index], "tokens": corpus.full[index]}
            for index in longest
        ],
        "template": _template(prepared),
        "max_length": tokens.settings.max_length,
        "packed": {"rows": len(tokens), "fill": round(tokens.fill(), 4)} if tokens.settings.packing else None,
        "sha256": sha256(prepared),
    }


def _template(prepared: Prepared) -> dict[str, Any]:
    template = prepared.template
    if template is None:
        return {"name": "none"}
    return {
        "name": "model" if template.own else "sagectl",
        "marks": "generation" if template.marks else "prefixes",
        "forms": template.forms,
        "unrolled": template.unrolled,
        "reasoning_left_out": template.mute,
    }


def sha256(prepared: Prepared) -> dict[str, str]:
    """Of the data's files, the tokenizer, the settings and the tokens; `all` is of these four."""
    parts = {
        "data": prepared.rows.sha256,
        "tokenizer": of_tokenizer(prepared.tokenizer),
        "settings": _of_json(asdict(prepared.tokens.settings)),
        "tokens": prepared.tokens.corpus.sha256(),
    }
    return {**parts, "all": _of_json(parts)}


def changed(now: dict[str, str], then: dict[str, str]) -> list[str]:
    """What of data, tokenizer, settings and tokens is not what it was, in words; nothing where all is."""
    words = {
        "data": "the data",
        "tokenizer": "the tokenizer",
        "settings": "max_length, packing, or how the data is read",
        "tokens": "the tokens that are made of it, by another version of transformers",
    }
    found = [word for name, word in words.items() if now.get(name) != then.get(name)]
    # Other tokens are what everything else leads to.
    return found[:-1] if len(found) > 1 and found[-1] == words["tokens"] else found


def of_tokenizer(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer: its rules, its special tokens, its chat template."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # Left behind by the latest call.
        rules.pop("truncation", None)
        rules.pop("padding", None)
    else:
        rules = sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _of_json([type(tokenizer).__name__, rules, special, tokenizer.chat_template])


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
