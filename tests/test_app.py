"""The server over real sockets: each journey, each promise, each error a client can cause."""

from __future__ import annotations

import json
import pickle
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save

from adapters.file import Adapter
from service.settings import Settings
from tests.houses import CLIP, IMAGE, WAIT, House, Kit, house, photograph, scores_of, sites, until
from tests.media_samples import clip
from tests.models import Spec


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One server for the tests that leave no trace beyond their own task names."""
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), max_adapter_bytes=2**23)) as made:
        yield made


def problem(response: httpx.Response, status: int) -> dict[str, object]:
    """The problem document of a response that must have this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["request_id"] == response.headers["x-request-id"]
    assert len(document["detail"]) > 15
    return document  # type: ignore[no-any-return]


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
    assert answer["modality"] == "video"
    np.testing.assert_allclose(scores_of(answer), kit.alone(adapter, body), rtol=1e-4, atol=1e-6)
    assert "picture came" in problem(home.ask("gestures", photograph()), 422)["detail"]  # type: ignore[operator]


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


def header_of(entries: int) -> bytes:
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{i}": tensor for i in range(entries)}).encode()
    return struct.pack("<Q", len(header)) + header


def spoilt(kit: Kit, adapter: Adapter, **tensors: torch.Tensor) -> bytes:
    metadata = {"adaptserve": adapter.config.model_dump_json(exclude_none=True)}
    return save({**adapter.tensors, **tensors}, metadata)


def bad_uploads(kit: Kit) -> dict[str, tuple[bytes, int, str]]:
    content, adapter = kit.file(40)
    other = adapter.config.model_copy(
        update={"base": adapter.config.base.model_copy(update={"fingerprint": "ab" * 32})}
    )
    nan = adapter.tensors["head.weight"].clone()
    nan[2, 3] = float("nan")
    huge = Adapter(adapter.config, {k: t * 1e19 for k, t in adapter.tensors.items()}, "")
    return {
        "empty": (b"", 415, "too few"),
        "pickle": (pickle.dumps({"a": 1}), 415, "pickle"),
        "picture": (photograph(), 415, "JPEG"),
        "truncated": (content[: len(content) // 2], 422, "cut short"),
        "nan": (spoilt(kit, adapter, **{"head.weight": nan}), 422, "head.weight holds 1 values"),
        "base": (spoilt(kit, Adapter(other, adapter.tensors, "")), 422, "fingerprint abababababab"),
        "shape": (spoilt(kit, adapter, **{"head.weight": nan[:, :9].contiguous()}), 422, "head.weight has shape"),
        "rank": (kit.file(41, Spec(sites(rank=99)))[0], 413, "99 rank"),
        "header": (header_of(100_000), 413, "header"),
        "too many bytes": (content + bytes(2**23), 413, "max_adapter_bytes"),
        "scores that overflow": (spoilt(kit, huge), 422, "not finite"),
    }


BAD_UPLOADS = (
    "empty", "pickle", "picture", "truncated", "nan", "base", "shape", "rank", "header", "too many bytes",
    "scores that overflow",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_a_bad_upload_is_explained_and_changes_nothing(home: House, kit: Kit, name: str) -> None:
    content, adapter = kit.file(50)
    home.put("steady", content)
    body, status, words = bad_uploads(kit)[name]
    assert words in problem(home.put("steady", body), status)["detail"]  # type: ignore[operator]
    answer = home.ask("steady", photograph(6)).json()
    assert (answer["version"], answer["digest"]) == (1, adapter.digest)
    np.testing.assert_allclose(scores_of(answer), kit.alone(adapter, photograph(6)), rtol=1e-4, atol=1e-6)
    assert until(lambda: not list((home.parts.settings.data_dir / "staging").iterdir()))


def test_a_pickle_by_name_is_refused(home: House, kit: Kit) -> None:
    refused = home.client.put("/v1/tasks/named/adapter", files={"file": ("model.pth", kit.file(51)[0])})
    assert "adaptserve import" in problem(refused, 415)["detail"]  # type: ignore[operator]


@pytest.mark.parametrize("name", ["..%2Fx", "%2e%2e%2fetc", "A", "a%00b", "x" * 65, "%ff", "a%2fb", "-a"])
def test_names_that_are_no_names(home: House, kit: Kit, name: str) -> None:
    for response in (
        home.client.put(f"/v1/tasks/{name}/adapter", content=kit.file(52)[0]),
        home.client.post(f"/v1/tasks/{name}/predict", content=photograph()),
        home.client.get(f"/v1/tasks/{name}"),
    ):
        assert response.status_code in (400, 404)
        problem(response, response.status_code)
    assert home.parts.settings.data_dir.is_dir()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422), (b"hello", 415), (b"\xff\xd8\xff\xe0garbage", 422), (photograph()[:300], 422),
        (b"\x89PNG\r\n\x1a\n", 422), (pickle.dumps([1]), 415), (b"%PDF-1.7 x", 415),
    ],
)  # fmt: skip
def test_a_bad_picture_is_explained(home: House, kit: Kit, body: bytes, status: int) -> None:
    home.put("seeing", kit.file(53)[0])
    problem(home.ask("seeing", body), status)
    assert home.ask("seeing", photograph()).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/v1/tasks/none", 404), ("POST", "/v1/tasks", 405),
        ("POST", "/v1/tasks/seeing/predict?top_k=0", 400), ("POST", "/v1/tasks/seeing/predict?top_k=x", 400),
        ("POST", "/v1/tasks/seeing/predict?version=abc", 400), ("POST", "/v1/tasks/seeing/predict?version=99", 404),
        ("PUT", "/v1/tasks/seeing/adapter?activate=maybe", 400), ("POST", "/v1/tasks/seeing/versions/0/activate", 400),
        ("DELETE", "/v1/tasks/none", 404), ("GET", "/v1/tasks/seeing/versions/99/adapter", 404),
    ],
)  # fmt: skip
def test_bad_calls_are_problem_documents(home: House, kit: Kit, method: str, path: str, status: int) -> None:
    home.put("seeing", kit.file(53)[0])
    problem(home.client.request(method, path), status)


