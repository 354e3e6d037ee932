"""What a new daemon makes of what an old one left: the database, the processes, the shims' notes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sagectl.core import adoption
from sagectl.core.engine import Desired, Engine, EngineSpec
from sagectl.core.events import Event, StartRequested
from sagectl.daemon.keeper import read_context, read_row
from sagectl.plugin import EngineKind
from sagectl.system.processes import Found
from sagectl.system.store import StoredEngine

log = logging.getLogger("sagectl.restore")

Restored = tuple[Engine, Event | None]


def restore(
    rows: Sequence[StoredEngine],
    found: Sequence[Found],
    specs: Mapping[str, EngineSpec] | None,
    kinds: Mapping[str, EngineKind[Any]],
    boot_id: str,
) -> list[Restored]:
    """The engines of an earlier daemon, each with the event that tells what became of it meanwhile.

    Args:
        specs: what the configuration declares now, by name; None where it cannot be read.
        boot_id: of this boot; engines kept in another one start from `adoption.boot`.
    """
    kept = dict(filter(None, (_of_this_boot(row, specs, kinds, boot_id) for row in rows)))
    processes = {item.name: item for item in found if item.same_boot}
    restored: list[Restored] = []
    for name in sorted(kept.keys() | processes.keys()):
        engine, event = kept.get(name, (None, None))
        process = processes.get(name)
        if event is not None:
            assert engine is not None
            restored.append((engine, event))
            continue
        answer = adoption.reconcile(engine, _as_core(process, kinds))
        if answer is None:
            log.warning("a process of %s was found, but nobody knows its definition: it is left alone", name)
            continue
        restored.append(answer)
    return restored


def _of_this_boot(
    row: StoredEngine,
    specs: Mapping[str, EngineSpec] | None,
    kinds: Mapping[str, EngineKind[Any]],
    boot_id: str,
) -> tuple[str, tuple[Engine, Event | None]] | None:
    read = read_row(row, kinds)
    if read is None:
        return None
    engine, kept_in = read
    if kept_in == boot_id:
        return engine.name, (engine, None)
    spec = (specs or {}).get(engine.name, engine.spec)
    engine = adoption.boot(engine, spec, autostart=spec.autostart)
    wanted = engine.desired is Desired.RUNNING
    return engine.name, (engine, StartRequested(by_user=False) if wanted else None)


def _as_core(found: Found | None, kinds: Mapping[str, EngineKind[Any]]) -> adoption.Found | None:
    if found is None:
        return None
    return adoption.Found(
        generation=found.generation,
        process=found.process,
        exit=found.exit,
        left=found.left,
        same_boot=found.same_boot,
        engine=read_context(found.context, kinds),
    )
