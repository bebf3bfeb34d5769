"""What other servers' protocols tell and change beside answers: tasks, versions, counts, who may, and bounds."""

from __future__ import annotations

import gc
import gzip
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.keys import create, dump
from tests.compat import ITEMS, PICTURES, error, home, infer
from tests.houses import House, Kit, house, until

__all__ = ["home"]


def test_the_bounds_of_a_request(home: House) -> None:
    def infer_refused(files: list[bytes], status: int) -> str:
        body, headers = infer(files)
        return error(home.client.post("/v2/models/pets/infer", content=body, headers=headers), status)

    assert "max_items_per_request" in infer_refused(PICTURES[:1] * (ITEMS + 1), 413)
    assert "max_body_bytes" in infer_refused([bytes(2**18 + 1)], 413)
    assert "max_request_bytes" in infer_refused([bytes(2**18)] * 5, 413)
    body, headers = infer([bytes(2**18)] * 5)
    packed = home.client.post(
        "/v2/models/pets/infer", content=gzip.compress(body), headers=headers | {"Content-Encoding": "gzip"}
    )
    assert "max_request_bytes" in error(packed, 413)
    assert home.built.bodies.held == 0


def test_what_servers_say_of_themselves(home: House) -> None:
    def get(path: str) -> Any:
        return home.client.get(path).raise_for_status().json()

    assert get("/v2/health/live") == {"live": True}
    assert get("/v2/health/ready") == {"ready": True}
    assert set(get("/v2")) == {"name", "version", "extensions"}
    assert get("/v2/models/pets/ready") == {"name": "pets", "ready": True}
    assert get("/v2/models/pets/versions/1/ready")["ready"] is True
    about = get("/v2/models/pets")
    assert (about["versions"], get("/v2/models/pets/versions/1")["versions"]) == (["1", "2"], ["1"])
    assert [one["datatype"] for one in about["inputs"] + about["outputs"]] == ["BYTES", "BYTES", "FP32"]
    assert get("/v2/models/pets/config")["max_batch_size"] == ITEMS
    assert get("/v2/models") == get("/v1/models") == {"models": ["away", "clips", "pets"]}
    status = get("/v1/models/pets")
    assert (status["name"], status["ready"]) == ("pets", True)
    assert [(one["version"], one["state"]) for one in status["model_version_status"]] == [
        ("2", "AVAILABLE"), ("1", "AVAILABLE"),
    ]  # fmt: skip
    assert get("/v1/models/pets/metadata")["model_spec"]["version"] == "2"
    assert get("/") == {"status": "alive"}
    assert get("/ping") == {"status": "Healthy"}
    assert get("/models")["models"][0] == {"modelName": "away", "modelUrl": "away.safetensors"}
    page = get("/models?limit=2")
    assert (len(page["models"]), get(f"/models?next_page_token={page['nextPageToken']}")["models"][0]["modelName"]) == (
        2, "pets",
    )  # fmt: skip
    assert [one["modelVersion"] for one in get("/models/pets") + get("/models/pets/all")] == ["2", "1", "2"]
    assert get("/models/pets/health") == {"status": "ok"}
    assert get("/models/clips/info")["task"] == "video-classification"


def test_what_is_not_there(home: House) -> None:
    body, headers = infer(PICTURES[:1])
    for path in ("/v2/models/nosuch/infer", "/v2/models/pets/versions/9/infer"):
        assert "there is no task" in (said := error(home.client.post(path, content=body, headers=headers), 404)) or (
            "no version 9" in said
        )
    for path in (
        "/v2/models/nosuch/ready", "/v2/models/pets/versions/9/ready", "/v2/models/nosuch", "/v2/models/nosuch/config",
        "/v2/models/pets/versions/9", "/v1/models/nosuch", "/v1/models/pets/versions/9", "/v1/models/nosuch/metadata",
        "/models/nosuch/health", "/models/nosuch/info",
    ):  # fmt: skip
        error(home.client.get(path), 404)
    assert "path parameter 'version'" in error(home.client.get("/v2/models/pets/versions/x"), 400)
    refused = home.client.put("/predictions/nosuch", content=PICTURES[0])
    assert refused.json() == {
        "code": 404, "type": "ModelNotFoundException", "message": "there is no task 'nosuch'; GET /v1/tasks lists them",
    }  # fmt: skip
    for path, kind in {
        "/predictions/pets/9": "ModelVersionNotFoundException",
        "/predictions/pets/1.5": "ModelVersionNotFoundException",
        "/predictions/NOT A NAME": "BadRequestException",
        "/predictions/pets?topk=1": "BadRequestException",
    }.items():
        document = home.client.put(path, content=PICTURES[0]).json()
        assert set(document) == {"code", "type", "message"}
        assert document["type"] == kind
    assert home.client.get("/models/nosuch").json()["type"] == "ModelNotFoundException"
    lost = home.client.post("/models/nosuch", content=PICTURES[0])
    assert lost.headers["x-error-message"] == error(lost, 404)
    nowhere = home.client.get("/v2/nowhere")
    assert nowhere.json()["error"] == nowhere.json()["detail"]
    unread = home.client.post("/models/pets", content=b"\xffno picture \r\n")
    assert unread.headers["x-error-message"].startswith("this is no picture")