def test_deadlines_are_bounded_and_checked(home: House, kit: Kit) -> None:
    home.put("seeing", kit.file(53)[0])
    for value in ("0", "soon", "999999999"):
        late = home.client.post("/v1/tasks/seeing/predict", content=photograph(), headers={"X-Deadline-Ms": value})
        problem(late, 400)


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


class Held:
    """The engine's forward behind a gate, so that requests pile up where a test wants them."""

    def __init__(self, made: House) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        inner = made.parts.engine._forward

        def forward(jobs):  # type: ignore[no-untyped-def]
            self.entered.set()
            assert self.gate.wait(WAIT)
            return inner(jobs)

        self._put = lambda f: setattr(made.parts.engine, "_forward", f)
        self._inner, self._held = inner, forward

    def __enter__(self) -> Held:
        self._put(self._held)
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._put(self._inner)


@pytest.fixture
def small(kit: Kit, tmp_path: Path) -> Iterator[House]:
    """A server with tight bounds, for tests of overload."""
    tight: Settings = kit.settings(data_dir=tmp_path / "data", max_queue_rows=4, deadline_s=20, max_body_bytes=50_000)
    with house(tight) as made:
        made.put("t", kit.file(1)[0]).raise_for_status()
        yield made


def test_a_full_queue_is_429_and_says_when(small: House) -> None:
    with Held(small) as held, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(small.ask, "t", photograph(i)) for i in range(4)]
        assert until(lambda: small.parts.engine.queued_rows == 4)
        refused = small.ask("t", photograph())
        assert problem(refused, 429)["limit"] == 4
        assert int(refused.headers["retry-after"]) >= 1
        held.gate.set()
        assert [w.result(WAIT).status_code for w in waiting] == [200] * 4
    assert small.ask("t", photograph()).status_code == 200


