"""The server over real sockets: each journey, from upload to answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from adapters.config import SiteConfig
from tests.houses import CLIP, IMAGE, House, Kit, house, photograph, problem, scores_of, sites
from tests.media_samples import animation, clip
from tests.models import Spec


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One server for the tests that leave no trace beyond their own task names."""
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), max_adapter_bytes=2**23)) as made:
        yield made


def test_an_upload_answers_at_once_as_computed_alone(home: House, kit: Kit) -> None:
    content, adapter = kit.file(1)
    made = home.put("pets", content)
    assert made.status_code == 201
    assert made.json()["digest"] == adapter.digest
    assert made.headers["location"] == "/v1/tasks/pets/versions/1"
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        body = photograph(2, kind)
        answer = home.ask("pets", body)
        assert answer.status_code == 200
        assert answer.json()["digest"] == adapter.digest
        np.testing.assert_allclose(scores_of(answer.json()), kit.alone(adapter, body), rtol=1e-4, atol=1e-6)
    assert home.put("pets", content).status_code == 200


def test_a_clip_is_answered_as_computed_alone(home: House, kit: Kit) -> None:
    content, adapter = kit.file(2, CLIP)
    assert home.put("gestures", content).status_code == 201
    body = clip()
    answer = home.ask("gestures", body).json()
    assert (answer["modality"], answer["bad_frames"]) == ("video", 0)
    np.testing.assert_allclose(scores_of(answer), kit.alone(adapter, body), rtol=1e-4, atol=1e-6)
    assert "picture came" in problem(home.ask("gestures", photograph()), 422)["detail"]  # type: ignore[operator]


def test_what_counts_as_a_clip_and_how_many_of_its_frames_were_bad(home: House, kit: Kit) -> None:
    content, adapter = kit.file(2, CLIP)
    home.put("gestures", content)
    for body in (clip("mpegts"), clip("avi", "mjpeg"), animation("GIF"), animation("WEBP")):
        answer = home.ask("gestures", body).json()
        np.testing.assert_allclose(scores_of(answer), kit.alone(adapter, body), rtol=1e-4, atol=1e-6)
    body = clip("avi", "mjpeg")
    start = [found.start() for found in re.finditer(b"\xff\xd8\xff", body)][6]  # of a frame that is wanted
    broken = body[:start] + bytes(220) + body[start + 220 :]
    assert home.ask("gestures", broken).json()["bad_frames"] == 1
    many = home.client.post("/v1/predict", params={"task": "gestures"}, content=broken).json()["results"]
    assert many[0]["bad_frames"] == 1


def test_the_answer_has_its_times_and_ids(home: House, kit: Kit) -> None:
    home.put("timed", kit.file(3)[0])
    response = home.client.post("/v1/tasks/timed/predict", content=photograph(), headers={"X-Request-Id": "my-id.1"})
    assert response.headers["x-request-id"] == "my-id.1"
    assert [part.split(";")[0] for part in response.headers["server-timing"].split(", ")] == [
        "decode", "queue", "compute",
    ]  # fmt: skip
    assert len(response.json()["predictions"]) == 5
    best = home.ask("timed", photograph(), top_k=1).json()["predictions"]
    assert best == response.json()["predictions"][:1]


def test_one_body_many_tasks(home: House, kit: Kit) -> None:
    adapters = {f"many-{i}": kit.file(10 + i, Spec(sites(), 3 + i, "avg", "trained")) for i in range(3)}
    for task, (content, _) in adapters.items():
        home.put(task, content)
    body = photograph(5)
    asked = ["many-2", "many-0", "many-1", "many-2"]
    answer = home.client.post("/v1/predict", params={"task": asked, "top_k": 100}, content=body).json()
    assert [r["task"] for r in answer["results"]] == asked
    for result in answer["results"]:
        expected = kit.alone(adapters[result["task"]][1], body)
        np.testing.assert_allclose(scores_of(result), expected, rtol=1e-4, atol=1e-6)
    missing = home.client.post("/v1/predict", params={"task": ["many-0", "no-such"]}, content=body)
    assert problem(missing, 404)["task"] == "no-such"
    problem(home.client.post("/v1/predict", content=body), 400)
    problem(home.client.post("/v1/predict", params={"task": ["many-0"] * 65}, content=body), 400)


def test_versions_roll_back_and_forward(home: House, kit: Kit) -> None:
    files = [kit.file(20 + i) for i in range(3)]
    home.put("rolling", files[0][0])
    home.put("rolling", files[1][0])
    assert home.put("rolling", files[2][0], activate="false").json()["active"] is False
    digest = [a.digest for _, a in files]
    body = photograph(1)
    assert home.ask("rolling", body).json()["digest"] == digest[1]
    assert home.ask("rolling", body, version=3).json()["digest"] == digest[2]
    assert home.client.post("/v1/tasks/rolling/versions/1/activate").json()["version"] == 1
    assert home.ask("rolling", body).json()["digest"] == digest[0]
    listed = home.client.get("/v1/tasks/rolling/versions").json()["versions"]
    assert [(v["version"], v["active"]) for v in listed] == [(1, True), (2, False), (3, False)]
    down = home.client.get("/v1/tasks/rolling/versions/3/adapter")
    assert down.content == files[2][0]
    again = home.client.get("/v1/tasks/rolling/versions/3/adapter", headers={"If-None-Match": down.headers["etag"]})
    assert again.status_code == 304
    problem(home.client.delete("/v1/tasks/rolling/versions/1"), 409)
    assert home.client.delete("/v1/tasks/rolling/versions/2").status_code in (200, 204)
    problem(home.ask("rolling", body, version=2), 404)
    assert home.client.delete("/v1/tasks/rolling").status_code in (200, 204)
    problem(home.ask("rolling", body), 404)
    assert home.put("rolling", files[0][0]).json()["version"] == 4


