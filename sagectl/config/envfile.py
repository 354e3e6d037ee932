"""`env_file`: NAME=VALUE a line, as systemd and docker read it, without expansion of any kind."""

from __future__ import annotations

import os
import re
import stat

from sagectl.config.names import SET_BY_US, is_variable

_LINE = re.compile(r"[ \t]*(?:export[ \t]+)?([^=\s#][^=]*?)[ \t]*=[ \t]*", re.DOTALL)
_DOUBLE = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_SINGLE = re.compile(r"'([^']*+)'")
_REST = re.compile(r"[^\n]*")
_COMMENT = re.compile(r"[ \t]+#.*")
_END = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\n": ""}


MAX_BYTES = 2**20


def read(path: str) -> dict[str, str]:
    """The variables of the file at a path.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no env file; quotes no value.
    """
    # A FIFO would block for ever, and with it whoever asks.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a file")
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 2**20} MiB")
    try:
        return parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8") from None


def words(path: str, error: OSError | ValueError) -> str:
    """Why `read` failed, as a sentence without a final period."""
    if isinstance(error, OSError):
        return f"the env_file {path} cannot be read: {(error.strerror or str(error)).lower()}"
    return f"the env_file {path} cannot be used: {error}"


def parse(text: str) -> dict[str, str]:
    """The variables of an env file. A later line wins over an earlier one.

    Quoted values may span lines; in double quotes a backslash escapes; `#` begins a comment at the
    beginning of a line, and after a blank.

    Raises:
        ValueError: names every line that is wrong, and quotes no value.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    variables: dict[str, str] = {}
    problems: list[str] = []
    at = 0
    while at < len(text):
        start = at
        if blank := _END.match(text, at):
            at = blank.end()
            continue
        line_end = text.find("\n", at)
        line_end = len(text) if line_end < 0 else line_end
        match = _LINE.match(text, at, line_end)
        wrong = ""
        if match is None:
            wrong, at = "is not NAME=VALUE", line_end
        else:
            value, at, wrong = _value(text, match.end())
            name = match[1]
            wrong = wrong or _fault(name, value)
            variables[name] = value
        if wrong:
            line = text.count("\n", 0, start) + 1
            problems.append(f"line {line} {wrong}")
    if problems:
        raise ValueError("; ".join(problems))
    return variables


def _value(text: str, at: int) -> tuple[str, int, str]:
    """The value at an offset, where it ends, and what is wrong with it."""
    for pattern in (_DOUBLE, _SINGLE):
        if match := pattern.match(text, at):
            value = match[1]
            if pattern is _DOUBLE:
                value = re.sub(r"\\(.)", lambda m: _ESCAPED.get(m[1], m[1]), value, flags=re.DOTALL)
            if end := _END.match(text, match.end()):
                return value, end.end(), ""
            return value, _line_end(text, match.end()), "has something after the closing quote"
    end_at = _line_end(text, at)
    if text[at : at + 1] in ('"', "'"):
        return "", end_at, "opens a quote and never closes it"
    return _COMMENT.sub("", text[at:end_at]).strip(), end_at, ""


def _line_end(text: str, at: int) -> int:
    match = _REST.match(text, at)
    assert match is not None
    return match.end()


def _fault(name: str, value: str) -> str:
    if not is_variable(name):
        return f'"{name}" cannot be a variable\'s name'
    if name in SET_BY_US:
        return f"{name} is set by sagectl itself"
    return "contains a NUL character" if "\0" in value else ""