def test_a_deadline_fires_on_time_and_takes_its_rows_back(small: House) -> None:
    with Held(small) as held, ThreadPoolExecutor(4) as pool:
        first = pool.submit(small.ask, "t", photograph())
        assert held.entered.wait(WAIT)
        start = time.monotonic()
        late = small.client.post("/v1/tasks/t/predict", content=photograph(), headers={"X-Deadline-Ms": "300"})
        problem(late, 504)
        assert time.monotonic() - start < 3
        assert until(lambda: small.parts.engine.queued_rows == 1)
        held.gate.set()
        assert first.result(WAIT).status_code == 200


def test_a_client_that_leaves_takes_its_rows_along(small: House) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    body = photograph()
    with Held(small) as held, ThreadPoolExecutor(4) as pool:
        first = pool.submit(small.ask, "t", photograph())
        assert held.entered.wait(WAIT)
        with socket.create_connection((host, int(port))) as raw:
            head = f"POST /v1/tasks/t/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body)
            assert until(lambda: small.parts.engine.queued_rows == 2)
        assert until(lambda: small.parts.engine.queued_rows == 1)
        held.gate.set()
        assert first.result(WAIT).status_code == 200
    assert until(lambda: small.parts.bank.stats().pinned == 0)


def test_a_body_over_its_bound_is_413_however_it_comes(small: House) -> None:
    for content in (bytes(60_000), iter([bytes(30_000), bytes(30_000)])):
        assert problem(small.client.post("/v1/tasks/t/predict", content=content), 413)["limit"] == 50_000
    assert small.ask("t", photograph()).status_code == 200


def test_answers_stay_right_while_their_tasks_are_replaced(kit: Kit, tmp_path: Path) -> None:
    """8 clients on 10 tasks in 6 slots, 3 tasks replaced every 100 ms: each answer equals its digest's own."""
    body = photograph(7)
    files = [kit.file(100 + i, Spec(sites(), 3 + i % 5, "avg", "trained")) for i in range(19)]
    expected = {adapter.digest: kit.alone(adapter, body) for _, adapter in files}
    stop, answers, failures = threading.Event(), [], []  # type: ignore[var-annotated]
    with house(kit.settings(data_dir=tmp_path / "data", slots=6)) as made:
        for i in range(10):
            made.put(f"task-{i}", files[i][0]).raise_for_status()

        def ask(number: int) -> None:
            with httpx.Client(base_url=made.url, timeout=WAIT) as client:
                turn = number
                while not stop.is_set():
                    turn += 3
                    response = client.post(f"/v1/tasks/task-{turn % 10}/predict?top_k=100", content=body)
                    (answers if response.status_code == 200 else failures).append(response.json())

        def replace() -> None:
            with httpx.Client(base_url=made.url, timeout=WAIT) as client:
                turn = 0
                while not stop.wait(0.1):
                    for i in range(3):
                        content = files[(10 + turn + i * 3) % 19][0]
                        client.put(f"/v1/tasks/task-{i}/adapter", content=content).raise_for_status()
                    turn += 1

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)] + [threading.Thread(target=replace)]
        for thread in threads:
            thread.start()
        stop.wait(5)
        assert until(lambda: len(answers) > 100 and len({a["digest"] for a in answers}) > 10, 90)
        stop.set()
        for thread in threads:
            thread.join(WAIT)
        assert until(lambda: made.parts.bank.stats().pinned == 0)
    assert not failures
    for answer in answers:
        np.testing.assert_allclose(scores_of(answer), expected[answer["digest"]], rtol=1e-3, atol=1e-5)


def test_concurrent_tasks_share_batches(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path / "data")) as made:
        for i in range(10):
            made.put(f"task-{i}", kit.file(200 + i)[0]).raise_for_status()
        seen: list[int] = []
        inner = made.parts.engine._on_batch
        made.parts.engine._on_batch = lambda report: (seen.append(report.adapters), inner(report))[1]
        with Held(made) as held, ThreadPoolExecutor(11) as pool:
            first = pool.submit(made.ask, "task-0", photograph())
            assert held.entered.wait(WAIT)
            rest = [pool.submit(made.ask, f"task-{i}", photograph(i)) for i in range(10)]
            assert until(lambda: made.parts.engine._scheduler.waiting_rows == 10)
            held.gate.set()
            assert all(f.result(WAIT).status_code == 200 for f in [first, *rest])
        assert seen == [1, 10]


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