def test_the_task_list_says_what_is_served(home: House, kit: Kit) -> None:
    _, adapter = kit.file(30)
    home.put("listed", kit.file(30)[0])
    home.ask("listed", photograph())
    listed = home.client.get("/v1/tasks").json()
    entry = next(t for t in listed["tasks"] if t["task"] == "listed")
    assert entry == home.client.get("/v1/tasks/listed").json()
    assert (entry["modality"], entry["version"], entry["digest"]) == ("image", 1, adapter.digest)
    assert entry["labels"] == list(adapter.config.labels)
    assert entry["parameters"] == adapter.parameters
    assert entry["residency"] == "device"
    assert entry["requests"]["answered"] == 1
    assert listed["fingerprint"] == kit.backbone.layout.fingerprint


@pytest.mark.parametrize("field", ["file", "image", "video"])
def test_forms_and_raw_bodies_with_any_content_type(home: House, kit: Kit, field: str) -> None:
    home.put("forms", kit.file(31)[0])
    body = photograph(3)
    expected = home.ask("forms", body).json()
    form = home.client.post("/v1/tasks/forms/predict", params={"top_k": 100}, files={field: ("x.jpg", body)})
    assert form.json() == expected
    for kind in ("image/png", "application/json", "text/html", "nonsense"):
        raw = home.client.post(
            "/v1/tasks/forms/predict", params={"top_k": 100}, content=body, headers={"Content-Type": kind}
        )
        assert raw.json() == expected
    problem(home.client.post("/v1/tasks/forms/predict", files={"other": ("x.jpg", body)}), 400)
    upload = home.client.put("/v1/tasks/formed/adapter", files={"file": ("a.safetensors", kit.file(32)[0])})
    assert upload.status_code in (200, 201)


def test_health_and_metrics(home: House, kit: Kit) -> None:
    assert home.client.get("/livez").status_code == 200
    assert home.client.get("/readyz").json()["status"] == "ready"
    home.put("metered", kit.file(54)[0])
    home.ask("metered", photograph())
    home.ask("nobody", photograph())
    text = home.client.get("/metrics").text
    assert 'adaptserve_requests_total{code="200",task="metered"} 1.0' in text
    assert 'adaptserve_requests_total{code="404",task="_unknown"}' in text
    for name in ("batch_rows_bucket", "queue_rows", 'bank_slots{state="free"}', "adapter_loads_total", "build_info"):
        assert f"adaptserve_{name}" in text
    assert home.client.get("/openapi.json").json()["paths"]["/v1/tasks/{task}/predict"]
    assert home.client.get("/docs").status_code == 200


def test_a_broken_file_on_disk_is_that_tasks_error_alone(kit: Kit, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with house(kit.settings(data_dir=data)) as made:
        made.put("good", kit.file(1)[0])
        made.put("bad", kit.file(2, IMAGE)[0])
    path = data / "tasks/bad/versions/1.safetensors"
    rotten = bytearray(path.read_bytes())
    rotten[-1] ^= 1
    path.write_bytes(rotten)
    with house(kit.settings(data_dir=data)) as made:
        assert made.ask("good", photograph()).status_code == 200
        assert "has changed on the server's disk" in problem(made.ask("bad", photograph()), 422)["detail"]  # type: ignore[operator]
        assert made.ask("good", photograph()).status_code == 200


def test_tasks_share_the_picture_they_are_asked_about(home: House, kit: Kit) -> None:
    """Six tasks on one picture: four rows are computed from the last block on, and one before it."""
    last = SiteConfig(site="parallel", blocks=(2,), rank=4)
    files = [kit.file(seed, Spec((last,), 5, "avg", "trained")) for seed in range(3)]
    files += [kit.file(seed, Spec((), 4)) for seed in range(3)]
    names = [f"shared-{i}" for i in range(len(files))]
    for name, (content, _) in zip(names, files, strict=True):
        home.put(name, content).raise_for_status()
    photo = photograph(5)
    rows: dict[int, list[int]] = {0: [], 2: []}
    blocks = home.local.backbone._blocks
    hooks = [
        blocks[i].module.register_forward_hook(lambda _m, _a, out, i=i: rows[i].append(out.shape[0])) for i in rows
    ]
    try:
        response = home.client.post("/v1/predict", params={"task": names, "top_k": 100}, content=photo)
    finally:
        for hook in hooks:
            hook.remove()
    assert response.status_code == 200, response.text
    for answer, (_, adapter) in zip(response.json()["results"], files, strict=True):
        np.testing.assert_allclose(scores_of(answer), kit.alone(adapter, photo), atol=1e-5)
    assert sum(rows[0]) < len(names)  # a batch may begin before all have come
    assert sum(rows[2]) >= sum(rows[0])
    assert max(rows[2]) <= 4
