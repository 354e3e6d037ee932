"""The engine kinds `writer`, a job that writes a text, and `reader`, which reads texts out over HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagectl.plugin import (
    Diagnosis,
    EngineKind,
    EngineRequest,
    FactQuery,
    Facts,
    FailureReport,
    HttpProbe,
    LaunchPlan,
    Loading,
    Mode,
    Probes,
    Progress,
    Refusal,
    Successor,
    hookimpl,
    option,
)

WRITE = """
import os, sys
os.makedirs(sys.argv[1], exist_ok=True)
os.replace(sys.argv[2], sys.argv[1] + "/text")
"""
LOOK = """
import os, sys
if not open(sys.argv[1]).read():
    sys.exit("nothing is in it for GPUs " + repr(os.environ.get("CUDA_VISIBLE_DEVICES")))
"""
READ = str(Path(__file__).with_name("read.py"))


def post(where: str, **body: str) -> HttpProbe:
    return HttpProbe(where, method="POST", body=json.dumps(body))


def first_word(name: str) -> HttpProbe:
    return HttpProbe("/read", method="POST", body=json.dumps({"name": name}), json_path=("text",))


class Kind:
    default_port: int | None = None

    def listens(self, options: Any) -> bool:
        return self.default_port is not None

    def facts(self, request: EngineRequest[Any]) -> Sequence[FactQuery]:
        return ()

    def explain(self, request: EngineRequest[Any], failure: FailureReport) -> Diagnosis | None:
        return None

    def progress(self, text: str) -> Progress | None:
        return None


@dataclass(frozen=True, slots=True)
class WriterOptions:
    draft: str = option("the file that becomes the result")
    output: str = option("the directory of the result")
    serve_as: str | None = option("read it out under this name", default=None)


class WriterKind(Kind):
    name = "writer"
    summary = "writes a text"
    mode = Mode.RUN
    options = WriterOptions

    def explain(self, request: EngineRequest[Any], failure: FailureReport) -> Diagnosis | None:
        if failure.log and failure.log[-1].startswith("nothing is in it"):
            return Diagnosis(f"{failure.log[-1]}.", "Write something.", retryable=False)
        return None

    def plan(self, request: EngineRequest[WriterOptions], facts: Facts) -> LaunchPlan | Refusal:
        options = request.options
        successor = Successor(options.serve_as, "reader", options.output) if options.serve_as else None
        argv = (request.python, "-I", "-S", "-c", WRITE, options.output, options.draft)
        look = (request.python, "-I", "-S", "-c", LOOK, options.draft)
        return LaunchPlan(argv=argv, rehearsal=look, successor=successor)


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    open: bool = option("takes in further texts", default=False)
    after: str = option("answers when there is this file", default="/")


class ReaderKind(Kind):
    name = "reader"
    summary = "reads texts out"
    mode = Mode.SERVE
    options = ReaderOptions
    default_port = 8301

    def plan(self, request: EngineRequest[ReaderOptions], facts: Facts) -> LaunchPlan | Refusal:
        argv = (request.python, "-I", "-S", READ, str(request.port), request.name)
        argv += (str(request.model), request.options.after)
        probes = Probes((first_word(request.name),), HttpProbe("/health"), HttpProbe("/health"))
        return LaunchPlan(argv=argv, probes=probes, served_models=(request.name,))

    def loading(
        self, request: EngineRequest[ReaderOptions], plan: LaunchPlan, facts: Facts, name: str, edition: int
    ) -> Loading | Refusal:
        if not request.options.open:
            return Refusal("it is closed", "set `open = true`")
        load = (post("/load", name=name, path=str(request.model)), first_word(name))
        if edition == 0:
            return Loading(load, undo=(post("/unload", name=name),))
        trial = f"{name}.{edition}"
        tried = (post("/load", name=trial, path=str(request.model)), first_word(trial))
        return Loading((*tried, post("/unload", name=trial), *load), undo=(post("/unload", name=trial),))


@hookimpl
def sagectl_engine_kinds() -> Sequence[EngineKind[Any]]:
    return (WriterKind(), ReaderKind())
