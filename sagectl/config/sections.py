"""Tables of a configuration together with where each of their keys stands, and the list of problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sagectl.config.positions import Path
from sagectl.config.wording import Fault
from sagectl.errors import Problem


class Origin(NamedTuple):
    """Where a value comes from.

    source: `file` for the engine's own table, `defaults` for `[defaults.KIND]`, `default` for what
        sagectl or the kind sets, `override` for `enable` and `disable`, `api` for a request's body.
    key: as it was written there, dotted.
    """

    source: Literal["file", "defaults", "default", "override", "api"]
    file: str | None = None
    line: int = 0
    key: str = ""


DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Section:
    """A table as written; `places` has its keys' origins, relative to it, and its own at `()`."""

    values: Mapping[str, Any]
    places: Mapping[Path, Origin]

    def place(self, path: Path) -> Origin:
        """The origin of a value, or of the nearest table around it."""
        for length in range(len(path), -1, -1):
            if (origin := self.places.get(path[:length])) is not None:
                return origin
        return DEFAULT

    def key(self, path: Path) -> str:
        """How to call a key in a message; elements of arrays are called by the array's key."""
        origin = self.places.get(path)
        if origin is not None:
            return origin.key
        names = [step for step in path if isinstance(step, str)]
        prefix = self.places[()].key if () in self.places else ""
        return ".".join([prefix, *names] if prefix else names)

    def file(self, path: Path) -> str | None:
        """The file that a value stands in; None for the body of a request."""
        return self.place(path).file


class Report:
    """Collects problems, each once, in the order of files and lines."""

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}
        self._files: dict[str | None, int] = {}

    def reading(self, file: str) -> None:
        """Problems of this file come after those of the files read so far."""
        self._files.setdefault(file, len(self._files))

    def add(self, problem: Problem) -> None:
        """Add a problem unless it is known."""
        self._problems.setdefault(problem)

    def error(self, section: Section, path: Path, message: str, remedy: str = "") -> None:
        """A wrong value in a section."""
        origin = section.place(path)
        self.add(Problem(section.key(path), message, remedy, origin.file, origin.line))

    def warning(self, section: Section, path: Path, message: str, remedy: str = "") -> None:
        """Something worth knowing about a value in a section."""
        origin = section.place(path)
        self.add(Problem(section.key(path), message, remedy, origin.file, origin.line, "warning"))

    def faults(self, section: Section, faults: Iterable[Fault]) -> None:
        """Wrong values that validation found."""
        for fault in faults:
            self.error(section, fault.path, fault.message, fault.remedy)

    def sorted(self) -> tuple[Problem, ...]:
        """All problems by file and line."""
        last = len(self._files)
        return tuple(sorted(self._problems, key=lambda p: (self._files.get(p.file, last), p.line)))

    @property
    def failed(self) -> bool:
        """There is an error among them."""
        return any(problem.severity == "error" for problem in self._problems)


def merge(lower: Section, upper: Section, exclusive: Mapping[str, Iterable[Iterable[str]]] = {}) -> Section:
    """`upper` over `lower`, tables merged key by key.

    Args:
        exclusive: a table's key ("" for the section itself) → groups of keys in it of which any in
            `upper` replaces all in `lower`.
    """
    values: dict[str, Any] = dict(_without(lower.values, upper.values, exclusive.get("", ())))
    merged: set[str] = set()
    for key, value in upper.values.items():
        below = values.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            values[key] = {**_without(below, value, exclusive.get(key, ())), **value}
            merged.add(key)
        else:
            values[key] = value
    places: dict[Path, Origin] = {
        path: origin
        for path, origin in lower.places.items()
        if path
        and path[0] in values
        and (path[0] not in upper.values or (path[0] in merged and _present(path, values, upper.values)))
    }
    places.update(upper.places)
    return Section(values, places)


def _without(
    lower: Mapping[str, Any], upper: Mapping[str, Any], groups: Iterable[Iterable[str]]
) -> Mapping[str, Any]:
    dropped = {key for group in groups for key in group if any(other in upper for other in group)}
    return {key: value for key, value in lower.items() if key not in dropped}


def _present(path: Path, values: Mapping[str, Any], upper: Mapping[str, Any]) -> bool:
    """A value from below that is still there after merging."""
    if len(path) == 1:
        return True
    table, key = path[0], path[1]
    assert isinstance(table, str)
    return key in values[table] and key not in upper[table]
