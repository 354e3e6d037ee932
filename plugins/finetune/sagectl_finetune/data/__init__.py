"""The data of a fine-tuning job: read, checked, made into tokens, counted.

It runs in the engine's interpreter, which need not have sagectl: nothing here imports anything of ours,
and only the standard library is imported at the top.
"""

from __future__ import annotations

from .corpus import UNTRAINED, Corpus, Cut, Row, Settings, Tokens
from .encoding import Prepared, tokenise
from .model import FORMATS, BadRow, DataError, Example, Format
from .packing import pack
from .reading import Rows, read
from .reporting import changed, report, sha256
from .template import OURS, Template

__all__ = [
    "FORMATS",
    "OURS",
    "UNTRAINED",
    "BadRow",
    "Corpus",
    "Cut",
    "DataError",
    "Example",
    "Format",
    "Prepared",
    "Row",
    "Rows",
    "Settings",
    "Template",
    "Tokens",
    "changed",
    "pack",
    "read",
    "report",
    "sha256",
    "tokenise",
]
