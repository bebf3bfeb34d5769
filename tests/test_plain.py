"""Calls in their usual form: answered as the framework answers them, and refused as it refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.web.routes import plain
from tests.houses import House, Kit, house, photograph

USUAL = [
    ("/v1/tasks/t/predict", {}),
    ("/v1/tasks/t/predict?top_k=2", {}),
    ("/v1/tasks/t/predict?version=1", {}),
    ("/v1/tasks/t/predict?top_k=3&version=1", {"X-Deadline-Ms": "5000"}),
    ("/v1/tasks/nobody/predict", {}),
    ("/v1/tasks/Not-A-Name/predict", {}),
    ("/v1/tasks/t/predict?version=9", {}),
    ("/v1/tasks/t/predict", {"X-Deadline-Ms": "99999999"}),
    ("/v1/predict?task=t", {}),
    ("/v1/predict?task=t&task=u&top_k=1", {"X-Deadline-Ms": "5000"}),
    ("/v1/predict?task=t&task=nobody", {}),
    ("/v1/predict?" + "&".join(["task=t"] * 65), {}),
]
OTHER = [
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


@pytest.mark.parametrize(("address", "headers"), USUAL)
def test_a_usual_call_is_answered_as_the_framework_would(
    home: House, monkeypatch: pytest.MonkeyPatch, address: str, headers: dict[str, str]
) -> None:
    taken: list[object] = []
    inner = plain.asked
    monkeypatch.setattr(plain, "asked", lambda request: taken.append(inner(request)) or taken[-1])
    plainly = told(home.client.post(address, content=photograph(), headers=headers))
    assert taken != [None]
    monkeypatch.setattr(plain, "asked", lambda _: None)
    assert told(home.client.post(address, content=photograph(), headers=headers)) == plainly


@pytest.mark.parametrize("address", OTHER)
def test_any_other_call_is_the_frameworks(home: House, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    taken: list[object] = []
    inner = plain.asked
    monkeypatch.setattr(plain, "asked", lambda request: taken.append(inner(request)) or taken[-1])
    home.client.post(address, content=photograph())
    assert taken == [None]


def test_the_document_has_both_calls_whole(home: House) -> None:
    document = home.client.get("/openapi.json").json()
    call = document["paths"]["/v1/tasks/{task}/predict"]["post"]
    assert {p["name"] for p in call["parameters"]} == {"task", "top_k", "version", "X-Deadline-Ms"}
    assert "PredictAnswer" in str(call["responses"]["200"])
