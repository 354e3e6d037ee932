"""Text for people: tables, colours, times. Plain and complete when the output is no terminal."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from sagectl.client import Engine

GAP = "  "
UNBROKEN = ("Command", "Log", "Address", "ID", "State")
_SGR = {"green": "32", "yellow": "33", "red": "31", "dim": "2", "bold": "1", "cyan": "36"}
_STATE_COLOURS = {
    "active": "green",
    "activating": "yellow",
    "deactivating": "yellow",
    "failed": "red",
    "inactive": "dim",
}


@dataclass(frozen=True, slots=True)
class Style:
    """What a stream can show. width: columns of the terminal, None for no limit (a pipe, a file)."""

    colour: bool = False
    unicode: bool = True
    width: int | None = None

    @classmethod
    def of(cls, stream: TextIO) -> Style:
        """The style that suits this stream; honours NO_COLOR, TERM=dumb and COLUMNS."""
        unicode = (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
        if not stream.isatty():
            return cls(unicode=unicode)
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return cls(colour=not plain, unicode=unicode, width=_columns(stream))

    def paint(self, text: str, *looks: str) -> str:
        """`text` in these looks (`green`, `bold`, …), or as it is without colours."""
        codes = ";".join(_SGR[look] for look in looks if look)
        return f"\x1b[{codes}m{text}\x1b[0m" if self.colour and codes and text else text

    def state(self, engine: Engine, text: str | None = None) -> str:
        """`state (substate)`, or `text`, in the state's colour."""
        return self.paint(text or state_of(engine), state_colour(engine))

    @property
    def dot(self) -> str:
        """A bullet."""
        return "●" if self.unicode else "*"


def stdout() -> Style:
    """The style of standard output."""
    return Style.of(sys.stdout)


def stderr() -> Style:
    """The style of standard error."""
    return Style.of(sys.stderr)


def _columns(stream: TextIO) -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


# --- Words -----------------------------------------------------------------------------------


def state_of(engine: Engine) -> str:
    """`active (ready)`."""
    return f"{engine['state']} ({engine['substate']})"


def state_colour(engine: Engine) -> str:
    """The colour of an engine's state."""
    if engine["substate"] == "unready":
        return "yellow"
    return _STATE_COLOURS.get(engine["state"], "")


def duration(seconds: float) -> str:
    """Two units at most: `0.4s`, `12s`, `3h 12m`, `5d 3h`."""
    if seconds < 9.95 and seconds != int(seconds):
        return f"{max(seconds, 0):.1f}s"
    left = round(max(seconds, 0))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0")) or "0s"


def gib(size: float) -> str:
    """A size in GiB, in MiB below one of them, as in the daemon's own sentences: `20.0 GiB`, `512 MiB`."""
    if not size:
        return "0 GiB"
    return f"{round(size * 1024)} MiB" if -1 < size < 1 else f"{size:.1f} GiB"


def moment(at: str | float | None) -> datetime | None:
    """An RFC 3339 time or Unix seconds; None where there is none or it is not one."""
    if not at:
        return None
    if not isinstance(at, str):
        return datetime.fromtimestamp(at, UTC)
    try:
        parsed = datetime.fromisoformat(at)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def ago(at: str | float | None, now: datetime | None = None) -> str:
    """`2026-01-05 14:03:11, 3h 12m ago` in local time; "" where there is no time."""
    when = moment(at)
    if when is None:
        return ""
    passed = ((now or datetime.now(UTC)) - when).total_seconds()
    local = when.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}, {duration(round(max(passed, 0)))} ago"


def local_time(at: str | float | None) -> str:
    """`2026-01-05 14:03:11` in local time."""
    when = moment(at)
    return f"{when.astimezone():%Y-%m-%d %H:%M:%S}" if when else ""


def broken_plugin(broken: Mapping[str, str]) -> str:
    """A plugin that cannot be used, and why, on one line."""
    return f"broken plugin {broken['name']} of {broken['distribution']}: {clean(broken['reason'])}"


def clean(text: str) -> str:
    """`text` on one line and without control characters, for what engines and logs say."""
    if text.isprintable():
        return text
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# --- Widths ----------------------------------------------------------------------------------


