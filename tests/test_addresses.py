"""Every address alike, over real sockets: HEAD, OPTIONS, Allow, slashes, and the path that a proxy puts before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.keys import create, dump
from tests.houses import House, Kit, house, photograph, problem, until

READ = (
    "/v1/tasks", "/v1/tasks/pets", "/v1/tasks/pets/versions", "/v1/tasks/pets/versions/1",
    "/v1/tasks/pets/versions/1/adapter", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs",
    "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/start.js", "/docs/favicon-32x32.png",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        made.put("pets", kit.file(1)[0]).raise_for_status()
        yield made


@pytest.mark.parametrize("path", READ)
def test_head_tells_what_get_would(home: House, path: str) -> None:
    asked, told = home.client.get(path), home.client.head(path)
    assert told.status_code == asked.status_code == 200
    assert told.content == b""
    changing = {"date", "x-request-id"} | ({"content-length"} if path in ("/readyz", "/metrics") else set())
    of = lambda r: {name: value for name, value in r.headers.items() if name not in changing}  # noqa: E731
    assert of(told) == of(asked)
    if path not in ("/readyz", "/metrics"):
        assert int(told.headers["content-length"]) == len(asked.content)


def test_head_of_a_download_opens_no_file(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home.front.catalogue, "open", None)
    path = "/v1/tasks/pets/versions/1/adapter"
    told = home.client.head(path, headers={"Range": "bytes=0-1"})
    assert (told.status_code, told.headers["accept-ranges"]) == (200, "bytes")
    assert int(told.headers["content-length"]) == home.front.catalogue.repository.version("pets", 1).size
    assert home.client.head(path, headers={"If-None-Match": told.headers["etag"]}).status_code == 304


def test_head_fails_as_get_does_and_the_connection_goes_on(home: House) -> None:
    for path, status in (("/v1/tasks/none", 404), ("/nothing", 404), ("/v1/predict", 405), ("/v1/tasks/A", 400)):
        told, asked = home.client.head(path), home.client.get(path)
        assert (told.status_code, told.content) == (status, b"")
        assert told.headers["content-type"] == asked.headers["content-type"] == "application/problem+json"
    assert home.client.get("/livez").json() == {"status": "live"}


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/tasks", "GET, HEAD"), ("/v1/tasks/pets", "GET, HEAD, DELETE"), ("/v1/tasks/none", "GET, HEAD, DELETE"),
        ("/v1/tasks/pets/predict", "POST"), ("/v1/tasks/pets/adapter", "PUT"), ("/v1/predict/", "POST"),
        ("/v1/tasks/pets/versions/7", "GET, HEAD, DELETE"), ("/livez", "GET, HEAD"), ("/docs", "GET, HEAD"),
    ],
)  # fmt: skip
def test_options_and_405_name_every_method(home: House, path: str, methods: str) -> None:
    told = home.client.options(path)
    assert (told.status_code, told.content) == (204, b"")
    assert told.headers["allow"] == methods + ", OPTIONS"
    wrong = next(m for m in ("PATCH", "POST") if m not in methods)
    refused = home.client.request(wrong, path)
    problem(refused, 405)
    assert refused.headers["allow"] == methods + ", OPTIONS"


def test_nothing_is_nothing_for_every_method(home: House) -> None:
    for method in ("GET", "OPTIONS", "POST", "DELETE"):
        problem(home.client.request(method, "/v1/nothing"), 404)
    assert home.client.head("/v1/nothing").status_code == 404


@pytest.mark.parametrize("path", [path for path in READ if path != "/readyz" and path != "/metrics"])
def test_a_slash_at_the_end_changes_nothing(home: House, path: str) -> None:
    answer = home.client.get(path + "/")
    assert answer.status_code == 200
    assert answer.content == home.client.get(path).content


def test_a_slash_at_the_end_keeps_bodies_and_queries(home: House, kit: Kit) -> None:
    body = photograph()
    answer = home.client.post("/v1/tasks/pets/predict/?top_k=1", content=body)
    assert len(answer.json()["predictions"]) == 1
    assert home.client.post("/v1/predict/?task=pets", content=body).status_code == 200
    assert home.client.put("/v1/tasks/slashed/adapter/", content=kit.file(2)[0]).status_code == 201
    assert home.client.post("/v1/tasks/slashed/versions/1/activate/").status_code == 200
    assert home.client.delete("/v1/tasks/slashed/").status_code == 204


@pytest.mark.parametrize(
    "path",
    [
        "//v1/tasks", "/v1//tasks", "/v1/tasks//", "/v1/tasks/pets//predict", "/v1/tasks/pets/versions//1",
        "/v1/tasks%2F", "/v1/tasks%2fpets", "/v1/tasks/pets%2Fversions", "/v1/tasks/pets%2Fversions%2F1", "//",
        "/v1", "/v1/",
    ],
)  # fmt: skip
def test_other_slashes_lead_nowhere(home: House, path: str) -> None:
    """Two side by side may pass a proxy's rule that one does not; one that is encoded is part of a name."""
    answer = httpx.get(httpx.URL(home.url).copy_with(raw_path=path.encode()))
    assert answer.status_code in (400, 404), answer.text
    detail = problem(answer, answer.status_code)["detail"]
    if "//" in path:
        assert "two slashes" in str(detail)


