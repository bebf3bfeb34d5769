"""/docs without a browser: what it loads, under which policy, and what the document says of keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.keys import create, dump
from tests.houses import House, Kit, house, problem


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        yield made


def test_the_page_loads_from_the_server_alone(home: House) -> None:
    page = home.client.get("/docs")
    assert "//" not in page.text.replace("<!--", ""), "no address of another host"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=|javascript:", page.text)
    loaded = re.findall(r'(?:src|href|data-document)="([^"]+)"', page.text)
    assert len(loaded) > 4
    for path in loaded:
        answer = home.client.get(path)
        assert answer.status_code == 200
        assert answer.content
    assert "SwaggerUIBundle(" in home.client.get("/docs/start.js").text


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/docs", "text/html"), ("/docs/start.js", "text/javascript"), ("/docs/swagger-ui.css", "text/css"),
        ("/docs/swagger-ui-bundle.js", "text/javascript"), ("/docs/favicon-32x32.png", "image/png"),
    ],
)  # fmt: skip
def test_everything_of_it_is_under_the_policy(home: House, path: str, kind: str) -> None:
    answer = home.client.get(path)
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_nothing_else_is_below_it(home: House) -> None:
    for path in ("/docs/__init__.py", "/docs/none.js", "/docs/..%2Fmain.py", "/docs/oauth2-redirect", "/redoc"):
        problem(home.client.get(path), 404)


def test_the_document_tells_which_calls_need_a_key(home: House, kit: Kit, tmp_path: Path) -> None:
    _, key = create("boss", "admin")
    (tmp_path / "keys.json").write_text(dump([key]))
    with house(kit.settings(data_dir=tmp_path / "data", keys_file=str(tmp_path / "keys.json"))) as guarded:
        document = guarded.client.get("/openapi.json").json()
    assert {scheme["type"] for scheme in document["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    calls = {(path, method): call for path, methods in document["paths"].items() for method, call in methods.items()}
    opened = {"/livez", "/readyz", "/", "/v1/key", "/ping", "/v2", "/v2/health/live", "/v2/health/ready"}
    assert {path for (path, _), call in calls.items() if "security" not in call} == opened
    without = home.client.get("/openapi.json").json()
    assert "securitySchemes" not in without["components"]
    assert "HTTPValidationError" not in json.dumps(without)
    assert all({"400", "421"} <= set(call["responses"]) for call in calls.values())