def cells(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def cut(text: str, width: int | None, *, unicode: bool = True) -> str:
    """`text` in at most `width` columns, with an ellipsis where something was left off."""
    if width is None or cells(text) <= width:
        return text
    mark = "…" if unicode else "~"
    kept, used = [], 1
    for c in text:
        used += cells(c)
        if used > width:
            break
        kept.append(c)
    return "".join(kept) + mark if width > 0 else ""


def wrapped(
    text: str, style: Style, first: str = "", rest: str | None = None, look: str = ""
) -> Iterable[str]:
    """`text` broken between words at the terminal's edge. first, rest: what its lines begin with."""
    lead, follow = first, first if rest is None else rest
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and style.width is not None and cells(lead + longer) > style.width:
            yield lead + style.paint(line, look)
            lead, line = follow, word
        else:
            line = longer
    if line:
        room = None if style.width is None else max(0, style.width - cells(lead))
        yield lead + style.paint(cut(line, room, unicode=style.unicode), look)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    shrink: may be cut down to this many columns; None: never cut.
    drop: columns with a higher number are left out first where the terminal is too narrow; 0: never.
    """

    title: str
    shrink: int | None = None
    drop: int = 0
    right: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell with looks, such as `Cell("failed", "red")`."""

    text: str
    look: str = ""


Row = Sequence[str | Cell]


def table(columns: Sequence[Column], rows: Sequence[Row], style: Style) -> Iterable[str]:
    """Aligned lines, headings first; none wraps. Columns that are empty throughout are left out."""
    grid = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    shown = [i for i in range(len(columns)) if any(row[i].text for row in grid)]
    natural = [
        max([cells(column.title), *(cells(row[i].text) for row in grid)]) for i, column in enumerate(columns)
    ]
    shown, widths = _fit(columns, shown, natural, style.width)
    yield _line([Cell(columns[i].title, "bold") for i in shown], columns, shown, widths, style)
    for row in grid:
        yield _line([row[i] for i in shown], columns, shown, widths, style)


def _fit(
    columns: Sequence[Column], shown: list[int], natural: Sequence[int], width: int | None
) -> tuple[list[int], dict[int, int]]:
    """Which columns are shown and how wide: cut what may be cut, then leave out what may be left out."""
    widths = {i: natural[i] for i in shown}
    if width is None:
        return shown, widths
    while True:
        over = sum(widths[i] for i in shown) + len(GAP) * (len(shown) - 1) - width
        for i in sorted(shown, key=lambda i: -natural[i]):
            least = columns[i].shrink
            if over > 0 and least is not None and widths[i] > least:
                taken = min(over, widths[i] - least)
                widths[i] -= taken
                over -= taken
        droppable = [i for i in shown if columns[i].drop]
        if over <= 0 or not droppable:
            return shown, widths
        dropped = max(droppable, key=lambda i: columns[i].drop)
        shown = [i for i in shown if i != dropped]
        widths = {i: natural[i] for i in shown}


def _line(
    row: Sequence[Cell],
    columns: Sequence[Column],
    shown: Sequence[int],
    widths: Mapping[int, int],
    style: Style,
) -> str:
    parts: list[str] = []
    room = style.width
    for place, (i, cell) in enumerate(zip(shown, row, strict=True)):
        width = widths[i] if room is None else min(widths[i], room)
        text = cut(cell.text, width, unicode=style.unicode)
        pad = " " * (width - cells(text))
        last = place == len(shown) - 1
        painted = style.paint(text, cell.look)
        parts.append(pad + painted if columns[i].right else painted if last else painted + pad)
        if room is not None:
            room = max(0, room - widths[i] - len(GAP))
    return GAP.join(parts).rstrip()


def properties(pairs: Sequence[tuple[str, str]], style: Style, *, indent: int = 0) -> Iterable[str]:
    """`name: value` lines with the names aligned to the right; pairs without a value are left out.

    A pair without a name goes on with the one before it. Sentences are broken between words; what people
    copy (`UNBROKEN`) is left to the terminal.
    """
    kept = [(name, value) for name, value in pairs if value]
    edge = indent + max((cells(name) for name, _ in kept), default=0)
    for name, value in kept:
        head = f"{style.paint(name.rjust(edge), 'dim')}{':' if name else ' '} "
        hanging = " " * (edge + 2)
        room = style if style.width is None or style.width >= 2 * len(hanging) else replace(style, width=None)
        if name in UNBROKEN or style.width is None or edge + 2 + cells(value) <= style.width:
            yield head + value
        else:
            first, *rest = wrapped(value, room, hanging)
            yield from (head + first[len(hanging) :], *rest)
