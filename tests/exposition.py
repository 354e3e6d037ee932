"""Reads Prometheus' text format as strictly as its specification allows."""

from __future__ import annotations

import re

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\n"])*"'
_SAMPLE = re.compile(rf"({_NAME})((?:\{{{_LABEL}(?:,{_LABEL})*\}})?) (\S+)")
_KINDS = ("counter", "gauge")


def samples(text: str) -> dict[str, float]:
    """Every sample by its name and labels; fails where the text is not valid.

    Each family has one HELP, then one TYPE, then all of its samples; no sample comes twice.
    """
    assert text.endswith("\n")
    found: dict[str, float] = {}
    seen: list[str] = []
    typed = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, _, words = line.removeprefix("# HELP ").partition(" ")
            assert re.fullmatch(_NAME, name), line
            assert words, line
            assert name not in seen, line
            seen.append(name)
            typed = ""
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name == seen[-1], line
            assert kind in _KINDS, line
            assert not typed, line
            assert (kind == "counter") == name.endswith("_total"), line
            typed = name
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] == typed, line
            key = match[1] + match[2]
            assert key not in found, line
            found[key] = float(match[3])
    return found
