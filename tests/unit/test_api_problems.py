"""Every error has its status and its document."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from sagectl import errors
from sagectl.api.problems import STATUS, Rejected, document, status_of
from sagectl.api.reply import encode


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.MalformedRequest("x"), 400),
        (errors.Forbidden("x"), 403),
        (errors.UnknownEngine("x"), 404),
        (errors.UnknownRoute("x"), 404),
        (errors.Conflict("x"), 409),
        (errors.InvalidConfig([]), 422),
        (errors.Unplaceable("x"), 503),
        (errors.Unkept("x"), 507),
        (Rejected(HTTPStatus.REQUEST_TIMEOUT, "x"), 408),
        (errors.SagectlError("x"), 500),
    ],
)
def test_each_error_has_its_status(error: errors.SagectlError, status: int) -> None:
    assert status_of(error) == status
    assert document(error)["status"] == status


def test_a_problem_has_the_members_of_rfc_9457_and_ours() -> None:
    error = errors.Conflict("the job is completed", remedy="use again", facts={"engine": "tune", "type": "x"})
    assert document(error) == {
        "type": "urn:sagectl:problem:conflict",
        "title": "Does not fit the engine's state",
        "status": 409,
        "detail": "the job is completed",
        "code": "conflict",
        "remedy": "use again",
        "engine": "tune",
    }


def test_an_invalid_definition_lists_every_error_and_no_warning() -> None:
    error = errors.InvalidConfig(
        [
            errors.Problem("engines.chat.port", "is taken", "choose another", file="s.toml", line=3),
            errors.Problem("x", "is not acted on", severity="warning"),
            errors.Problem("kind", "is missing"),
        ]
    )
    assert document(error)["errors"] == [
        {
            "key": "engines.chat.port",
            "message": "is taken",
            "remedy": "choose another",
            "file": "s.toml",
            "line": 3,
        },
        {"key": "kind", "message": "is missing", "remedy": "", "file": None, "line": 0},
    ]


def test_all_errors_that_a_request_can_meet_are_mapped() -> None:
    elsewhere = {errors.NoDaemon, errors.DaemonRefusal}  # of the client, and of the daemon's start
    assert set(errors.SagectlError.__subclasses__()) - {Rejected} - elsewhere == set(STATUS)


def test_what_json_cannot_say_is_said_otherwise() -> None:
    assert (
        encode({"loss": float("nan"), "all": [float("inf"), 1.5]}) == b'{"loss": null, "all": [null, 1.5]}\n'
    )
    assert encode({"path": "a\udcff"}) == b'{"path": "a\\udcff"}\n'
    assert encode({"set": frozenset()}) == b'{"set": "frozenset()"}\n'
