"""Other servers' protocols over real sockets: the answers of the project's own, its keys, limits and counts."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.keys import create, dump
from tests.houses import CLIP, House, Kit, house, photograph, until
from tests.media_samples import clip

PICTURES = [photograph(seed, kind) for seed, kind in enumerate(["JPEG", "PNG", "WEBP"])]
TEXTS = [base64.b64encode(picture).decode() for picture in PICTURES]
ITEMS = 6


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    bounds = {"max_items_per_request": ITEMS, "max_request_bytes": 2**20, "max_body_bytes": 2**18, "max_queue_rows": 20}
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), **bounds)) as made:
        for task, files in {
            "pets": [kit.file(1), kit.file(2)],
            "clips": [kit.file(3, CLIP)],
            "away": [kit.file(4)],
        }.items():
            for content, _ in files:
                made.put(task, content).raise_for_status()
        yield made


def own(home: House, body: bytes, task: str = "pets", **params: Any) -> dict[str, float]:
    """What the project's own endpoint says, by label."""
    answer = home.ask(task, body, **params).raise_for_status().json()
    return {one["label"]: one["score"] for one in answer["predictions"]}


def same(found: dict[str, float], wanted: dict[str, float]) -> bool:
    """Equal up to what a batch of another shape does to the last bits; best first."""
    return list(found) == list(wanted) and np.allclose(list(found.values()), list(wanted.values()), rtol=1e-4)


def error(response: httpx.Response, status: int) -> str:
    """The sentence of a refusal in JSON, as clients look for it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert document["error"] == document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    return str(document["error"])


def infer(files: list[bytes], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A binary request of the Open Inference Protocol as tritonclient sends it, without a Content-Type."""
    behind = b"".join(struct.pack("<I", len(file)) + file for file in files)
    parameters = {"binary_data_size": len(behind)}
    tensor = {"name": "IMAGE", "shape": [len(files), 1], "datatype": "BYTES", "parameters": parameters}
    head = json.dumps({"inputs": [tensor]} | more).encode()
    return head + behind, {"Inference-Header-Content-Length": str(len(head))}


def rows(answer: dict[str, Any]) -> list[dict[str, float]]:
    """The labels and scores of each picture in a JSON answer."""
    label, score = answer["outputs"]
    assert label["shape"] == score["shape"]
    count, width = label["shape"]
    pairs = list(zip(label["data"], score["data"], strict=True))
    return [dict(pairs[i * width : (i + 1) * width]) for i in range(count)]


