"""What is wrong between engines: ports, dependencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from sagectl.config.names import REFERENCE, did_you_mean
from sagectl.config.sections import Report, Section
from sagectl.core.dependencies import cycles

HINTS = 10
"""Unknown dependencies that are compared with every name; among a thousand names, one takes 20 ms."""


@dataclass(frozen=True, slots=True)
class Declared:
    """An engine's table, merged; it may be wrong elsewhere."""

    name: str
    section: Section

    @property
    def ports(self) -> range:
        """The ports that it and its replicas claim, none where they are chosen for it."""
        port = self.section.values.get("port")
        if not _whole(port) or not 1 <= port <= 65535:
            return range(0)
        count = self.section.values.get("replicas", 1)
        return range(port, port + (count if _whole(count) and 1 <= count <= 64 else 1))

    @property
    def depends_on(self) -> tuple[tuple[int, str], ...]:
        """Index and name of each dependency."""
        value = self.section.values.get("depends_on")
        names = value if isinstance(value, list) else []
        return tuple((index, name) for index, name in enumerate(names) if isinstance(name, str))

    @property
    def names(self) -> tuple[str, ...]:
        """What others may call it: its name, and its replicas'."""
        count = self.section.values.get("replicas", 1)
        replicas = range(1, count + 1) if _whole(count) and 2 <= count <= 64 else range(0)
        return (self.name, *(f"{self.name}@{number}" for number in replicas))

    def where(self, key: str) -> str:
        """`FILE:LINE`, for messages about somebody else."""
        origin = self.section.place((key,))
        return f"{origin.file}:{origin.line}"


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def check_ports(engines: Mapping[str, Declared], report: Report) -> None:
    """Report ports that two engines claim, at the later of them."""
    taken: dict[int, Declared] = {}
    for engine in engines.values():
        clash = next((port for port in engine.ports if port in taken), None)
        if clash is not None:
            other = taken[clash]
            what = f"{clash} is" if len(engine.ports) == 1 else f"{clash}, which its replicas reach, is"
            report.error(
                engine.section,
                ("port",),
                f'{what} already the port of engine "{other.name}" ({other.where("port")})',
                "choose another one, or leave it out for a free one",
            )
        for port in engine.ports:
            taken.setdefault(port, engine)


def check_dependencies(engines: Mapping[str, Declared], report: Report, *, complete: bool) -> None:
    """Report dependencies on nothing, on oneself, and cycles.

    Args:
        complete: every file could be read; else an unknown engine may stand in another one.
    """
    owner = {name: engine.name for engine in engines.values() for name in engine.names}
    needs: dict[str, list[str]] = {}
    unknown = 0
    for engine in engines.values():
        needs[engine.name] = []
        for index, wanted in engine.depends_on:
            path = ("depends_on", index)
            if wanted not in owner:
                unknown += 1
                hint = did_you_mean(wanted, owner) if unknown <= HINTS else ""
                remedy = hint or "name an engine of this configuration"
                if complete and REFERENCE.fullmatch(wanted):
                    report.error(engine.section, path, f'there is no engine "{wanted}"', remedy)
            elif owner[wanted] == engine.name:
                report.error(engine.section, path, "an engine cannot wait for itself", "remove it")
            else:
                needs[engine.name].append(owner[wanted])
    for cycle in cycles(needs):
        engine = engines[cycle[0]]
        index = next((i for i, name in engine.depends_on if owner.get(name) == cycle[1]), 0)
        report.error(
            engine.section,
            ("depends_on", index),
            f"engines wait for each other in a circle: {' → '.join(cycle)}",
            "remove one of these dependencies",
        )
