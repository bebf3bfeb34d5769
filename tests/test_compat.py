"""Other servers' protocols over real sockets: the answers of the project's own, also as those servers' clients ask."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import ITEMS, PICTURES, TEXTS, error, home, infer
from tests.houses import House
from tests.media_samples import clip

__all__ = ["home"]


def own(home: House, body: bytes, task: str = "pets", **params: Any) -> dict[str, float]:
    """What the project's own endpoint says, by label."""
    answer = home.ask(task, body, **params).raise_for_status().json()
    return {one["label"]: one["score"] for one in answer["predictions"]}


def same(found: dict[str, float], wanted: dict[str, float]) -> bool:
    """Equal up to what a batch of another shape does to the last bits; best first."""
    return list(found) == list(wanted) and np.allclose(list(found.values()), list(wanted.values()), rtol=1e-4)


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
