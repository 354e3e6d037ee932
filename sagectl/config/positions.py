"""Where each key of a TOML document stands: tomli gives values without line numbers.

The scanner reads TOML 1.1 that tomli has accepted. On anything else it neither fails nor hangs; what
it then finds is a best guess.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

Path = tuple[str | int, ...]
"""Keys from the top of a document; an index stands for an element of an array."""


_BLANK = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_SPACE = re.compile(r"[ \t]*+")
_BARE = re.compile(r"[^\s.=\[\]\"'#,{}]++")
_SCALAR = re.compile(r"[^,\]}\n#]*+")
_LINE = re.compile(r"[^\n]*+\n?")
_LONG = (
    re.compile(r'"""(?:[^"\\]++|\\.|"(?!""))*+"{3,5}', re.DOTALL),
    re.compile(r"'''(?:[^']++|'(?!''))*+'{3,5}"),
)
_BASIC = re.compile(r'"((?:[^"\\\n]++|\\.)*+)"')
_LITERAL = re.compile(r"'([^'\n]*+)'")
_PLAIN_VALUE = r'(?:"[^"\\\n]*+"(?!")|[A-Za-z0-9+-][A-Za-z0-9_.:+-]*+)(?=[ \t]*+(?:[,\]}#\n]|\Z))'
_QUICK_VALUE = re.compile(_PLAIN_VALUE)
_QUICK_PAIR = re.compile(r"([A-Za-z0-9_-]++)[ \t]*+=[ \t]*+" + _PLAIN_VALUE)
"""What most lines are; the rest of this file is for the others."""
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_DEEPEST = 64
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}


def scan(text: str) -> Mapping[Path, int]:
    """The line, from 1, of every key, table and array element of a TOML document."""
    return _Scanner(text).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        # As tomli does; elsewhere a lone \r is invalid, so that no other newline is left.
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.newlines = [match.start() for match in re.finditer("\n", self.text)]
        self.found: dict[Path, int] = {}
        self.elements: dict[Path, int] = {}
        self.duplicates: list[Duplicate] = []
        self.explicit: set[Path] = set()
        self.latest: tuple[Path, int] | None = None
        self.depth = 0

    def run(self) -> Mapping[Path, int]:
        table: Path = ()
        while True:
            self.skip(_BLANK)
            if self.at >= len(self.text):
                return self.found
            start = self.at
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
            if self.at == start:
                self.skip(_LINE)

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()

    def take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def line(self, offset: int) -> int:
        return bisect_right(self.newlines, offset - 1) + 1

    def header(self) -> Path:
        """`[a.b]` or `[[a.b]]` → the path of what follows, indices of arrays of tables put in."""
        start = self.at
        array = self.take("[[")
        if not array:
            self.take("[")
        keys = self.keys()
        self.skip(_SPACE)
        if not self.take("]]" if array else "]"):
            self.skip(_LINE)
        line = self.line(start)
        path: Path = ()
        for key, _ in keys[:-1]:
            path = self.last(self.enter((*path, key), line))
        if not keys:
            return path
        path = (*path, keys[-1][0])
        if not array:
            self.define(path, line)
            return self.last(path)
        self.found.setdefault(path, line)
        self.elements[path] = self.elements.get(path, -1) + 1
        path = self.last(path)
        self.found[path] = line
        return path

    def last(self, path: Path) -> Path:
        return (*path, self.elements[path]) if path in self.elements else path

    def enter(self, path: Path, line: int) -> Path:
        self.found.setdefault(path, line)
        return path

    def define(self, path: Path, line: int) -> None:
        if path in self.explicit:
            self.duplicates.append(Duplicate(path, self.found[path], line))
        self.explicit.add(path)
        self.found[path] = line
        self.latest = (path, line)

    def pair(self, table: Path) -> None:
        """`a.b = value`, recorded below `table`."""
        if match := _QUICK_PAIR.match(self.text, self.at):
            self.define((*table, match[1]), self.line(self.at))
            self.at = match.end()
            return
        start = self.at
        keys = self.keys()
        path = table
        for key, offset in keys[:-1]:
            path = self.enter((*path, key), self.line(offset))
        self.skip(_SPACE)
        if not keys or not self.take("="):
            self.at = start
            return
        path = (*path, keys[-1][0])
        self.define(path, self.line(keys[-1][1]))
        self.skip(_SPACE)
        self.value(path)

    def keys(self) -> list[tuple[str, int]]:
        """A dotted key: its parts, each with its offset."""
        parts: list[tuple[str, int]] = []
        while True:
            self.skip(_SPACE)
            for pattern in (_BARE, _BASIC, _LITERAL):
                if match := pattern.match(self.text, self.at):
                    break
            else:
                return parts
            name = match[0] if pattern is _BARE else match[1]
            if len(parts) < _DEEPEST:
                parts.append((_unescape(name) if pattern is _BASIC else name, self.at))
            self.at = match.end()
            self.skip(_SPACE)
            if not self.take("."):
                return parts

    def value(self, path: Path) -> None:
        if match := _QUICK_VALUE.match(self.text, self.at):
            self.at = match.end()
        elif self.text.startswith(("[", "{"), self.at):
            self.nested(path)
        else:
            long = self.text.startswith(('"""', "'''"), self.at)
            for pattern in _LONG if long else (_BASIC, _LITERAL):
                if match := pattern.match(self.text, self.at):
                    self.at = match.end()
                    return
            if long:
                # Never closed: all that follows is the string.
                self.at = len(self.text)
            self.skip(_SCALAR)

    def nested(self, path: Path) -> None:
        if self.depth >= _DEEPEST:
            self.skip(_SCALAR)  # nobody asks where in there something stands
            return
        self.depth += 1
        if self.take("["):
            self.array(path)
        else:
            self.take("{")
            self.inline(path)
        self.depth -= 1

    def array(self, path: Path) -> None:
        index = 0
        while True:
            self.skip(_BLANK)
            if self.at >= len(self.text) or self.take("]"):
                return
            start = self.at
            if not self.take(","):
                element = (*path, index)
                self.found[element] = self.line(start)
                self.value(element)
                index += 1
            if self.at == start:
                self.at += 1

    def inline(self, path: Path) -> None:
        while True:
            self.skip(_BLANK)
            if self.at >= len(self.text) or self.take("}"):
                return
            start = self.at
            if not self.take(","):
                self.pair(path)
            if self.at == start:
                self.skip(_SCALAR)
            if self.at == start:
                self.at += 1


def _unescape(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code is None:
            return _ESCAPED.get(match[4], match[4])
        number = int(code, 16)
        return chr(number) if number < 0x110000 else ""

    return _ESCAPE.sub(replace, text) if "\\" in text else text


@lru_cache(maxsize=4096)
def dotted(path: Path) -> str:
    """A path as TOML writes it, without the indices of arrays: `engines.chat.env."a.b"`."""
    return ".".join(_quoted(step) for step in path if isinstance(step, str))


def _quoted(key: str) -> str:
    if _PLAIN.fullmatch(key):
        return key
    escaped = key.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


class Duplicate(NamedTuple):
    """A key or table that stands twice in a document, which tomli refuses."""

    path: Path
    first: int
    second: int


def unfinished(text: str) -> tuple[Path, int] | None:
    """The key whose value a text breaks off in."""
    scanner = _Scanner(text)
    scanner.run()
    return scanner.latest


def first_duplicate(text: str) -> Duplicate | None:
    """The first key that is set twice, in a document that tomli does not accept."""
    scanner = _Scanner(text)
    scanner.run()
    return min(scanner.duplicates, key=lambda duplicate: duplicate.second, default=None)
