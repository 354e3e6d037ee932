"""openapi.json is a valid document, and says what the routes and the client say."""

from __future__ import annotations

from typing import get_type_hints

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from sagectl import client
from sagectl.api.openapi import document
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
    assert defining == {"engines", "start", "enable", "disable", "forget", "reload", "shutdown"}
    starting = [r for r in ROUTES if r.path.endswith("/{id}/start")]
    assert [route.level for route in starting] == [Level.OPERATE]


def test_the_document_bounds_every_integer() -> None:
    for route in ROUTES:
        for param in route.params:
            assert (param.shape != "integer") or param.maximum, param.name
