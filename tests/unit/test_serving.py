"""What becomes of a job's result: the pure part of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sagectl.core import serving
from sagectl.core.actions import Record
from sagectl.core.engine import (
    Desired,
    Engine,
    EngineSpec,
    LoadedModel,
    Moment,
    Process,
    Serving,
    ServingPhase,
    State,
    Sub,
)
from sagectl.core.events import Exited, ModelsLoaded, ServingChanged
from sagectl.core.lifecycle import step
from sagectl.plugin import ExitStatus, LaunchPlan, Mode, Successor

MODELS = "/models"
SUCCESSOR = Successor("support", "llm", "/models/support")
NOW = Moment(100.0, 1_000.0)
PROCESS = Process(pid=100, starttime=1, boot_id="boot", started=50.0, started_wall=950.0)


def job(**changes: Any) -> Engine:
    running = Engine("engine-1", EngineSpec("tune", "finetune", mode=Mode.RUN), generation=1)
    running = replace(
        running, state=State.ACTIVE, sub=Sub.RUNNING, plan=LaunchPlan(("x",), successor=SUCCESSOR)
    )
    return replace(running, **changes)


def server(name: str = "chat", model: str | None = "base", kind: str = "llm", **changes: Any) -> Engine:
    ready = Engine(
        f"engine-{name}", EngineSpec(name, kind, model=model), generation=4, plan=LaunchPlan(("y",))
    )
    return replace(ready, **{"state": State.ACTIVE, "sub": Sub.READY, **changes})


def loaded(name: str = "support", generation: int = 4, edition: int = 0) -> LoadedModel:
    return LoadedModel(name, "/models/support", "engine-1", generation, edition)


def test_a_job_that_completes_says_that_its_result_is_to_be_served() -> None:
    done, _ = step(job(), Exited(1, ExitStatus(code=0), left=0), NOW)
    assert done.sub is Sub.COMPLETED
    assert done.serving == Serving(SUCCESSOR, text="its result is to be served as support")
    assert done.reason == "its result is to be served as support"


@pytest.mark.parametrize("status", [ExitStatus(code=75), ExitStatus(code=1), ExitStatus(signal=9)])
def test_a_job_that_ended_otherwise_has_nothing_to_serve(status: ExitStatus) -> None:
    assert step(job(), Exited(1, status, left=0), NOW)[0].serving is None


def test_a_job_that_completes_without_a_successor_has_nothing_to_serve() -> None:
    before = job(plan=LaunchPlan(("x",)), serving=Serving(SUCCESSOR, ServingPhase.SERVED))
    done, _ = step(before, Exited(1, ExitStatus(code=0), left=0), NOW)
    assert (done.serving, done.reason) == (None, "")


def test_how_far_it_is_becomes_the_reason_and_an_event() -> None:
    done, _ = step(job(), Exited(1, ExitStatus(code=0), left=0), NOW)
    failed = Serving(SUCCESSOR, ServingPhase.FAILED, "chat", "not served as support: because")
    after, actions = step(done, ServingChanged(failed), NOW)
    assert (after.reason, after.serving) == (failed.text, failed)
    assert actions == (Record("serving-failed", failed.text, "error"),)
    assert step(after, ServingChanged(failed), NOW) == (after, ())


def test_what_is_said_of_another_result_changes_nothing() -> None:
    done, _ = step(job(), Exited(1, ExitStatus(code=0), left=0), NOW)
    other = Serving(replace(SUCCESSOR, name="other"), ServingPhase.SERVED)
    assert step(done, ServingChanged(other), NOW) == (done, ())
    assert step(job(), ServingChanged(Serving(SUCCESSOR)), NOW) == (job(), ())


def test_while_the_job_runs_again_its_reason_is_its_own() -> None:
    again = job(serving=Serving(SUCCESSOR), reason="training")
    after, _ = step(again, ServingChanged(Serving(SUCCESSOR, ServingPhase.SERVED, "chat", "served")), NOW)
    assert after.reason == "training"
    assert after.serving is not None
    assert after.serving.phase is ServingPhase.SERVED


def test_what_an_engine_loaded_is_kept_by_it() -> None:
    assert step(server(), ModelsLoaded((loaded(),)), NOW)[0].loaded == (loaded(),)


@pytest.mark.parametrize(
    ("model", "directory"),
    [
        ("/models/support", "/models/support"),
        ("/models/x/../support/", "/models/support"),
        ("support", "/models/support"),
        ("team/support", "/models/team/support"),
        ("./support", None),
        ("~/support", None),
        ("", None),
        (None, None),
    ],
)
def test_the_directory_that_a_model_means(model: str | None, directory: str | None) -> None:
    assert serving.path(model, MODELS) == directory


@pytest.mark.parametrize(
    ("named", "why"),
    [
        (server("support", "support"), None),
        (server("chat", loaded=(loaded(),)), None),
        (server("support", "/models/support"), None),
        (server("support", "base"), "there is an engine support already, which serves base"),
        (
            server("support", "support", kind="embedding"),
            "there is an engine support already, which serves support",
        ),
        (
            server("support", None, kind="exec"),
            "there is an engine support already, which is of the kind exec",
        ),
        (
            server("support", "base", kind="finetune", spec=EngineSpec("support", "finetune", mode=Mode.RUN)),
            "there is an engine support already, which is of the kind finetune",
        ),
        (
            server("a", plan=LaunchPlan(("y",), served_models=("support",))),
            "the engine a serves base under that name",
        ),
        (
            server("a", loaded=(replace(loaded(), path="/models/other"),)),
            "the engine a serves /models/other under that name",
        ),
    ],
)
def test_an_engine_of_that_name_that_serves_something_else_is_in_the_way(
    named: Engine, why: str | None
) -> None:
    assert serving.conflict([server("other"), named], SUCCESSOR, MODELS) == why


def test_those_are_asked_that_are_ready_first_whoever_has_it_already() -> None:
    engines = [
        server("a"),
        server("b", loaded=(loaded(),)),
        server("c", sub=Sub.UNREADY),
        server("d", kind="embedding"),
        server("e", state=State.ACTIVATING, sub=Sub.STARTING),
    ]
    assert [engine.name for engine in serving.candidates(engines, SUCCESSOR)] == ["b", "a"]


def test_an_engine_that_was_started_anew_has_lost_what_it_had_loaded() -> None:
    kept, gone = loaded("kept", 4), loaded("gone", 3)
    assert serving.lost(server(loaded=(kept, gone))) == (gone,)
    assert serving.lost(server(loaded=(kept, gone), sub=Sub.STARTING)) == ()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"state": State.ACTIVATING, "sub": Sub.STARTING}, True),
        ({"state": State.ACTIVATING, "sub": Sub.BACKOFF}, True),
        ({"sub": Sub.UNREADY}, True),
        ({}, False),
        ({"state": State.FAILED, "sub": Sub.EXIT_CODE}, False),
        ({"state": State.ACTIVATING, "sub": Sub.STARTING, "loaded": ()}, False),
        ({"state": State.DEACTIVATING, "sub": Sub.STOPPING, "desired": Desired.STOPPED}, False),
    ],
)
def test_an_engine_with_the_earlier_result_that_is_coming_back(changes: dict[str, Any], found: bool) -> None:
    holder = server(**{"desired": Desired.RUNNING, "loaded": (loaded(),), **changes})
    assert (serving.returning([server("a"), holder], "support") is not None) is found


def test_editions_are_counted_within_a_process() -> None:
    assert serving.edition(server(), "support") == 0
    assert serving.edition(server(loaded=(loaded(edition=2),)), "support") == 3
    assert serving.edition(server(loaded=(loaded(edition=2, generation=3),)), "support") == 0
    assert serving.edition(server(loaded=(loaded("other"),)), "support") == 0


def test_a_newer_model_of_a_name_takes_the_place_of_the_older() -> None:
    older, other, newer = loaded(), loaded("other"), loaded(edition=1)
    assert serving.with_model(server(loaded=(older, other)), newer) == (other, newer)


@pytest.mark.parametrize(
    ("engine", "phase", "words"),
    [
        (server("support"), ServingPhase.SERVED, "by the engine support"),
        (None, ServingPhase.FAILED, "its engine was removed"),
        (
            server("support", state=State.FAILED, sub=Sub.EXIT_CODE, reason="why"),
            ServingPhase.FAILED,
            "failed: why",
        ),
        (server("support", state=State.INACTIVE, sub=Sub.STOPPED), ServingPhase.FAILED, "was stopped"),
    ],
)
def test_what_came_of_an_engine_of_its_own(engine: Engine | None, phase: ServingPhase, words: str) -> None:
    found = serving.outcome(engine, "support")
    assert found is not None
    assert found[0] is phase
    assert words in found[1]


@pytest.mark.parametrize("sub", [Sub.QUEUED, Sub.PREFLIGHT, Sub.STARTING, Sub.BACKOFF])
def test_what_comes_of_an_engine_that_starts_is_open(sub: Sub) -> None:
    assert serving.outcome(server(state=State.ACTIVATING, sub=sub), "support") is None


def test_an_engine_of_its_own_is_defined_to_come_back() -> None:
    successor = replace(SUCCESSOR, keys={"served_model_name": "support", "use_gpu": False, "name": "other"})
    assert serving.definition(successor) == {
        **{"autostart": True, "served_model_name": "support", "use_gpu": False},
        **{"name": "support", "kind": "llm", "model": "/models/support"},
    }


@pytest.mark.parametrize(
    ("process", "begun_for", "earlier"),
    [(PROCESS, "", True), (PROCESS, "support", False), (None, "", False), (None, "support", False)],
)
def test_an_engine_of_its_own_is_restarted_where_it_serves_an_earlier_result(
    process: Process | None, begun_for: str, earlier: bool
) -> None:
    own = server("support", "support", process=process)
    assert serving.serves_earlier(own, Serving(SUCCESSOR, engine=begun_for)) is earlier
