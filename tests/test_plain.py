"""Calls in their usual form: answered as the framework answers them, and refused as it refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Scope

from service.keys import create, dump
from service.web.routes import plain
from tests.houses import House, Kit, house, photograph

USUAL = [
    ("/v1/tasks/t/predict", {}),
    ("/v1/tasks/t/predict?top_k=2", {}),
    ("/v1/tasks/t/predict?version=1", {}),
    ("/v1/tasks/t/predict?top_k=3&version=1", {"X-Deadline-Ms": "5000"}),
    ("/v1/tasks/nobody/predict", {}),
    ("/v1/tasks/t/predict?version=9", {}),
    ("/v1/tasks/t/predict", {"X-Deadline-Ms": "99999999"}),
    ("/v1/predict?task=t", {}),
    ("/v1/predict?task=t&task=u&top_k=1", {"X-Deadline-Ms": "5000"}),
    ("/v1/predict?task=t&task=nobody", {}),
    ("/v1/tasks/t/predict/", {}),
    ("/v1/tasks/t/predict", {"X-Request-Id": "mine"}),
]
OTHER = [
    "/v1/tasks/Not-A-Name/predict", "/v1/predict?" + "&".join(["task=t"] * 65), "/v1/tasks/t//predict",
    "/v1/tasks/t/predict?top_k=0", "/v1/tasks/t/predict?top_k=x", "/v1/tasks/t/predict?topk=2",
    "/v1/tasks/t/predict?top_k=1&top_k=2", "/v1/tasks/t/predict?version=1&top_k=2", "/v1/predict", "/v1/predict?task=",
    "/v1/predict?top_k=1&task=t", "/v1/predict?task=t&version=1", "/v1/tasks/t/predict?top_k=+5",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        for seed, task in enumerate("tu"):
            made.put(task, kit.file(seed)[0]).raise_for_status()
        yield made


def told(response: httpx.Response) -> tuple[int, Any, set[str]]:
    """What must be equal: not the ids, times and numbers of bytes."""
    document = response.json()
    for name in ("request_id", "instance"):
        document.pop(name, None)
    return response.status_code, document, set(response.headers)


Taken = list[plain.Asked | None]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """What was made of each call."""
    found: Taken = []
    inner = plain.Plain.asked

    def asked(self: plain.Plain, scope: Scope) -> plain.Asked | None:
        found.append(inner(self, scope))
        return found[-1]

    monkeypatch.setattr(plain.Plain, "asked", asked)
    return found


@pytest.mark.parametrize(("address", "headers"), USUAL)
def test_a_usual_call_is_answered_as_the_framework_would(
    home: House, monkeypatch: pytest.MonkeyPatch, taken: Taken, address: str, headers: dict[str, str]
) -> None:
    plainly = told(home.client.post(address, content=photograph(), headers=headers))
    assert taken != [None]
    monkeypatch.setattr(plain.Plain, "asked", lambda *_: None)
    assert told(home.client.post(address, content=photograph(), headers=headers)) == plainly


@pytest.mark.parametrize("address", OTHER)
def test_any_other_call_is_the_frameworks(home: House, taken: Taken, address: str) -> None:
    home.client.post(address, content=photograph())
    assert taken == [None]


@pytest.mark.parametrize(
    "headers",
    [
        [("Host", "elsewhere.example")], [("Host", "a b")],
        [("Origin", "http://elsewhere.example")], [("Sec-Fetch-Site", "cross-site")], [("X-Deadline-Ms", "0")],
        [("X-Deadline-Ms", "5"), ("X-Deadline-Ms", "6")], [("X-API-Key", "a"), ("X-API-Key", "b")],
    ],
)  # fmt: skip
def test_a_call_that_may_be_refused_for_a_header_is_the_frameworks(
    home: House, taken: Taken, headers: list[tuple[str, str]]
) -> None:
    home.client.post("/v1/tasks/t/predict", content=photograph(), headers=headers)
    assert taken == [None]


def test_a_call_with_a_key_is_usual_where_the_key_may_do_it(kit: Kit, tmp_path: Path, taken: Taken) -> None:
    secret, key = create("some", "predict", ["t"])
    admins, admin = create("all", "admin")
    with house(kit.settings(data_dir=tmp_path, keys=dump([key, admin]))) as made:
        headers = {"Authorization": f"Bearer {admins}"}
        for task in "tu":
            content = kit.file(1)[0]
            made.client.put(f"/v1/tasks/{task}/adapter", content=content, headers=headers).raise_for_status()
        taken.clear()

        def status(address: str, **headers: str) -> tuple[int, bool]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            response = made.client.post(address, content=photograph(), headers=named)
            return response.status_code, taken[-1] is not None

        assert status("/v1/tasks/t/predict", Authorization=f"bearer  {secret}") == (200, True)
        assert status("/v1/tasks/t/predict", X_API_Key=secret) == (200, True)
        assert status("/v1/predict?task=t", X_API_Key=secret) == (200, True)
        assert status("/v1/tasks/u/predict", X_API_Key=secret) == (403, False)
        assert status("/v1/predict?task=t&task=u", X_API_Key=secret) == (403, False)
        assert status("/v1/tasks/u/predict", X_API_Key=admins) == (200, True)
        assert status("/v1/tasks/t/predict", X_API_Key="other") == (401, False)
        assert status("/v1/tasks/t/predict") == (401, False)


def test_what_nobody_foresaw_is_answered_and_logged(
    home: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(home.front.app.state.calls, "one", lambda *_: 1 / 0)
    response = home.client.post("/v1/tasks/t/predict", content=photograph())
    assert response.status_code == 500
    assert response.json()["request_id"] == response.headers["X-Request-Id"]
    assert any(response.headers["X-Request-Id"] in record.message for record in caplog.records if record.exc_info)


def test_the_document_has_both_calls_whole(home: House) -> None:
    document = home.client.get("/openapi.json").json()
    call = document["paths"]["/v1/tasks/{task}/predict"]["post"]
    assert {p["name"] for p in call["parameters"]} == {
        "task", "top_k", "version", "min_score", "abstain", "embedding", "start", "end", "window", "stride",
        "sampled", "X-Deadline-Ms", "X-Priority", "X-AdaptServe-Sticky",
    }  # fmt: skip
    assert "PredictAnswer" in str(call["responses"]["200"])