def test_unload_and_load(home: House) -> None:
    post, name = home.client.post, "/v2/repository/models/away"

    def states() -> dict[str, str]:
        return {one["name"]: one["state"] for one in post("/v2/repository/index").raise_for_status().json()}

    assert states() == {"away": "READY", "clips": "READY", "pets": "READY"}
    unloaded = post(f"{name}/unload", json={"parameters": {"unload_dependents": False}})
    assert (unloaded.status_code, unloaded.content) == (200, b"")
    assert post(f"{name}/unload").status_code == 200
    assert states()["away"] == "UNAVAILABLE"
    assert "away" not in {one["name"] for one in post("/v2/repository/index", json={"ready": True}).json()}
    assert "no active version" in error(home.client.get("/v2/models/away/ready"), 404)
    assert home.ask("away", PICTURES[0]).status_code == 404
    assert home.ask("away", PICTURES[0], version=1).status_code == 200
    assert home.client.get("/v1/tasks/away").json()["version"] is None
    assert post(f"{name}/load", json={}).status_code == 200
    assert states()["away"] == "READY"
    policy = {"version_policy": {"specific": {"versions": [1]}}}
    assert post("/v2/repository/models/pets/load").status_code == 200
    assert home.client.get("/v1/tasks/pets").json()["version"] == 2
    chosen = {"parameters": {"config": json.dumps(policy)}}
    assert post("/v2/repository/models/pets/load", json=chosen).status_code == 200
    assert home.client.get("/v1/tasks/pets").json()["version"] == 1
    home.client.post("/v1/tasks/pets/versions/2/activate").raise_for_status()
    for parameters, words in (
        ({"config": "{"}, "JSON"), ({"config": 3}, "string"), ({"file:1/model.onnx": ""}, "PUT /v1/tasks"),
        ({"config": json.dumps({"version_policy": {"latest": {"num_versions": 1}}})}, "one version"),
    ):  # fmt: skip
        assert words in error(post(f"{name}/load", json={"parameters": parameters}), 400)
    error(post("/v2/repository/models/nosuch/load"), 404)
    error(post("/v2/repository/models/nosuch/unload"), 404)
    assert "65536" in error(post(f"{name}/load", content=b" " * 70_000), 413)


def test_counts_metrics_and_log_lines(home: House, caplog: pytest.LogCaptureFixture) -> None:
    def counted() -> int:
        return int(home.client.get("/v1/tasks/pets").json()["requests"]["answered"])

    before = counted()
    body, headers = infer(PICTURES)
    with caplog.at_level("INFO", logger="adaptserve.request"):
        home.client.post("/v2/models/pets/infer", content=body, headers=headers).raise_for_status()
        home.client.get("/v2/health/live")
    assert counted() == before + 3
    (row,) = home.client.get("/v2/models/pets/stats").json()["model_stats"]
    assert (row["version"], row["inference_count"]) == ("2", before + 3)
    every = home.client.get("/v2/models/stats").json()
    assert [one["name"] for one in every["model_stats"]] == ["away", "clips", "pets"]
    assert "versions" not in every
    (line,) = [record.getMessage() for record in caplog.records if "/v2/" in record.getMessage()]
    assert line.startswith("POST /v2/models/{task}/infer pets 200 in ")
    text = home.metrics()
    assert 'adaptserve_requests_total{code="200",task="pets"}' in text
    home.client.put("/predictions/nosuch", content=PICTURES[0])
    assert 'code="404",task="_unknown"' in home.metrics()


