"""Requests find their routes."""

from __future__ import annotations

import pytest

from sagectl.api.routes import NotAllowed, Router
from sagectl.api.table import ROUTES
from sagectl.errors import UnknownRoute

ROUTER = Router(ROUTES)
BASE = "/v1/management"


@pytest.mark.parametrize(
    ("method", "path", "route", "ref"),
    [
        ("GET", "/healthz", "/healthz", ""),
        ("HEAD", "/healthz", "/healthz", ""),
        ("GET", f"{BASE}/engines", f"{BASE}/engines", ""),
        ("POST", f"{BASE}/engines/start", f"{BASE}/engines/start", ""),
        ("GET", f"{BASE}/engines/start", f"{BASE}/engines/{{id}}", "start"),
        ("DELETE", f"{BASE}/engines/chat", f"{BASE}/engines/{{id}}", "chat"),
        ("POST", f"{BASE}/engines/chat%401/stop", f"{BASE}/engines/{{id}}/stop", "chat@1"),
        ("POST", f"{BASE}/engines/..%2F..%2Fx/stop", f"{BASE}/engines/{{id}}/stop", "../../x"),
    ],
)
def test_a_request_finds_its_route(method: str, path: str, route: str, ref: str) -> None:
    found, given = ROUTER.find(method, path)
    assert (found.path, given) == (route, ref)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "/healthz/",
        "//healthz",
        f"{BASE}/engines/",
        f"{BASE}/engines//start",
        f"{BASE}/engines/../status",
        f"{BASE}/engines/{{id}}/nothing",
        "/../../etc/passwd",
        "/" * 5000,
    ],
)
def test_other_paths_are_unknown(path: str) -> None:
    with pytest.raises(UnknownRoute):
        ROUTER.find("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/healthz", "GET, HEAD"),
        ("OPTIONS", f"{BASE}/engines", "GET, HEAD, POST"),
        ("PUT", f"{BASE}/engines/start", "DELETE, GET, HEAD, POST"),
        ("GET", f"{BASE}/reload", "POST"),
        ("HEAD", f"{BASE}/reload", "POST"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_told_which_it_does(method: str, path: str, allow: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        ROUTER.find(method, path)
    assert caught.value.allow == allow
    assert caught.value.status == 405
