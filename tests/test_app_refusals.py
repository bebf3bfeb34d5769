"""What a client can get wrong over real sockets: its status, a sentence that helps, and nothing changed."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import save

from adapters.file import Adapter
from tests.houses import House, Kit, house, photograph, problem, scores_of, sites, until
from tests.models import Spec


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One server for the tests that leave no trace beyond their own task names."""
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), max_adapter_bytes=2**23)) as made:
        yield made


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
        "rank": (kit.file(41, Spec(sites(rank=99)))[0], 413, "rank 99"),
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
    assert until(lambda: not list((home.settings.data_dir / "staging").iterdir()))


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
    assert home.settings.data_dir.is_dir()


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
