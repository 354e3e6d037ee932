"""Gathers what an engine kind asks about the machine before it plans a launch."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sagectl.plugin import (
    CheckpointFacts,
    CheckpointQuery,
    Fact,
    FactQuery,
    Facts,
    FileFacts,
    FileQuery,
    InterpreterFacts,
    InterpreterQuery,
    ProgramFacts,
    ProgramQuery,
)
from sagectl.system import checkpoints
from sagectl.system.commands import run_command

INTERPRETER_TIMEOUT = 30.0
"""Seconds; a cold interpreter on a network file system is slow."""
FILES_TIMEOUT = 10.0
MAX_READ = 1 << 20

# Runs in the engine's interpreter, which may be any Python 3. It imports nothing of what it looks
# for: of `a.b` it searches `b` in the directories of `a`.
_QUESTION = """
import importlib.machinery, importlib.util, json, os, sys
try:
    import importlib.metadata as metadata
except ImportError:
    metadata = None
def find(name):
    parts = name.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
        for i in range(1, len(parts)):
            if spec is None or spec.submodule_search_locations is None:
                return False
            path = list(spec.submodule_search_locations)
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: i + 1]), path)
    except Exception:
        return False
    return spec is not None
owners = None
def version(name):
    global owners
    if metadata is None:
        return ""
    for guess in (name, name.replace("_", "-")):
        try:
            return metadata.version(guess) or ""
        except Exception:
            pass
    try:
        if owners is None:
            owners = metadata.packages_distributions()
        return metadata.version(owners[name][0]) or ""
    except Exception:
        return ""
modules = {n: version(n.split(".")[0]) if find(n) else None for n in sys.argv[1:]}
paths = [p for p in sys.path if os.path.isdir(p)]
print(json.dumps({"modules": modules, "version": "%d.%d.%d" % sys.version_info[:3], "paths": paths}))
"""


@dataclass(frozen=True, slots=True)
class _Cached:
    facts: InterpreterFacts
    stamps: Mapping[str, int]


class FactSource:
    """Answers fact queries. What interpreters say is kept until one of their directories changes."""

    def __init__(self) -> None:
        self._cache: dict[InterpreterQuery, _Cached] = {}
        self._asking: dict[InterpreterQuery, asyncio.Task[InterpreterFacts]] = {}

    async def gather(self, queries: Iterable[FactQuery], environ: Mapping[str, str]) -> Facts:
        """Answer all queries at once; errors and timeouts are part of the answers.

        Args:
            environ: of the engine: its PATH, and where its cache of the hub is.
        """
        wanted = list(dict.fromkeys(queries))
        interpreters = [q for q in wanted if isinstance(q, InterpreterQuery)]
        files = [q for q in wanted if not isinstance(q, InterpreterQuery)]
        from_files, from_interpreters = await asyncio.gather(
            _ask_files(files, environ), asyncio.gather(*(self._interpreter(q) for q in interpreters))
        )
        answers = dict(from_files)
        answers.update(zip(interpreters, from_interpreters, strict=True))
        return Facts(answers)

    async def _interpreter(self, query: InterpreterQuery) -> InterpreterFacts:
        cached = self._cache.get(query)
        if cached is not None and cached.stamps == _stamps(cached.stamps):
            return cached.facts
        task = self._asking.get(query)
        if task is None:
            # 200 engines that start at once with one interpreter ask it once.
            task = asyncio.create_task(self._ask(query))
            self._asking[query] = task
            task.add_done_callback(lambda _: self._asking.pop(query, None))
        return await asyncio.shield(task)

    async def _ask(self, query: InterpreterQuery) -> InterpreterFacts:
        argv = [query.python, "-I", "-c", _QUESTION, *query.modules]
        result = await run_command(argv, env={"PATH": os.defpath}, timeout=INTERPRETER_TIMEOUT)
        nothing = dict.fromkeys(query.modules)
        if result.error is not None:
            return InterpreterFacts(nothing, error=result.error)
        if result.timed_out:
            why = f"{query.python} did not answer within {INTERPRETER_TIMEOUT:g} s"
            return InterpreterFacts(nothing, error=why)
        answer = _parse(result.output)
        if result.code != 0 or answer is None:
            lines = result.output.strip().splitlines()
            last = f": {lines[-1]}" if lines else ""
            why = f"{query.python} is not a working Python 3 interpreter (exit code {result.code}{last})"
            return InterpreterFacts(nothing, error=why)
        facts = InterpreterFacts(answer["modules"], version=answer["version"])
        self._cache[query] = _Cached(facts, _stamps([query.python, *answer["paths"]]))
        return facts


def _parse(output: str) -> dict[str, Any] | None:
    """The last line that is our object: a `sitecustomize` may print before it."""
    for line in reversed(output.splitlines()):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and answer.keys() >= {"modules", "version", "paths"}:
            return answer
    return None


def _stamps(paths: Iterable[str]) -> dict[str, int]:
    stamps = {}
    for path in paths:
        try:
            stamps[path] = os.stat(path).st_mtime_ns
        except OSError:
            stamps[path] = 0
    return stamps


async def _ask_files(
    queries: Iterable[FileQuery | ProgramQuery | CheckpointQuery], environ: Mapping[str, str]
) -> dict[FactQuery, Fact]:
    """In threads, because a dead network file system would hold the loop."""

    async def one(query: FileQuery | ProgramQuery | CheckpointQuery) -> Fact:
        try:
            async with asyncio.timeout(FILES_TIMEOUT):
                match query:
                    case ProgramQuery():
                        return await asyncio.to_thread(find_program, query, environ.get("PATH", os.defpath))
                    case CheckpointQuery():
                        return await asyncio.to_thread(checkpoints.read, query, environ)
                    case FileQuery():
                        return await asyncio.to_thread(look_at, query)
        except TimeoutError:
            late = f"its file system did not answer within {FILES_TIMEOUT:g} s"
            match query:
                case ProgramQuery():
                    return ProgramFacts(None)
                case CheckpointQuery():
                    return CheckpointFacts(error=late)
                case FileQuery():
                    return FileFacts("other", error=late)

    wanted = list(queries)
    answers = await asyncio.gather(*(one(query) for query in wanted))
    return dict(zip(wanted, answers, strict=True))


def find_program(query: ProgramQuery, path_env: str) -> ProgramFacts:
    """Which file `query.name` runs, with this PATH."""
    return ProgramFacts(shutil.which(query.name, path=path_env))


def look_at(query: FileQuery) -> FileFacts:
    """Type, size and beginning of a file."""
    try:
        info = os.stat(query.path)
    except (FileNotFoundError, NotADirectoryError):
        return FileFacts("missing")
    except (OSError, ValueError) as error:
        return FileFacts("other", error=str(error))
    if stat.S_ISDIR(info.st_mode):
        return FileFacts("directory")
    if not stat.S_ISREG(info.st_mode):
        return FileFacts("other")
    if query.read <= 0:
        return FileFacts("file", size=info.st_size)
    try:
        with open(query.path, "rb") as file:
            data = file.read(min(query.read, MAX_READ))
    except OSError as error:
        return FileFacts("file", size=info.st_size, error=str(error))
    return FileFacts("file", size=info.st_size, text=data.decode(errors="replace"))


_shared = FactSource()


async def gather(queries: Iterable[FactQuery], environ: Mapping[str, str]) -> Facts:
    """`FactSource.gather` of one source that the whole process shares."""
    return await _shared.gather(queries, environ)