def test_a_client_that_leaves_frees_what_it_held(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # an engine in this process keeps its last batch, and leaves cycles
    begun, go_on = threading.Event(), threading.Event()
    decoder = home.built.answers._decoder
    inner, before = decoder._decode, decoder._memory.held

    def slow(*given: Any) -> Any:
        begun.set()
        go_on.wait(20)
        return inner(*given)

    monkeypatch.setattr(decoder, "_decode", slow)
    body, headers = infer(PICTURES[:1] * ITEMS)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{home.url}/v2/models/pets/infer", content=body, headers=headers, timeout=0.2)
    assert begun.wait(10)
    assert until(lambda: home.built.bodies.held == 0)  # it is heard of while the first is still decoded
    go_on.set()
    assert until(lambda: decoder._memory.held <= before)


CALLS = [
    ("GET", "/v2/models/{}"), ("GET", "/v2/models/{}/ready"), ("GET", "/v2/models/{}/versions/1/config"),
    ("POST", "/v2/models/{}/infer"), ("POST", "/v2/models/{}/versions/1/infer"), ("POST", "/v1/models/{}:predict"),
    ("POST", "/v1/models/{}/versions/1:classify"), ("GET", "/v1/models/{}"),
    ("GET", "/v1/models/{}/versions/1/metadata"),
    ("POST", "/models/{}"), ("GET", "/models/{}"), ("GET", "/models/{}/info"), ("GET", "/models/{}/health"),
    ("PUT", "/predictions/{}"), ("POST", "/predictions/{}/1"), ("GET", "/models/{}/1"),
]  # fmt: skip
ADMIN = [("POST", "/v2/repository/models/{}/load"), ("POST", "/v2/repository/models/{}/unload")]
OPEN = ("/", "/ping", "/v2", "/v2/health/live", "/v2/health/ready")


def test_keys_scopes_and_task_lists(kit: Kit, tmp_path: Path) -> None:
    made = {
        "boss": create("boss", "admin"), "app": create("app", "predict"), "pets": create("pets", "predict", ["pets"]),
        "keeper": create("keeper", "admin", ["pets"]),
    }  # fmt: skip
    with house(kit.settings(data_dir=tmp_path, keys=dump(key for _, key in made.values()))) as door:

        def ask(who: str | None, method: str, path: str, content: bytes = b"") -> httpx.Response:
            headers = {"Authorization": f"Bearer {made[who][0]}"} if who else {}
            return door.client.request(method, path, content=content, headers=headers)

        for task in ("pets", "secret"):
            assert ask("boss", "PUT", f"/v1/tasks/{task}/adapter", kit.file(1)[0]).status_code == 201
        for method, path in [*CALLS, *ADMIN]:
            refused = ask(None, method, path.format("pets"))
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert "needs a key with the scope" in str(refused.json())
            for task in ("secret", "nosuch"):
                who = "keeper" if (method, path) in ADMIN else "pets"
                hidden = ask(who, method, path.format(task))
                assert hidden.status_code == 403, path
                assert "secret" not in hidden.text
        for method, path in ADMIN:
            assert ask("app", method, path.format("pets")).status_code == 403
            assert ask("keeper", method, path.format("pets")).status_code == 200
        ask("boss", "POST", "/v2/repository/models/pets/load").raise_for_status()
        assert ask("pets", "PUT", "/predictions/pets", PICTURES[0]).status_code == 200
        assert all(ask(None, "GET", path).status_code == 200 for path in OPEN)
        assert {one["name"] for one in ask("pets", "GET", "/v2/models/stats").json()["model_stats"]} == {"pets"}
        lists = [("GET", "/v2/models"), ("GET", "/v1/models"), ("GET", "/models"), ("POST", "/v2/repository/index")]
        for method, path in lists:
            assert ask(None, method, path).status_code == 401
            assert "secret" in ask("app", method, path).text
            assert "secret" not in ask("pets", method, path).text
            assert "pets" in ask("pets", method, path).text
