"""openapi.json is a valid document, and says what the routes and the client say."""

from __future__ import annotations

from typing import get_type_hints
from unittest.mock import Mock

import pytest
from jsonschema import Draft202012Validator
from multidict import MultiDict
from openapi_spec_validator import OpenAPIV31SpecValidator

from sagectl import client
from sagectl.api.openapi import document
from sagectl.api.requests import read_query
from sagectl.api.rights import Level
from sagectl.api.schemas import SCHEMAS
from sagectl.api.table import ROUTES


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(document(ROUTES)).validate()


def test_every_route_stands_in_the_document_with_its_parameters() -> None:
    paths = document(ROUTES)["paths"]
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        named = {parameter["name"] for parameter in operation.get("parameters", [])}
        assert named >= {param.name for param in route.params}
        assert {str(status) for status in route.answers} <= set(operation["responses"])
        assert ("requestBody" in operation) is route.takes_body


def test_a_name_in_the_query_can_be_unknown_and_the_document_says_so() -> None:
    for route in ROUTES:
        if any(param.shape == "name" for param in route.params):
            assert "404" in document(ROUTES)["paths"][route.path][route.method.lower()]["responses"]


def test_operations_have_names_of_their_own() -> None:
    names = [
        operation["operationId"] for path in document(ROUTES)["paths"].values() for operation in path.values()
    ]
    assert len(set(names)) == len(names) == len(ROUTES)


@pytest.mark.parametrize(
    ("schema", "typed"),
    [
        ("Engine", client.Engine),
        ("EngineProgress", client.EngineProgress),
        ("Event", client.Event),
        ("Exit", client.Exit),
        ("ReloadPlan", client.Reload),
        ("Status", client.Status),
    ],
)
def test_the_clients_types_have_the_fields_of_the_schemas(schema: str, typed: type) -> None:
    assert set(get_type_hints(typed)) == set(SCHEMAS[schema]["properties"])


def test_only_the_health_check_is_open_to_strangers() -> None:
    assert [route.path for route in ROUTES if route.level is Level.NOTHING] == ["/healthz"]


def test_what_defines_needs_the_right_to() -> None:
    defining = {route.path.rpartition("/")[2] for route in ROUTES if route.level is Level.DEFINE}
    assert defining == {
        "engines",
        "start",
        "enable",
        "disable",
        "forget",
        "reload",
        "shutdown",
        "daemon-reexec",
    }
    starting = [r for r in ROUTES if r.path.endswith("/{id}/start")]
    assert [route.level for route in starting] == [Level.OPERATE]


def test_the_document_bounds_every_integer() -> None:
    for route in ROUTES:
        for param in route.params:
            assert (param.shape != "integer") or param.maximum, param.name


def test_what_is_followed_is_of_the_type_that_is_sent() -> None:
    paths = document(ROUTES)["paths"]
    events = paths["/v1/management/events"]["get"]["responses"]["200"]["content"]
    logs = paths["/v1/management/engines/{id}/logs"]["get"]["responses"]["200"]["content"]
    assert set(events) == {"application/json", "text/event-stream"}
    assert set(logs) == {"text/plain"}
    assert events["text/event-stream"] == {}  # a schema would be read as that of each event's fields


@pytest.mark.parametrize("text", ["1", "0", "true", "false", "yes", "no", "on", "off"])
def test_the_document_allows_every_word_that_a_switch_takes(text: str) -> None:
    flag = next(param for route in ROUTES for param in route.params if param.shape == "boolean")
    request = Mock(query=MultiDict([(flag.name, text)]), query_string="x")
    assert isinstance(read_query(request, [flag])[flag.name], bool)
    operation = document(ROUTES)["paths"]["/v1/management/reload"]["post"]
    schema = next(one["schema"] for one in operation["parameters"] if one["name"] == "dry_run")
    said = {"1": 1, "0": 0, "true": True, "false": False}.get(text, text)
    assert Draft202012Validator(schema).is_valid(said)
    assert not Draft202012Validator(schema).is_valid("perhaps")


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"kind": "exec", "command": ["x"]}, True),
        ({"engine_kind": "llm", "model_id": "m", "name": None}, True),
        ({"kind": "llm", "model": None}, True),
        ({}, False),
        ({"kind": None}, False),
        ({"kind": "exec", "name": 5}, False),
    ],
)
def test_the_document_says_what_every_definition_needs(body: dict[str, object], fits: bool) -> None:
    assert Draft202012Validator(SCHEMAS["NewDefinition"]).is_valid(body) is fits
