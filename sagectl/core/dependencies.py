"""Which engine waits for which. Pure; a dependency may name an engine or a group of replicas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sagectl.core.engine import EngineSpec


def members(dependency: str, names: Iterable[str]) -> tuple[str, ...]:
    """The engines among `names` that a dependency means: the one so called, else its replicas."""
    known = tuple(names)
    if dependency in known:
        return (dependency,)
    prefix = f"{dependency}@"
    return tuple(name for name in known if name.startswith(prefix))


def _needs(specs: Iterable[EngineSpec]) -> dict[str, tuple[str, ...]]:
    """Engine → the engines that it waits for; dependencies on nothing are left out."""
    by_name = {spec.name: spec for spec in specs}
    groups: dict[str, list[str]] = {}
    for name in by_name:
        groups.setdefault(name.partition("@")[0], []).append(name)
    return {
        name: tuple(
            dict.fromkeys(
                found
                for wanted in spec.depends_on
                for found in ((wanted,) if wanted in by_name else groups.get(wanted, ()))
            )
        )
        for name, spec in by_name.items()
    }


def order(specs: Iterable[EngineSpec]) -> tuple[str, ...]:
    """All names, each after what it depends on, otherwise in the given order.

    Within a cycle, which `cycle` reports, one engine comes before what it depends on.
    """
    return _walk(_needs(specs))[0]


def cycle(specs: Iterable[EngineSpec]) -> tuple[str, ...] | None:
    """A cycle, closed by its first name (`a b a`); None where there is none."""
    found = cycles(_needs(specs))
    return found[0] if found else None


def cycles(needs: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Cycles of a graph given as name → the names it needs: none only where there are none."""
    return _walk(needs)[1]


def _walk(needs: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Depth first, without recursion: names after their needs, and the cycles met."""
    done: dict[str, None] = {}
    found: list[tuple[str, ...]] = []
    for root in needs:
        path: dict[str, Iterator[str]] = {}
        if root not in done:
            path[root] = iter(needs[root])
        while path:
            name, ahead = next(reversed(path.items()))
            need = next(ahead, None)
            if need is None:
                del path[name]
                done[name] = None
            elif need in path:
                names = list(path)
                found.append((*names[names.index(need) :], need))
            elif need in needs and need not in done:
                path[need] = iter(needs[need])
    return tuple(done), tuple(found)


def missing(specs: Iterable[EngineSpec]) -> tuple[tuple[str, str], ...]:
    """Pairs of an engine and a dependency of it that names neither an engine nor a group."""
    known = tuple(specs)
    names = {spec.name for spec in known} | {spec.name.partition("@")[0] for spec in known}
    return tuple((spec.name, need) for spec in known for need in spec.depends_on if need not in names)


def waiting_for(spec: EngineSpec, states: Mapping[str, bool]) -> tuple[str, ...]:
    """The engines that `spec` still waits for. A dependency that does not exist is one of them.

    Args:
        states: every engine's name → whether it is up.
    """
    waiting: dict[str, None] = {}
    for dependency in spec.depends_on:
        engines = members(dependency, states)
        waiting.update((name, None) for name in engines if not states[name])
        if not engines:
            waiting[dependency] = None
    return tuple(waiting)


def pulled_in(name: str, specs: Mapping[str, EngineSpec]) -> tuple[str, ...]:
    """All engines that a start of `name` pulls in, those to be started first in front, without itself."""
    seen: dict[str, None] = {}
    stack = [name]
    while stack:
        spec = specs.get(stack.pop())
        if spec is None or spec.name in seen:
            continue
        seen[spec.name] = None
        for dependency in spec.depends_on:
            stack.extend(members(dependency, specs))
    return tuple(other for other in order(specs[n] for n in specs if n in seen) if other != name)
