"""Scenario 16: whatever is asked of the API, it answers soon, and as its own document says."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from requests import Response, Session
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.acceptance.harness import Daemon, free_port
from tests.acceptance.unix_http import session_over
from tests.integration.shim_support import mutated

BASE = "http://localhost"
API = f"{BASE}/v1/management"
ROUNDS, EXAMPLES = 6, 6
SOON = 5.0  # seconds, what `wait` allows left out
CONFORMING = [
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
DECLARED = ["web", "crash", "idle", "pair", "pair@1"]
TRANSIENT = ["t0", "t1", "t2", "t3"]
DEFINITION = {
    "name": "t0",
    "kind": "exec",
    "command": ["/bin/sleep", "1000"],
    "stop": {"drain": 0, "timeout": 2},
    "restart": {"policy": "no"},
    "labels": {"a": "b"},
    "env": {"A": "b"},
}
definitions = (
    st.builds(
        lambda body, name, command: {**body, "name": name, "command": command},
        st.just(DEFINITION),
        st.sampled_from(TRANSIENT),
        st.sampled_from([["/bin/sleep", "1000"], ["/bin/false"], ["/no/such/program"]]),
    )
    .flatmap(mutated)
    .filter(lambda body: sendable(body))
)


def sendable(body: object) -> bool:
    """It can be said in JSON."""
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        return False
    return True


class Asked:
    """What was asked of the API, what it answered, and what is wrong with that."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.answers: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []

    def ask(self, case: Case, *, right: bool) -> None:
        """Ask, and hold the answer against the document. `right`: that promises that it is accepted."""
        if (case.headers or {}).get("Last-Event-ID") == "":
            return  # as good as none, which is not wrong
        waits = shorten_wait(case)
        begun = time.monotonic()
        answer: Response = case.call(base_url=BASE, session=self.session, timeout=SOON + waits)
        took = time.monotonic() - begun
        self.answers[case.operation.label, answer.status_code] += 1
        said = f"{case.as_curl_command()}\n{answer.status_code} after {took:.2f} s: {answer.text[:1000]}"
        if answer.status_code >= 500 or str(answer.status_code) not in documented(case.operation):
            self.wrong.append(f"undocumented: {said}")
        checks = [*CONFORMING, positive_data_acceptance] if right else CONFORMING
        try:
            case.validate_response(answer, checks=checks)
        except FailureGroup as failures:
            self.wrong.extend(
                f"{failure.title}: {failure.message}\n{said}" for failure in failures.exceptions
            )


def shorten_wait(case: Case) -> float:
    """Have nobody wait for long; returns the seconds that are allowed."""
    query = case.query or {}
    if isinstance(query.get("wait"), int | float) and query["wait"] > 0.1:
        query["wait"] = 0.1
    return 0.1 if "wait" in query else 0.0


def documented(operation: APIOperation) -> dict[str, Any]:
    responses: dict[str, Any] = operation.definition.raw["responses"]
    return responses


def takes_input(operation: APIOperation) -> bool:
    """It has parameters that can be wrong; a path's can only be unknown."""
    return bool(operation.query or operation.headers or operation.body)


def ask_some(asked: Asked, operation: APIOperation, mode: GenerationMode, number: int) -> None:
    """A few requests of one operation, others each time that `number` is another."""
    right = mode is GenerationMode.POSITIVE
    names = TRANSIENT if operation.path.endswith("/forget") else [*DECLARED, *TRANSIENT]

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(mode), st.sampled_from([*names, None]), definitions, st.integers(0, 3))
    def some(case: Case, name: str | None, definition: dict[str, Any], chance: int) -> None:
        if name and case.path_parameters:
            case.path_parameters["id"] = name
        if operation.body and right and chance:
            case.body = definition
        refusable = operation.body or operation.path.endswith("/reload")
        asked.ask(case, right=right and not refusable)

    some()


def test_every_answer_is_one_that_the_document_tells_of(daemon: Daemon) -> None:
    """Scenario 16.1: some hundred requests made from openapi.json, right ones and wrong ones, in any order,
    against a daemon with engines that run, crash, wait and are replicated; the configuration changes and
    breaks meanwhile. At last `shutdown`, first wrongly.

    Result: no 5xx, no status, header or body that the document does not tell of, nothing wrong accepted,
    nothing right refused, no traceback. Every operation succeeded at least once. The daemon ends in order.
    """
    engines = [
        daemon.web_engine("web", free_port()),
        daemon.engine("crash", "crash.py", restart='{ policy = "no" }'),
        daemon.engine("idle", "chatter.py", autostart=False),
        daemon.engine("pair", "chatter.py", replicas=2),
    ]
    texts = ["\n".join(engines), "\n".join(engines[:1]), "\n".join([*engines, "[engines.x]\n"]), "[[["]
    daemon.configure(texts[0])
    daemon.start()
    session = session_over(daemon.client.socket_path)
    document = session.get(f"{BASE}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    asked = Asked(session)
    modes = [
        (operation, mode)
        for operation in operations
        if operation.path != "/v1/management/shutdown"
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if mode is GenerationMode.POSITIVE or takes_input(operation)
    ]
    order = random.Random(0)
    for number in range(ROUNDS):
        for operation, mode in order.sample(modes, len(modes)):
            if operation.path.endswith("/reload"):
                daemon.configure(order.choice(texts))
            ask_some(asked, operation, mode, number)

    assert not asked.wrong, f"{len(asked.wrong)} wrong answers\n" + "\n\n".join(asked.wrong[:10])
    assert "Traceback" not in daemon.daemon_log()
    succeeded = {label for label, status in asked.answers if status < 300}
    assert succeeded == {operation.label for operation, _ in modes}, asked.answers

    assert session.post(f"{API}/shutdown?now=1").status_code == 400
    assert session.post(f"{API}/shutdown", json={"now": True}).status_code == 400
    assert session.post(f"{API}/shutdown").status_code == 202
    assert daemon.process is not None
    assert daemon.process.wait(30) == 0


@pytest.mark.parametrize("name", [21, True, 0.5, [], ["t"], {"t": 1}], ids=str)
def test_a_name_that_is_no_text_is_refused(daemon: Daemon, name: object) -> None:
    """Scenario 16.2: an engine is defined under a number, a list, a table.

    Result: 422 for the key `name`, and no engine.
    """
    daemon.start()
    session = session_over(daemon.client.socket_path)
    answer = session.post(f"{API}/engines", json={**DEFINITION, "name": name})
    assert (answer.status_code, [entry["key"] for entry in answer.json()["errors"]]) == (422, ["name"])
    assert daemon.client.engines() == []


def test_a_name_that_is_null_is_left_out(daemon: Daemon) -> None:
    """Scenario 16.3: a program passes on a name that it does not have.

    Result: the engine is called by its id, as where the key is not there.
    """
    daemon.start()
    made = daemon.client.define({**DEFINITION, "name": None})
    assert made["name"] == made["engine_id"]