def test_encoded_letters_are_letters(home: House) -> None:
    assert home.client.get("/v1/t%61sks/p%65ts").json()["task"] == "pets"


def test_neither_head_nor_options_is_a_way_past_the_guard(kit: Kit, tmp_path: Path) -> None:
    made = {"app": create("app", "predict", ["pets"]), "boss": create("boss", "admin")}
    (tmp_path / "keys.json").write_text(dump(key for _, key in made.values()))
    with house(kit.settings(data_dir=tmp_path / "data", keys_file=str(tmp_path / "keys.json"))) as home:
        key = {who: {"X-API-Key": secret} for who, (secret, _) in made.items()}
        path = "/v1/tasks/pets/versions/1/adapter"
        home.client.put("/v1/tasks/pets/adapter", content=kit.file(1)[0], headers=key["boss"]).raise_for_status()
        assert home.client.head("/v1/tasks").status_code == 401
        assert home.client.head("/v1/tasks/pets/", headers=key["app"]).status_code == 200
        assert home.client.head("/v1/tasks/other", headers=key["app"]).status_code == 403
        assert home.client.head(path, headers=key["app"]).status_code == 403
        assert home.client.head(path, headers=key["boss"]).status_code == 200
        assert home.client.head("/metrics", headers=key["app"]).status_code == 403
        told = [home.client.options(f"/v1/tasks/{task}") for task in ("pets", "other", "NONE")]
        assert {(r.status_code, r.headers["allow"]) for r in told} == {(204, "GET, HEAD, DELETE, OPTIONS")}
        text = home.client.get("/metrics", headers=key["boss"]).text
        assert 'adaptserve_requests_total{code="403",task=""}' in text


@pytest.mark.parametrize("root", ["/vision", "/a/b", "/v1", "/docs"])
def test_under_a_root_path_behind_a_proxy_that_strips_it_or_not(kit: Kit, tmp_path: Path, root: str) -> None:
    with house(kit.settings(data_dir=tmp_path, root_path=root)) as home:
        for before in (root, ""):
            made = home.client.put(f"{before}/v1/tasks/pets{len(before)}/adapter/", content=kit.file(1)[0])
            assert made.status_code == 201
            assert made.headers["location"] == f"{root}/v1/tasks/pets{len(before)}/versions/1"
            assert home.client.get(f"{before}/livez").status_code == 200
            assert home.client.get(f"{before}/openapi.json").json()["servers"] == [{"url": root}]
            page = home.client.get(f"{before}/docs/").text
            assert f'src="{root}/docs/start.js"' in page
            assert f'data-document="{root}/openapi.json"' in page
            assert home.client.get(f"{before}/docs/start.js").status_code == 200
            assert home.client.options(f"{before}/v1/tasks/").headers["allow"] == "GET, HEAD, OPTIONS"
            assert home.client.get(f"{before}/v1/nothing").status_code == 404
        assert home.client.get(f"{root}x/livez").status_code == 404
        if root != "/v1":  # there it may be either
            assert 'adaptserve_requests_total{code="404",task=""} 2.0' in home.client.get("/metrics").text


def test_the_log_and_the_metrics_tell_head_apart(home: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="adaptserve.request"):
        home.client.head("/v1/tasks/pets/", headers={"X-Request-Id": "a-head"})
        assert until(lambda: any("a-head" in record.getMessage() for record in caplog.records))  # after the answer
    line = next(record.getMessage() for record in caplog.records if "a-head" in record.getMessage())
    assert line.startswith("HEAD /v1/tasks/{task} pets 200 in ")