def test_several_pictures_are_computed_together_and_answered_in_order(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    monkeypatch.setattr(home.built.metrics, "batch", lambda rows, *_, failed: batches.append(rows))
    body, headers = infer(PICTURES, id="seven", parameters={"top_k": 100})
    answer = home.client.post("/v2/models/pets/infer", content=body, headers=headers).raise_for_status().json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("pets", "2", "seven")
    assert all(same(found, own(home, picture)) for found, picture in zip(rows(answer), PICTURES, strict=True))
    assert batches[0] == 3


def test_the_forms_of_one_request_have_one_answer(home: House) -> None:
    wanted = own(home, PICTURES[0], top_k=2)
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": TEXTS[:1]}
    document = {"inputs": [tensor], "parameters": {"top_k": 2}, "model_name": "pets"}
    binary, headers = infer(PICTURES[:1], parameters={"top_k": 2})
    post = home.client.post
    answers = [
        post("/v2/models/pets/infer", json=document),
        post("/v2/models/pets/versions/2/infer", content=binary, headers=headers),
        post("/v2/models/pets/infer/", content=gzip.compress(binary), headers=headers | {"Content-Encoding": "gzip"}),
    ]
    assert all(same(rows(answer.raise_for_status().json())[0], wanted) for answer in answers)
    serving = {"instances": [{"b64": TEXTS[0]}]}
    (row,) = post("/v1/models/pets:predict?top_k=2", json=serving).json()["predictions"]
    assert same(dict(zip(row["labels"], row["scores"], strict=True)), wanted)
    outputs = post("/v1/models/pets/versions/2:predict?top_k=2", json={"inputs": {"image": [{"b64": TEXTS[0]}]}}).json()
    (labels,), (scores,) = outputs["outputs"]["labels"], outputs["outputs"]["scores"]
    assert same(dict(zip(labels, scores, strict=True)), wanted)
    (pairs,) = post("/v1/models/pets:classify?top_k=2", json={"examples": [{"image": {"b64": TEXTS[0]}}]}).json()[
        "result"
    ]
    assert same(dict(pairs), wanted)
    for answer in (
        home.client.put("/predictions/pets?top_k=2", content=PICTURES[0]),
        post("/predictions/pets/2.0?top_k=2", files={"data": PICTURES[0]}),
        post("/predictions/pets/2?top_k=2", json={"data": TEXTS[0]}),
    ):
        assert same(answer.raise_for_status().json(), wanted)
    for answer in (
        post("/models/pets?top_k=2", content=PICTURES[0]),
        post("/models/pets", json={"inputs": TEXTS[0], "parameters": {"top_k": 2}}),
        # as `curl -d` sends it
        post("/models/pets", content=json.dumps({"inputs": TEXTS[0], "parameters": {"top_k": 2}}),
             headers={"Content-Type": "application/x-www-form-urlencoded"}),
    ):  # fmt: skip
        assert same({one["label"]: one["score"] for one in answer.raise_for_status().json()}, wanted)


def test_a_version_that_is_not_active_answers_whoever_names_it(home: House) -> None:
    first = own(home, PICTURES[0], version=1)
    assert not same(first, own(home, PICTURES[0]))
    body, headers = infer(PICTURES[:1], parameters={"top_k": 100})
    answer = home.client.post("/v2/models/pets/versions/1/infer", content=body, headers=headers).json()
    assert answer["model_version"] == "1"
    assert same(rows(answer)[0], first)
    assert same(home.client.put("/predictions/pets/1.0?top_k=9", content=PICTURES[0]).json(), first)


def test_binary_outputs_and_classes(home: House) -> None:
    outputs = [{"name": "LABEL"}, {"name": "SCORE", "parameters": {"classification": 2, "binary_data": False}}]
    parameters = {"binary_data_output": True, "top_k": 1}
    body, headers = infer(PICTURES[:2], outputs=outputs, parameters=parameters)
    answer = home.client.post("/v2/models/pets/infer", content=body, headers=headers).raise_for_status()
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    label, score = json.loads(answer.content[:size])["outputs"]
    wanted = [own(home, picture) for picture in PICTURES[:2]]
    expected = b"".join(struct.pack("<I", len(first)) + first for first in (next(iter(one)).encode() for one in wanted))
    assert (label["shape"], answer.content[size:]) == ([2, 1], expected)
    assert (score["shape"], score["datatype"]) == ([2, 2], "BYTES")
    value, index, name = score["data"][0].split(":")
    assert (name, int(index)) == (next(iter(wanted[0])), int(index))
    assert float(value) == pytest.approx(wanted[0][name], abs=1e-5)


def test_a_bad_one_fails_the_request_and_its_number_is_told(home: House) -> None:
    body, headers = infer([PICTURES[0], PICTURES[1], b"no picture", PICTURES[2]])
    refused = home.client.post("/v2/models/pets/infer", content=body, headers=headers)
    assert error(refused, 415).startswith("item 2 (of 0 to 3): ")
    assert refused.json()["item"] == 2
    serving = {"instances": [{"b64": TEXTS[0]}, {"b64": base64.b64encode(PICTURES[1][:60]).decode()}]}
    assert error(home.client.post("/v1/models/pets:predict", json=serving), 422).startswith("item 1 ")
    clips = {"instances": [{"b64": TEXTS[0]}]}
    assert "takes clips" in error(home.client.post("/v1/models/clips:predict", json=clips), 422)


def test_clips_and_their_rows(home: House) -> None:
    moving = clip()
    wanted = own(home, moving, "clips")
    text = base64.b64encode(moving).decode()
    answer = home.client.post("/models/clips", content=moving, headers={"Content-Type": "video/mp4"}).json()
    assert same({one["label"]: one["score"] for one in answer}, wanted)
    serving = {"instances": [{"b64": text}] * 2}
    found = home.client.post("/v1/models/clips:predict", json=serving).raise_for_status().json()["predictions"]
    assert [same(dict(zip(row["labels"], row["scores"], strict=True)), wanted) for row in found] == [True, True]
    refused = home.client.post("/v1/models/clips:predict", json={"instances": [{"b64": text}] * 6})
    assert "24 rows, and the queue has 20 (max_queue_rows)" in error(refused, 413)


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


def test_scores_as_the_client_wants_them(home: House) -> None:
    def asked(function: str) -> dict[str, float]:
        parameters = {"function_to_apply": function, "top_k": 100}
        answer = home.client.post("/models/pets", json={"inputs": TEXTS[0], "parameters": parameters})
        return {one["label"]: one["score"] for one in answer.raise_for_status().json()}

    logits = asked("none")
    values = np.array(list(logits.values()))
    assert same(asked("softmax"), own(home, PICTURES[0]))
    np.testing.assert_allclose(list(asked("sigmoid").values()), 1 / (1 + np.exp(-values)), rtol=1e-6)
    np.testing.assert_allclose(list(asked("softmax").values()), np.exp(values) / np.exp(values).sum(), rtol=1e-6)
    listed = home.client.post("/models/pets", json={"inputs": TEXTS}).json()
    assert [len(one) for one in listed] == [5, 5, 5]


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


def test_triton_clients_calls(home: House) -> None:
    http = pytest.importorskip("tritonclient.http")
    utils = pytest.importorskip("tritonclient.utils")
    client = http.InferenceServerClient(home.url.removeprefix("http://"))

    def tensor(files: list[Any], binary: bool = True) -> Any:
        made = http.InferInput("IMAGE", [len(files), 1], "BYTES")
        made.set_data_from_numpy(np.array(files, dtype=object).reshape(-1, 1), binary_data=binary)
        return made

    assert client.is_server_live()
    assert client.is_server_ready()
    assert [client.is_model_ready("pets", v) for v in ("", "1", "9")] == [True, True, False]
    assert [one["name"] for one in client.get_inference_statistics()["model_stats"]] == ["away", "clips", "pets"]
    assert client.get_inference_statistics("pets")["model_stats"][0]["version"] == "2"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("pets")["versions"] == ["1", "2"]
    assert client.get_model_config("pets")["max_batch_size"] == ITEMS
    assert {one["name"] for one in client.get_model_repository_index()} == {"away", "clips", "pets"}
    wanted = [own(home, picture, top_k=3) for picture in PICTURES]
    for compression in (None, "gzip", "deflate"):
        found = client.infer(
            "pets",
            [tensor(PICTURES)],
            request_id="r",
            parameters={"top_k": 3},
            request_compression_algorithm=compression,
        )
        labels, scores = found.as_numpy("LABEL"), found.as_numpy("SCORE")
        assert (labels.shape, scores.dtype, found.get_response()["id"]) == ((3, 3), np.float32, "r")
        for row, values, one in zip(labels, scores, wanted, strict=True):
            assert [label.decode() for label in row] == list(one)
            np.testing.assert_allclose(values, list(one.values()), rtol=1e-4)
    outputs = [http.InferRequestedOutput("SCORE", class_count=2), http.InferRequestedOutput("LABEL", binary_data=False)]
    found = client.infer("pets", [tensor(TEXTS, binary=False)], outputs=outputs, response_compression_algorithm="gzip")
    assert found.as_numpy("SCORE")[0, 0].decode().endswith(f":{next(iter(wanted[0]))}")
    assert found.get_response()["outputs"][1]["data"][0] == next(iter(wanted[0]))
    client.unload_model("away")
    assert not client.is_model_ready("away")
    client.load_model("away")
    assert client.is_model_ready("away")
    with pytest.raises(utils.InferenceServerException, match="item 1 .* this is no picture") as caught:
        client.infer("pets", [tensor([PICTURES[0], b"none"])])
    assert caught.value.status() == "415"
    with pytest.raises(utils.InferenceServerException, match="there is no task 'nosuch'"):
        client.infer("nosuch", [tensor(PICTURES)])
    client.close()


def test_hugging_faces_client(home: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import InferenceClient, constants
    from huggingface_hub.errors import HfHubHTTPError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # which it holds against this machine as well
    picture, moving = tmp_path / "a.png", tmp_path / "b.mp4"
    picture.write_bytes(PICTURES[1])
    moving.write_bytes(clip())
    client = InferenceClient(model=f"{home.url}/models/pets")
    for image, more in ((picture, {}), (PICTURES[1], {}), (str(picture), {"top_k": 2, "function_to_apply": "softmax"})):
        found = client.image_classification(image, **more)
        assert same({one.label: one.score for one in found}, own(home, PICTURES[1], top_k=more.get("top_k", 5)))
    clips = InferenceClient(base_url=f"{home.url}/models/clips").image_classification(moving)
    assert same({one.label: one.score for one in clips}, own(home, clip(), "clips", top_k=5))
    for url, words in (
        (f"{home.url}/models/nosuch", "there is no task 'nosuch'"),
        (f"{home.url}/models/clips", "takes clips"),
    ):
        with pytest.raises(HfHubHTTPError, match=words):
            client.image_classification(picture, model=url)
    hub = InferenceClient(provider="hf-inference")
    assert hub.health_check(model=f"{home.url}/models/pets")
    assert hub.get_endpoint_info(model=f"{home.url}/models/pets")["task"] == "image-classification"


def test_requests_as_torchserves_users_send_them(home: House) -> None:
    requests = pytest.importorskip("requests")
    url, wanted = f"{home.url}/predictions/pets", own(home, PICTURES[0], top_k=5)
    with requests.Session() as session:
        for answer in (
            session.put(url, data=PICTURES[0]),
            session.post(url, data=PICTURES[0]),
            session.post(url, files={"data": PICTURES[0]}),
            session.put(f"{url}/2.0", data=PICTURES[0]),
            session.post(url, data=PICTURES[0], headers={"Expect": "100-continue"}),
        ):
            assert same(answer.json(), wanted)
        assert session.get(f"{home.url}/ping").json()["status"] == "Healthy"


def test_kserves_client(home: House) -> None:
    """Its package wants older parts than the project's tests have; where it is there, it is asked."""
    kserve = pytest.importorskip("kserve", reason="kserve is not installed: it wants psutil below 6")

    async def ask() -> None:
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
        tensor = kserve.InferInput("IMAGE", [2], "BYTES")
        tensor.set_data_from_numpy(np.array(PICTURES[:2], dtype=object), binary_data=True)
        found = await client.infer(home.url, kserve.InferRequest("pets", [tensor]), model_name="pets")
        assert list(found.outputs[0].as_numpy()[0]) == list(own(home, PICTURES[0], top_k=5))
        assert await client.is_server_ready(home.url)
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1"))
        answer = await client.infer(home.url, {"instances": [{"b64": TEXTS[0]}]}, model_name="pets")
        assert answer["predictions"][0]["labels"] == list(own(home, PICTURES[0], top_k=5))

    asyncio.run(ask())
